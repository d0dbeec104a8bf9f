"""What failed, in groups: the same error in the same place is one, however often and in however many executions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from flowledger.database.session import Claims, Connection
from flowledger.sql import query


@dataclass(frozen=True)
class Failures:
    """Executions that failed, or ran out of time, with one fingerprint.

    `flows` holds flow key -> versions, none where they are not known. `error_type`, `place` (file:function of the
    project's innermost frame; None: not known) and `message` are those of `example`, the latest. At least `tokens` and
    `cost_usd` were wasted; None: nothing is known. `unpriced` counts the executions that `cost_usd` lacks.
    """

    fingerprint: str
    first_seen: datetime
    last_seen: datetime
    count: int
    flows: dict[str, list[int]]
    error_type: str | None
    place: str | None
    message: str | None
    tokens: int | None
    cost_usd: Decimal | None
    unpriced: int
    example: UUID


async def groups(
    connection: Connection,
    claims: Claims,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    flow: UUID | None = None,
    limit: int = 100,
) -> list[Failures]:
    """The groups of the user's own failures, for an operator of everybody's, the latest seen first. `since` is
    inclusive, `until` exclusive; `first_seen` may lie before `since`.
    """
    values = {"since": since, "until": until, "flow": flow, "limit": limit, "user": claims.user}
    text = query("failures", "groups_of_all" if claims.is_operator else "groups_of_user")
    rows = await (await connection.execute(text, values)).fetchall()
    return [Failures(**row) for row in rows]
