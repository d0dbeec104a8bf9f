"""What executions that have ended cost at prices that came later: read in pages, noted beside the frozen rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from flowledger.database.session import Connection
from flowledger.domain.status import Status
from flowledger.domain.usage import Price, Usage, exact_text
from flowledger.sql import query


@dataclass(frozen=True)
class Which:
    """Executions that started since then and have ended; None: of any flow, with calls of any model."""

    since: datetime
    flow: UUID | None = None
    model: str | None = None


@dataclass(frozen=True)
class PastCall:
    """A call of an execution that ended, as it counts now: `cost_usd` is that of the last repricing, None: unknown."""

    execution: UUID
    number: int
    model: str
    provider: str
    started_at: datetime
    usage: Usage
    cost_usd: Decimal | None


@dataclass(frozen=True)
class RepricedCall:
    """A call, and what it costs at another price."""

    call: PastCall
    price: Price
    cost_usd: Decimal


@dataclass(frozen=True)
class Place:
    """An execution; the next page begins after it."""

    started_at: datetime
    id: UUID


async def page(
    connection: Connection, which: Which, *, limit: int, after: Place | None = None
) -> tuple[list[PastCall], Place | None]:
    """The calls with known tokens of the next `limit` executions, and the place after them. None: that was all."""
    values = {
        "ended": [str(status) for status in Status if status.is_terminal],
        **vars(which),
        "after_started_at": after and after.started_at,
        "after_id": after and after.id,
        "limit": limit,
    }
    rows = await (await connection.execute(query("repricings", "page"), values)).fetchall()
    if not rows:
        return [], None
    place = Place(rows[-1]["execution_started_at"], rows[-1]["execution_id"])
    return [_call(row) for row in rows if row["number"] is not None], place


async def record(connection: Connection, calls: Sequence[RepricedCall]) -> int:
    """Notes what calls cost at other prices and adds the difference to what was spent.

    Whatever counts with that cost already is left alone, so it is safe to repeat. Answers how many executions changed.
    """
    row = await (
        await connection.execute(
            query("repricings", "record"),
            {
                "executions": [repriced.call.execution for repriced in calls],
                "numbers": [repriced.call.number for repriced in calls],
                "prices": [json.dumps(repriced.price.as_json()) for repriced in calls],
                "costs": [exact_text(repriced.cost_usd) for repriced in calls],
            },
        )
    ).fetchone()
    assert row is not None
    return int(row["repriced"])


def _call(row: Mapping[str, Any]) -> PastCall:
    usage = Usage(**{name: row[name] for name in vars(Usage())})
    return PastCall(
        row["execution_id"],
        row["number"],
        row["model"],
        row["provider"],
        row["started_at"],
        usage,
        row["cost_usd"],
    )
