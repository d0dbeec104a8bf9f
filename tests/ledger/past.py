"""Executions that ended, with the LLM calls that they made, for tests of what came later."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from functools import reduce
from operator import add
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg.types.json import Jsonb

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.domain.usage import CallStatus, LlmCall, Price, PricedCall, Total, Usage
from flowledger.ledger.usage import _stored

AT = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
MILLION = Usage(input_tokens=1_000_000, output_tokens=1_000_000)


def price(given: str, spoken: str, source: str = "genai-prices", version: str = "0.1") -> Price:
    return Price(input=Decimal(given), output=Decimal(spoken), source=source, version=version)


def call(model: str = "gpt-4o", priced: Price | None = None, **facts: Any) -> PricedCall:
    """A call of a million tokens each way, unless `usage` says otherwise; `priced` None: nobody knew a price."""
    known = {
        "number": 1,
        "call_id": "c",
        "provider": "openai",
        "started_at": AT,
        "status": CallStatus.COMPLETED,
        "usage": MILLION,
    }
    return PricedCall(LlmCall(model=model, **{**known, **facts}), priced)


def ended(
    postgres: EmbeddedPostgres, user: UUID, *calls: PricedCall, flow: str = "alpha", status: str | None = "completed"
) -> UUID:
    """An execution with these calls that ended so; None: it still runs."""
    worker = uuid4()
    numbered = [{**_stored(one), "number": number} for number, one in enumerate(calls, start=1)]
    with psycopg.connect(postgres.url("flowledger_worker"), autocommit=True) as service:
        known = service.execute(
            "select id from flowledger.remember_flow(%s, %s, '', '{}', '')", (flow, flow)
        ).fetchone()
        execution = _born(postgres, user, flow)
        row = service.execute(
            "select fence from flowledger.claim(%s, %s, array[60]::float8[], 1, '1 hour', array[%s]::uuid[])",
            (worker, [known and known[0]], execution),
        ).fetchone()
        assert row is not None
        service.execute(
            "select flowledger.append_usage(%s, %s, %s::text[]::jsonb[])",
            ([execution] * len(calls), [row[0]] * len(calls), [json.dumps(one) for one in numbered]),
        )
        if status is not None:
            total = reduce(add, (Total.of(one.call, one.price) for one in calls), Total())
            service.execute(
                "select flowledger.finish(%s, %s, %s, '{}', %s, null, null, %s, %s, null, %s)",
                (
                    execution,
                    row[0],
                    status,
                    None if status == "completed" else "ValueError",
                    total.tokens,
                    total.cost_usd,
                    Jsonb(total.as_metadata()),
                ),
            )
    return execution


def _born(postgres: EmbeddedPostgres, user: UUID, flow: str) -> UUID:
    with psycopg.connect(postgres.url("flowledger_api"), autocommit=True) as caller:
        caller.execute("set role authenticated")
        caller.execute("select set_config('request.jwt.claim.sub', %s, false)", [str(user)])
        row = caller.execute("select id from flowledger.kickoff(%s, '{}')", [flow]).fetchone()
    assert row is not None
    return UUID(str(row[0]))
