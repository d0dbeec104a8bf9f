"""The flows that the ledger knows: what workers discovered in their projects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from flowledger.database.session import Connection
from flowledger.domain.flow import Flow
from flowledger.sql import query


@dataclass(frozen=True)
class KnownFlow:
    """A flow's row. `version` counts from 1; `definition` holds entry point, input schema and graph."""

    id: UUID
    flow_key: str
    flow_name: str
    description: str | None
    definition: dict[str, Any]
    version: int
    execution_count: int
    last_executed_at: datetime | None

    @property
    def input_schema(self) -> dict[str, Any] | None:
        return self.definition.get("input_schema")


@dataclass(frozen=True)
class Remembered:
    """A discovered flow and the row it has in the ledger."""

    flow: Flow
    id: UUID
    version: int


async def remember(connection: Connection, flows: Iterable[Flow]) -> list[Remembered]:
    """Stores discovered flows; one whose fingerprint changed gets a new version."""
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
        remembered.append(Remembered(flow, row["id"], row["version"]))
    return remembered


async def list_(connection: Connection) -> list[KnownFlow]:
    """The active flows, by key."""
    rows = await (await connection.execute(query("flows", "list"))).fetchall()
    return [KnownFlow(definition=row.pop("flow_definition"), **row) for row in rows]


async def fold_counts(connection: Connection) -> None:
    """Adds the latest births to `execution_count`."""
    await connection.execute(query("flows", "fold_counts"))
