"""The flows that the ledger knows: what workers discovered in their projects."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from flowledger.database.session import Connection
from flowledger.domain.controls import FlowControls
from flowledger.domain.flow import Flow
from flowledger.errors import FlowNotFound
from flowledger.sql import query


@dataclass(frozen=True)
class KnownFlow:
    """A flow's row. `version` counts from 1; `definition` holds entry point, input schema and graph, and is anybody's
    JSON where the row was written by hand.
    """

    id: UUID
    flow_key: str
    flow_name: str
    description: str | None
    definition: Any
    version: int
    execution_count: int
    last_executed_at: datetime | None

    @property
    def input_schema(self) -> dict[str, Any] | None:
        schema = self.definition.get("input_schema") if isinstance(self.definition, dict) else None
        return schema if isinstance(schema, dict) else None


@dataclass(frozen=True)
class ListedFlow:
    """A flow's row as a list tells it. None where a table that was here before flowledger holds nothing."""

    id: UUID
    flow_key: str
    flow_name: str
    description: str | None
    status: str | None
    version: int | None
    tags: list[str] | None
    created_by: UUID | None
    created_at: datetime | None
    updated_at: datetime | None
    published_at: datetime | None
    execution_count: int | None
    last_executed_at: datetime | None


@dataclass(frozen=True)
class WholeFlow(ListedFlow):
    """The whole row. `definition` is anybody's JSON where the row was written by hand."""

    parent_flow_id: UUID | None
    metadata: Any
    definition: Any
    python_code: str | None


@dataclass(frozen=True)
class Remembered:
    """A discovered flow, the row it has in the ledger, and what its project says about it."""

    flow: Flow
    id: UUID
    version: int
    controls: FlowControls = field(default_factory=FlowControls)


async def remember(
    connection: Connection, flows: Iterable[Flow], controls: Mapping[str, FlowControls] | None = None
) -> list[Remembered]:
    """Stores discovered flows with their controls (flow key -> controls); one whose fingerprint changed gets a new
    version.
    """
    remembered = []
    for flow in flows:
        row = await (
            await connection.execute(
                query("flows", "remember"),
                {
                    "key": flow.key,
                    "name": flow.name[:200],
                    "description": flow.description,
                    "definition": Jsonb(
                        {
                            "entry_point": flow.entry_point,
                            "fingerprint": flow.fingerprint,
                            "input_schema": flow.input_schema,
                            **flow.graph,
                        }
                    ),
                    "source": flow.source,
                },
            )
        ).fetchone()
        assert row is not None
        of_flow = (controls or {}).get(flow.key, FlowControls())
        await connection.execute(
            query("flows", "set_controls"), {"flow": row["id"], "controls": Jsonb(of_flow.for_database())}
        )
        remembered.append(Remembered(flow, row["id"], row["version"], of_flow))
    return remembered


@dataclass(frozen=True)
class FlowStatus:
    """What a flow does now. `waiting` and `running` count executions; `paused_by` a crash loop is `flowledger`."""

    id: UUID
    flow_key: str
    version: int
    waiting: int
    running: int
    concurrency: int | None
    concurrency_per_user: int | None
    retries: int
    paused_at: datetime | None
    paused_by: str | None
    paused_reason: str | None


async def statuses(connection: Connection) -> list[FlowStatus]:
    """What each active flow does now, by key. For operators."""
    return [FlowStatus(**row) for row in await (await connection.execute(query("flows", "statuses"))).fetchall()]


async def status(connection: Connection, flow_key: str) -> FlowStatus:
    """What one active flow does now. For operators. Raises FlowNotFound."""
    for one in await statuses(connection):
        if one.flow_key == flow_key:
            return one
    raise FlowNotFound(flow_key)


@dataclass(frozen=True)
class Backlog:
    """What waits and runs of a flow. `oldest_seconds`: how long the first that may start has waited; 0: none does."""

    flow_key: str
    waiting: int
    running: int
    oldest_seconds: float


async def backlog(connection: Connection) -> list[Backlog]:
    """Of each active flow, by key. For operators."""
    return [Backlog(**row) for row in await (await connection.execute(query("flows", "backlog"))).fetchall()]


async def pause(connection: Connection, flow_key: str, reason: str | None) -> bool:
    """Lets nothing of the flow start until it is resumed. True if that changed anything. Raises FlowNotFound."""
    return await _changed(connection, "pause", flow_key, {"reason": reason})


async def resume(connection: Connection, flow_key: str) -> bool:
    """Lets a paused flow start again. True if that changed anything. Raises FlowNotFound."""
    return await _changed(connection, "resume", flow_key, {})


async def _changed(connection: Connection, how: str, flow_key: str, values: dict[str, Any]) -> bool:
    row = await (await connection.execute(query("flows", how), {"key": flow_key, **values})).fetchone()
    if row is None:
        raise FlowNotFound(flow_key)
    return bool(row["changed"])


async def page(
    connection: Connection,
    *,
    statuses: Sequence[str] | None,
    search: str | None,
    limit: int,
    after: str | None = None,
) -> list[ListedFlow]:
    """Flows by key, those after the key `after`, as far as the session may see them. `search`: words of their names and
    descriptions, or a part of their keys. None takes all.
    """
    values = {
        "statuses": None if statuses is None else list(statuses),
        "search": search,
        "limit": limit,
        "after": after,
    }
    return [ListedFlow(**row) for row in await (await connection.execute(query("flows", "page"), values)).fetchall()]


async def show(connection: Connection, flow_key: str) -> WholeFlow:
    """The flow with this key, active or not. Raises FlowNotFound, with the nearest keys."""
    row = await (await connection.execute(query("flows", "show"), {"key": flow_key})).fetchone()
    if row is None:
        raise await _not_found(connection, flow_key)
    return WholeFlow(**row)


async def find(connection: Connection, flow_key: str) -> UUID:
    """The id of the flow with this key, active or not, if the session may see it. Raises FlowNotFound."""
    row = await (await connection.execute(query("flows", "find"), {"key": flow_key})).fetchone()
    if row is None:
        raise FlowNotFound(flow_key)
    return UUID(str(row["id"]))


async def list_(connection: Connection) -> list[KnownFlow]:
    """The active flows, by key."""
    rows = await (await connection.execute(query("flows", "list"))).fetchall()
    return [KnownFlow(definition=row.pop("flow_definition"), **row) for row in rows]


async def find_active(connection: Connection, flow_key: str) -> KnownFlow:
    """The active flow with this key. Raises FlowNotFound, with the nearest keys."""
    row = await (await connection.execute(query("flows", "find_active"), {"key": flow_key})).fetchone()
    if row is None:
        raise await _not_found(connection, flow_key)
    return KnownFlow(definition=row.pop("flow_definition"), **row)


async def _not_found(connection: Connection, flow_key: str) -> FlowNotFound:
    keys = [known.flow_key for known in await list_(connection)]
    return FlowNotFound(flow_key, tuple(difflib.get_close_matches(flow_key, keys, n=3)))


async def fold_counts(connection: Connection) -> None:
    """Adds the latest births to `execution_count`."""
    await connection.execute(query("flows", "fold_counts"))
