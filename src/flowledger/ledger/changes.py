"""What has changed, for those who watch: ids and kinds only, of what the session may see."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, LiteralString
from uuid import UUID

from flowledger.database.session import Connection
from flowledger.domain.change import Change, ChangeKind, Position, Snapshot
from flowledger.sql import query


async def now(connection: Connection) -> Snapshot:
    """How far everything has come: what is committed after this, it does not show."""
    row = await _one(connection, query("changes", "now"))
    return Snapshot.parse(row["snapshot"])


async def since(
    connection: Connection, position: Position, among: Collection[UUID] | None, most: int
) -> tuple[Position, list[Change]]:
    """The first `most` changes of status after the position, with the position behind them; `among`, unless None,
    narrows them to some executions.

    Fewer than `most`: there are no more, as of the position that is answered.
    """
    transaction, number = position.within or (None, 0)
    values: dict[str, Any] = {
        "snapshot": str(position.snapshot),
        "within": None if transaction is None else str(transaction),
        "after": number,
        "most": most,
    }
    if among is None:
        rows = await _all(connection, query("changes", "since"), **values)
    else:
        rows = await _all(connection, query("changes", "since_of"), **values, among=list(among))
    told = [row for row in rows if row["execution_id"] is not None]
    changes = [Change(ChangeKind(row["kind"]), row["execution_id"]) for row in told]
    snapshot = Snapshot.parse(rows[0]["snapshot"])
    if len(told) < most:
        return replace(position, snapshot=snapshot, within=None), changes
    last = (told[-1]["xid"], told[-1]["seq"])
    return replace(position, snapshot=snapshot.up_to(last[0]), within=last), changes


@dataclass(frozen=True)
class Stir:
    """That something changed up to `snapshot`. `users` are those whose executions did; None: too many to tell."""

    snapshot: Snapshot
    users: frozenset[UUID] | None
    has_changes: bool


async def stir(connection: Connection, snapshot: Snapshot, most: int) -> Stir:
    """Whose executions changed since the snapshot. For operators."""
    row = await _one(connection, query("changes", "whose"), snapshot=str(snapshot), most=most)
    users = frozenset(row["users"]) if row["looked_at"] < most else None
    return Stir(Snapshot.parse(row["snapshot"]), users, row["looked_at"] > 0)


@dataclass(frozen=True)
class Heads:
    """The last numbers in an execution's timeline and logs; 0: nothing yet."""

    timeline: int = 0
    logs: int = 0


async def heads(connection: Connection, among: Collection[UUID]) -> dict[UUID, Heads]:
    """How far the timelines and logs of these executions have come, as far as the session may see them."""
    rows = await _all(connection, query("changes", "heads"), among=list(among))
    return {row["execution_id"]: Heads(row["timeline"], row["logs"]) for row in rows}


async def flows(connection: Connection) -> str:
    """A short text that differs when the flows that the session may see do."""
    return str((await _one(connection, query("changes", "flows")))["digest"])


async def watch(connection: Connection, watcher: UUID, patience: timedelta) -> None:
    """Asks for a notification of the next change, within `patience`. Look once more before waiting for it."""
    await connection.execute(query("changes", "watch"), {"watcher": watcher, "patience": patience})


async def stop_watching(connection: Connection, watcher: UUID) -> None:
    """Asks for no more notifications."""
    await connection.execute(query("changes", "stop_watching"), {"watcher": watcher})


async def _all(connection: Connection, text: LiteralString, **values: Any) -> list[dict[str, Any]]:
    return await (await connection.execute(text, values)).fetchall()


async def _one(connection: Connection, text: LiteralString, **values: Any) -> dict[str, Any]:
    row = await (await connection.execute(text, values)).fetchone()
    assert row is not None
    return row
