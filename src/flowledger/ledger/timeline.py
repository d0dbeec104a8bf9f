"""Appends and reads what happened inside executions and what they printed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, LiteralString
from uuid import UUID

import psycopg

from flowledger.database.session import Connection
from flowledger.domain.timeline import Event, EventKind, LogLine
from flowledger.errors import InvalidInput
from flowledger.sql import query

Held = tuple[UUID, int]
"""An execution and the fence under which it is held."""


async def append(connection: Connection, events: Sequence[tuple[Held, Event]]) -> None:
    """Adds events; those of executions that are held no more under that fence are left out. Safe to repeat.

    Raises InvalidInput if one of them cannot be stored; then none is.
    """
    await store(
        connection,
        query("timeline", "append"),
        {
            "executions": [execution for (execution, _), _ in events],
            "fences": [fence for (_, fence), _ in events],
            "sequences": [event.sequence for _, event in events],
            "parents": [event.parent for _, event in events],
            "begans": [event.began for _, event in events],
            "ats": [event.at for _, event in events],
            "kinds": [str(event.kind) for _, event in events],
            "names": [event.name for _, event in events],
            "fields": [json.dumps(event.fields) for _, event in events],
        },
    )


async def append_logs(connection: Connection, lines: Sequence[tuple[Held, LogLine]]) -> None:
    """Adds log text, under the same rules as `append`."""
    await store(
        connection,
        query("timeline", "append_logs"),
        {
            "executions": [execution for (execution, _), _ in lines],
            "fences": [fence for (_, fence), _ in lines],
            "sequences": [line.sequence for _, line in lines],
            "ats": [line.at for _, line in lines],
            "streams": [line.stream for _, line in lines],
            "texts": [line.text for _, line in lines],
        },
    )


async def store(connection: Connection, text: LiteralString, columns: dict[str, list[Any]]) -> None:
    """Adds what a run reported, which may be anything. Raises InvalidInput if a part of it cannot be stored."""
    try:
        await connection.execute(text, columns)
    except (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded, ValueError) as unfit:
        raise InvalidInput("timeline", f"cannot be stored: {unfit}") from unfit


async def read(
    connection: Connection,
    execution: UUID,
    *,
    after: int = 0,
    most: int | None = None,
    kinds: Collection[EventKind] | None = None,
) -> list[Event]:
    """Events of the execution with a sequence number above `after`, as far as the session may see them: the first
    `most` of them, or all. `kinds` None takes every kind.
    """
    values = {
        "execution": execution,
        "after": after,
        "most": most,
        "kinds": None if kinds is None else [str(kind) for kind in kinds],
    }
    rows = await (await connection.execute(query("timeline", "read"), values)).fetchall()
    return [_event(row) for row in rows]


def _event(row: Mapping[str, Any]) -> Event:
    """A worker of a later version may tell of kinds that are not known here."""
    fields = row["fields"] if isinstance(row["fields"], dict) else {"value": row["fields"]}
    if row["kind"] not in _KINDS:
        return Event(**{**row, "kind": EventKind.LOG, "fields": {**fields, "unknown_kind": row["kind"]}})
    return Event(**{**row, "kind": EventKind(row["kind"]), "fields": fields})


_KINDS = frozenset(EventKind)


async def read_logs(
    connection: Connection, execution: UUID, *, after: int = 0, most: int | None = None
) -> list[LogLine]:
    """Log text of the execution with a sequence number above `after`: the first `most` pieces of it, or all."""
    values = {"execution": execution, "after": after, "most": most}
    rows = await (await connection.execute(query("timeline", "read_logs"), values)).fetchall()
    return [LogLine(**row) for row in rows]
