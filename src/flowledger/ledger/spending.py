"""What was spent, in sums: by flow, model, user, day, mode or meeting; and what a flow is likely to cost.

Operators read the rollup that the database keeps by day, so that a month of a million executions is read at once, and
in which what was pruned still counts. Users get the same figures from their own rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import reduce
from typing import Any
from uuid import UUID

from psycopg import sql

from flowledger.database.session import Claims, Connection
from flowledger.domain.dimension import Dimension
from flowledger.domain.usage import Usage, add_usd
from flowledger.errors import InvalidInput
from flowledger.sql import query

_LATEST_RUNS = 20


@dataclass(frozen=True)
class Days:
    """UTC days, both ends included; None: no bound. A call is of the day on which it began, an end of its own."""

    first: date | None = None
    last: date | None = None

    @classmethod
    def between(cls, since: datetime | None, until: datetime | None) -> Days:
        """Every day that has a moment from `since` on and before `until`.

        Raises InvalidInput if there is none.
        """
        if since is not None and until is not None and until <= since:
            raise InvalidInput("until", f"{until} is not after {since}", "Give a later date, or a shorter span.")
        return cls(since and _day(since, timedelta(0)), until and _day(until, timedelta(microseconds=1)))


def _day(at: datetime, earlier: timedelta) -> date:
    """The UTC day so much earlier."""
    try:
        return (at - earlier).astimezone(UTC).date()
    except OverflowError:
        # The calendar's first and last hours have no other name in UTC.
        return date.min if at.year == 1 else date.max


@dataclass(frozen=True)
class Spent:
    """Sums over ended executions and their calls.

    `day` and `key` are what they are the sums of, None where they are over all of them. `key` is a flow's key, a model,
    a mode, or the id of a user or meeting; empty: none. `executions` and `failed` are None along models: an execution
    is of no single one. `cost_usd` is exact and of the calls whose cost is known, `repriced_usd` the same at later
    prices. With `unknown_calls` (nobody reported tokens) or `unpriced_calls` (no price, not even later) both are lower
    bounds.
    """

    day: date | None
    key: str | None
    executions: int | None
    failed: int | None
    calls: int
    failed_calls: int
    unknown_calls: int
    unpriced_calls: int
    usage: Usage
    cost_usd: Decimal
    repriced_usd: Decimal

    @property
    def is_lower_bound(self) -> bool:
        return self.unknown_calls + self.unpriced_calls > 0


@dataclass(frozen=True)
class Of:
    """Whose spending: one flow's, one meeting's, or both. None: any."""

    flow: UUID | None = None
    meeting: UUID | None = None

    @property
    def dimension(self) -> Dimension | None:
        """Along which it is one key. None: it takes two, or none."""
        if self.meeting is None:
            return None if self.flow is None else Dimension.FLOW
        return Dimension.MEETING if self.flow is None else None


async def by(
    connection: Connection, claims: Claims, dimension: Dimension, days: Days = Days(), *, of: Of = Of()
) -> list[Spent]:
    """Sums along a dimension, the dearest first; days in their order."""
    if dimension is Dimension.DAY:
        # Any dimension holds the whole; the modes have the fewest rows.
        return await _sums(connection, claims, of.dimension or Dimension.MODE, days, of, by_day=True, by_key=False)
    sums = await _sums(connection, claims, dimension, days, of, by_day=False, by_key=True)
    return sorted(sums, key=lambda spent: (-spent.cost_usd, spent.key))


async def by_day_and_flow(connection: Connection, claims: Claims, days: Days = Days()) -> list[Spent]:
    """Sums of each flow on each day, in the order of days."""
    return await _sums(connection, claims, Dimension.FLOW, days, Of(), by_day=True, by_key=True)


def total(sums: Sequence[Spent]) -> Spent:
    """Over all of them."""

    def whole(name: str) -> int | None:
        given = [getattr(spent, name) for spent in sums]
        return None if None in given else sum(given)

    return Spent(
        day=None,
        key=None,
        executions=whole("executions"),
        failed=whole("failed"),
        calls=sum(spent.calls for spent in sums),
        failed_calls=sum(spent.failed_calls for spent in sums),
        unknown_calls=sum(spent.unknown_calls for spent in sums),
        unpriced_calls=sum(spent.unpriced_calls for spent in sums),
        usage=sum((spent.usage for spent in sums), Usage()),
        cost_usd=reduce(add_usd, (spent.cost_usd for spent in sums), Decimal(0)),
        repriced_usd=reduce(add_usd, (spent.repriced_usd for spent in sums), Decimal(0)),
    )


async def _sums(
    connection: Connection,
    claims: Claims,
    dimension: Dimension,
    days: Days,
    of: Of,
    *,
    by_day: bool,
    by_key: bool,
) -> list[Spent]:
    # The rollup knows one dimension at a time.
    is_rolled_up = claims.is_operator and (of == Of() or dimension is of.dimension)
    text = sql.SQL(query("spending", "of_all")) if is_rolled_up else _over_rows("of_rows", claims)
    values = {
        "dimension": str(dimension),
        "by_day": by_day,
        "by_key": by_key,
        "first": days.first,
        "last": days.last,
        "flow": of.flow,
        "meeting": of.meeting,
        "user": None if claims.is_operator else claims.user,
    }
    rows = await (await connection.execute(text, values)).fetchall()
    sums = [_spent(row, of_models=by_key and dimension is Dimension.MODEL) for row in rows]
    return sorted((spent for spent in sums if spent is not None), key=lambda spent: (spent.day or date.min, spent.key))


def _over_rows(name: str, claims: Claims) -> sql.Composed:
    """A query over the executions that the claims may see; operators see them through a view."""
    place = ("flowledger", "every_execution") if claims.is_operator else ("public", "crewai_flow_executions")
    return sql.SQL(query("spending", name)).format(executions=sql.Identifier(*place))


def _spent(row: Mapping[str, Any], *, of_models: bool) -> Spent | None:
    """None for what stands beside the models: the ends of executions, which are of no single one."""
    facts = dict(row)
    usage = Usage(**{name: facts.pop(name) for name in vars(Usage())})
    if not of_models:
        return Spent(usage=usage, **facts)
    if facts["calls"] == 0:
        return None
    return Spent(usage=usage, **{**facts, "executions": None, "failed": None})


@dataclass(frozen=True)
class Estimate:
    """What a run of a flow is likely to take: medians over its latest completed `runs`.

    Of each only the runs count of which it is known; None: it is known of none. `cost_usd` is exact.
    """

    runs: int
    cost_usd: Decimal | None
    tokens: int | None
    duration_ms: int | None


async def estimate(connection: Connection, claims: Claims, flow_id: UUID) -> Estimate:
    """From the user's own runs, for an operator from everybody's."""
    values = {
        "flow": flow_id,
        "user": None if claims.is_operator else claims.user,
        "most": _LATEST_RUNS,
    }
    row = await (await connection.execute(_over_rows("estimate", claims), values)).fetchone()
    assert row is not None
    return Estimate(**row)
