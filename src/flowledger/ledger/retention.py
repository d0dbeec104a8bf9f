"""What ended long ago: counting it, reading it whole for an archive, deleting it. For operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb

from flowledger.database.session import Connection
from flowledger.domain.status import Status
from flowledger.sql import query

TABLES = (
    "executions",
    "timeline",
    "logs",
    "transitions",
    "cancel_wishes",
    "reruns",
    "usage",
    "repricings",
    "repriced_calls",
    "failures",
)
"""What belongs to an execution, itself first, by the names that archives use."""


@dataclass(frozen=True)
class Due:
    """How many executions of one flow and status are to go, and when the first and last of them started."""

    flow_key: str
    status: Status
    executions: int
    first_started_at: datetime
    last_started_at: datetime


@dataclass(frozen=True)
class Which:
    """Executions that ended as one of `statuses` before `ended_before`."""

    statuses: tuple[Status, ...]
    ended_before: datetime

    def as_values(self) -> dict[str, Any]:
        return {"statuses": [str(status) for status in self.statuses], "ended_before": self.ended_before}


async def due(connection: Connection, which: Which) -> list[Due]:
    """What there is to delete, by flow and status."""
    rows = await (await connection.execute(query("retention", "due"), which.as_values())).fetchall()
    return [Due(**{**row, "status": Status(row["status"])}) for row in rows]


@dataclass(frozen=True)
class Aged:
    """An execution that is to go. As a place: the next page begins after it."""

    started_at: datetime
    id: UUID


async def due_page(connection: Connection, which: Which, *, limit: int, after: Aged | None = None) -> list[Aged]:
    """The oldest executions to delete, after a place."""
    values = {
        **which.as_values(),
        "after_started_at": after and after.started_at,
        "after_id": after and after.id,
        "limit": limit,
    }
    return [Aged(**row) for row in await (await connection.execute(query("retention", "due_ids"), values)).fetchall()]


@dataclass(frozen=True)
class Page:
    """Rows of one table of TABLES. `types` holds Postgres' name of each column's type."""

    table: str
    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: list[tuple[Any, ...]]


async def read(connection: Connection, table: str, executions: Sequence[UUID]) -> Page:
    """Every column of what belongs to these executions; JSON as its text."""
    async with connection.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(query("retention", table), {"executions": list(executions)})
        assert cursor.description is not None
        types = [connection.adapters.types.get(column.type_code) for column in cursor.description]
        return Page(
            table,
            tuple(column.name for column in cursor.description),
            tuple(known.name if known else "text" for known in types),
            await cursor.fetchall(),
        )


async def open_prune(connection: Connection, which: Which, archive: dict[str, Any] | None) -> int:
    """Notes who deletes what and where it is archived. `prune` needs the number that it answers with."""
    row = await (
        await connection.execute(
            query("retention", "open"), {**which.as_values(), "archive": None if archive is None else Jsonb(archive)}
        )
    ).fetchone()
    assert row is not None
    return int(row["opened"])


async def prune(connection: Connection, opened: int, executions: Sequence[UUID]) -> int:
    """Deletes those of the executions that the note is about, with all that belongs to them. Answers how many went."""
    values = {"opened": opened, "executions": list(executions)}
    row = await (await connection.execute(query("retention", "prune"), values)).fetchone()
    assert row is not None
    return int(row["gone"])
