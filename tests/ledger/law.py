"""The steps of an execution's life in one line each, for tests of the law."""

from __future__ import annotations

from datetime import timedelta
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
