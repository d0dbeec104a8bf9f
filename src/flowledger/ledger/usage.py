"""Appends and reads LLM calls: what they used, at which price, and what that cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from flowledger.database.session import Connection
from flowledger.domain.usage import CallStatus, LlmCall, Price, PricedCall, Repricing, Usage, exact_text
from flowledger.ledger.timeline import Held, store
from flowledger.sql import query


async def append(connection: Connection, calls: Sequence[tuple[Held, PricedCall]]) -> None:
    """Adds calls; those of executions that are held no more under that fence are left out. Safe to repeat.

    Raises InvalidInput if one of them cannot be stored; then none is.
    """
    await store(
        connection,
        query("usage", "append"),
        {
            "executions": [execution for (execution, _), _ in calls],
            "fences": [fence for (_, fence), _ in calls],
            "calls": [json.dumps(_stored(call)) for _, call in calls],
        },
    )


async def read(connection: Connection, execution: UUID, *, after: int = 0, most: int | None = None) -> list[PricedCall]:
    """The execution's calls with a number above `after`, in the order in which they began, as far as the session may
    see them: the first `most` of them, or all.
    """
    values = {"execution": execution, "after": after, "most": most}
    rows = await (await connection.execute(query("usage", "read"), values)).fetchall()
    return [_call(row) for row in rows]


@dataclass(frozen=True)
class Spent:
    """What calls of one flow to one model that ended alike used and cost.

    `usage` and `cost_usd` are of the calls for which they are known; `unknown_costs` counts those, failed ones apart,
    whose cost is not.
    """

    flow_key: str
    model: str
    status: CallStatus
    calls: int
    unknown_costs: int
    usage: Usage
    cost_usd: Decimal


async def spent(connection: Connection, executions: Sequence[UUID]) -> list[Spent]:
    """Sums over all calls of these executions. For operators."""
    rows = await (await connection.execute(query("usage", "spent"), {"executions": list(executions)})).fetchall()
    return [_spent(row) for row in rows]


async def repricings(connection: Connection, execution: UUID) -> list[Repricing]:
    """Later looks at what the execution cost, the latest first."""
    rows = await (await connection.execute(query("usage", "repricings"), {"execution": execution})).fetchall()
    return [Repricing(**row) for row in rows]


@dataclass(frozen=True)
class Full:
    """A window that has no room for a call. `unit` is "usd" or "tokens", `limit` and the others are amounts of it.

    `is_final` False: there is room as soon as calls that are being made turn out cheaper. `is_warning`: it only says
    so, and the call may be made.
    """

    scope: str
    period: str
    unit: str
    spent: Decimal
    reserved: Decimal
    limit: Decimal
    is_final: bool
    is_warning: bool


async def reserve(connection: Connection, held: Held, number: int, usd: Decimal | None, tokens: int) -> list[Full]:
    """Sets aside the most that a call can take in each window that its execution falls into.

    Nothing is set aside where one of the answers is no warning.
    """
    execution, fence = held
    values = {"execution": execution, "fence": fence, "number": number, "usd": usd, "tokens": tokens}
    rows = await (await connection.execute(query("usage", "reserve"), values)).fetchall()
    return [Full(limit=row.pop("limit_"), **row) for row in rows]


async def has_windows(connection: Connection) -> bool:
    """Whether there is any budget for a day or a month. For operators."""
    row = await (await connection.execute(query("usage", "has_windows"))).fetchone()
    assert row is not None
    return bool(row["found"])


async def fold(connection: Connection) -> None:
    """Adds the latest amounts to the sums by day."""
    await connection.execute(query("usage", "fold"))


def _stored(priced: PricedCall) -> dict[str, Any]:
    facts = dict(vars(priced.call))
    usage, started_at = facts.pop("usage"), facts.pop("started_at")
    return {
        **facts,
        **(vars(usage) if usage is not None else {}),
        "status": str(priced.call.status),
        "started_at": started_at.isoformat(),
        "price": None if priced.price is None else priced.price.as_json(),
        "cost_usd": None if priced.cost_usd is None else exact_text(priced.cost_usd),
        "estimated_usd": None if priced.estimated_usd is None else exact_text(priced.estimated_usd),
    }


def _spent(row: Mapping[str, Any]) -> Spent:
    facts = dict(row)
    usage = Usage(**{name: int(facts.pop(name)) for name in vars(Usage())})
    return Spent(**{**facts, "status": CallStatus(facts["status"])}, usage=usage)


def _call(row: Mapping[str, Any]) -> PricedCall:
    facts = dict(row)
    price, estimated_usd = facts.pop("price"), facts.pop("estimated_usd")
    tokens = {name: facts.pop(name) for name in vars(Usage())}
    usage = None if tokens["input_tokens"] is None else Usage(**tokens)
    call = LlmCall(**{**facts, "status": CallStatus(facts["status"])}, usage=usage)
    return PricedCall(call, None if price is None else Price.from_json(price), estimated_usd)
