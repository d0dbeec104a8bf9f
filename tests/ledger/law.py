"""The steps of an execution's life in one line each, for tests of the law."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg.types.json import Jsonb

from flowledger.domain.status import Status

LEASE = timedelta(seconds=30)
ALICE = UUID("a11ce000-0000-4000-8000-000000000001")
BOB = UUID("b0b00000-0000-4000-8000-000000000002")
WORKER = UUID("00000000-0000-4000-8000-000000000001")

Row = dict[str, Any]


def born(user: psycopg.Connection, flow: UUID, **columns: Any) -> UUID:
    """A pending execution of the user, by a plain insert."""
    me = user.execute("select auth.uid() as uid").fetchone()["uid"]
    given = {"flow_id": flow, "execution_key": f"FLOW-{uuid4()}", "executed_by": me, **columns}
    values = {name: Jsonb(value) if isinstance(value, dict | list) else value for name, value in given.items()}
    names = ", ".join(values)
    places = ", ".join(f"%({name})s" for name in values)
    statement = f"insert into crewai_flow_executions ({names}) values ({places}) returning id"
    return user.execute(statement, values).fetchone()["id"]


def claim(
    worker: psycopg.Connection, *flows: UUID, slots: int = 10, lease: timedelta = LEASE, as_worker: UUID = WORKER
) -> list[Row]:
    return worker.execute(
        "select * from flowledger.claim(%s, %s, %s, %s, %s)",
        [as_worker, list(flows), [60.0] * len(flows), slots, lease],
    ).fetchall()


def renew(worker: psycopg.Connection, *claims: Row, as_worker: UUID = WORKER, lease: timedelta = LEASE) -> list[Row]:
    return worker.execute(
        "select * from flowledger.renew(%s, %s, %s, %s)",
        [as_worker, [one["execution_id"] for one in claims], [one["fence"] for one in claims], lease],
    ).fetchall()


def finish(worker: psycopg.Connection, execution: UUID, fence: int, status: str = "completed", **outcome: Any) -> str:
    given = {
        "output": None,
        "error_type": None,
        "tokens": None,
        "cost": None,
        "began": None,
        "metadata": None,
    } | outcome
    return worker.execute(
        """select flowledger.finish(%(execution)s, %(fence)s, %(status)s, %(output)s, %(error_type)s, null, null,
                                    %(tokens)s, %(cost)s, %(began)s, %(metadata)s) as answer""",
        {
            **given,
            "output": Jsonb(given["output"]),
            "metadata": Jsonb(given["metadata"] or {}),
            "execution": execution,
            "fence": fence,
            "status": status,
        },
    ).fetchone()["answer"]


def cancel(caller: psycopg.Connection, execution: UUID, reason: str | None = None) -> str:
    return caller.execute("select flowledger.cancel(%s, %s) as answer", [execution, reason]).fetchone()["answer"]


def reap(worker: psycopg.Connection, grace: timedelta = timedelta(0)) -> dict[UUID, str]:
    rows = worker.execute("select * from flowledger.reap(%s)", [grace]).fetchall()
    return {row["execution_id"]: row["status"] for row in rows}


def expire(owner: psycopg.Connection, execution: UUID) -> None:
    """The lease ends now, as if its holder had been silent."""
    owner.execute(
        "update flowledger.leases set expires_at = clock_timestamp() - interval '1 ms' where execution_id = %s",
        [execution],
    )


def row(owner: psycopg.Connection, execution: UUID) -> Row:
    return owner.execute("select * from crewai_flow_executions where id = %s", [execution]).fetchone()


def steps(owner: psycopg.Connection, execution: UUID) -> list[tuple[str | None, str, str]]:
    """from, to and actor of each transition, in order."""
    rows = owner.execute(
        "select from_status, to_status, actor from flowledger.transitions where execution_id = %s order by seq",
        [execution],
    ).fetchall()
    return [(step["from_status"], step["to_status"], step["actor"]) for step in rows]


def brought_to(status: Status, owner: psycopg.Connection, user: psycopg.Connection, flow: UUID, **columns: Any) -> UUID:
    """An execution in this status, whatever the way there."""
    execution = born(user, flow, **columns)
    path = {Status.PENDING: [], Status.RUNNING: ["running"], Status.COMPLETED: ["running", "completed"]}
    for step in path.get(status, [status.value]):
        owner.execute("update crewai_flow_executions set status = %s where id = %s", [step, execution])
    return execution


def used(number: int = 1, **facts: Any) -> Row:
    """An LLM call as `append_usage` takes it: of 110 tokens, and a cent."""
    return {
        "number": number,
        "call_id": f"call-{number}",
        "status": "completed",
        "model": "gpt",
        "provider": "openai",
        "started_at": datetime.now(UTC).isoformat(),
        "input_tokens": 100,
        "cached_input_tokens": 40,
        "cache_write_tokens": 5,
        "output_tokens": 10,
        "reasoning_tokens": 3,
        "price": {"source": "team", "version": "1", "input": "50", "output": "500"},
        "cost_usd": "0.01",
        **facts,
    }


UNREPORTED: Row = dict.fromkeys(
    ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens", "cost_usd")
)
"""What `used` is given of a call that nobody reported tokens of."""


def append_usage(worker: psycopg.Connection, held: Row, *calls: Row) -> int:
    """How many calls of the holder's were added."""
    values = [[held["execution_id"]] * len(calls), [held["fence"]] * len(calls), [Jsonb(call) for call in calls]]
    return worker.execute("select flowledger.append_usage(%s, %s, %s) as added", values).fetchone()["added"]


def reserve(worker: psycopg.Connection, held: Row, number: int, usd: str | None, tokens: int = 100) -> list[Row]:
    """The windows that have no room for a call, or say that they have none."""
    return worker.execute(
        "select * from flowledger.reserve(%s, %s, %s, %s, %s)",
        [held["execution_id"], held["fence"], number, usd and Decimal(usd), tokens],
    ).fetchall()


def running(user: psycopg.Connection, worker: psycopg.Connection, flow: UUID, **columns: Any) -> Row:
    """The claim of a new execution of the user's."""
    execution = born(user, flow, **columns)
    (held,) = worker.execute(
        "select * from flowledger.claim(%s, %s, '{60}', 1, %s, %s)", [WORKER, [flow], LEASE, [execution]]
    ).fetchall()
    return held


def ran(
    user: psycopg.Connection,
    worker: psycopg.Connection,
    flow: UUID,
    *calls: Row,
    status: str = "completed",
    columns: Row | None = None,
    **outcome: Any,
) -> UUID:
    """An execution of the user's that made these calls and ended."""
    held = running(user, worker, flow, **(columns or {}))
    append_usage(worker, held, *calls)
    finish(worker, held["execution_id"], held["fence"], status, **outcome)
    return UUID(str(held["execution_id"]))
