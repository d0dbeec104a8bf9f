"""The windows that limit spending, as operators set, see and remove them. What they do stands in the database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from flowledger.database.session import Connection
from flowledger.domain.budget import Budget, OnReach
from flowledger.domain.window import Period, Scope
from flowledger.errors import InvalidInput
from flowledger.sql import query


@dataclass(frozen=True)
class Whose:
    """Whose spending is limited: everybody's, a flow's, or a user's. With Scope.USER, `user` None is each user."""

    scope: Scope
    flow: UUID | None = None
    user: UUID | None = None


@dataclass(frozen=True)
class Window:
    """What may be spent in the day or month that is now, and what was. `usd` or `tokens` None: not limited.

    `told_of` is the user whose spending is told; of a window of each user, who has spent the most; None: of nobody in
    particular. What is spent holds estimates of calls that nobody knows the cost of.
    """

    id: int
    scope: Scope
    flow_key: str | None
    user_id: UUID | None
    period: Period
    usd: Decimal | None
    tokens: int | None
    on_reach: OnReach
    set_by: str
    set_at: datetime
    told_of: UUID | None
    spent_usd: Decimal
    spent_tokens: int
    reserved_usd: Decimal
    reserved_tokens: int

    @property
    def left_usd(self) -> Decimal | None:
        """Not below zero. None: not limited."""
        return None if self.usd is None else max(self.usd - self.spent_usd - self.reserved_usd, Decimal(0))

    @property
    def left_tokens(self) -> int | None:
        """Not below zero. None: not limited."""
        return None if self.tokens is None else max(self.tokens - self.spent_tokens - self.reserved_tokens, 0)


async def list_(connection: Connection) -> list[Window]:
    """Every window as it is now."""
    rows = await (await connection.execute(query("budgets", "list"))).fetchall()
    return [
        Window(
            **{
                **row,
                "scope": Scope(row["scope"]),
                "period": Period(row["period"]),
                "on_reach": OnReach(row["on_reach"]),
            }
        )
        for row in rows
    ]


async def set_(connection: Connection, whose: Whose, period: Period, budget: Budget) -> int:
    """Sets what may be spent in a window, or changes it. Answers its id. Raises InvalidInput, PermissionRefused."""
    if budget.usd is None and budget.tokens is None:
        raise InvalidInput("budget", "limits nothing", "Give an amount of USD, of tokens, or both.")
    values = {
        "scope": str(whose.scope),
        "flow": whose.flow,
        "user": whose.user,
        "period": str(period),
        "usd": budget.usd,
        "tokens": budget.tokens,
        "on_reach": str(budget.on_reach),
    }
    row = await (await connection.execute(query("budgets", "set"), values)).fetchone()
    assert row is not None
    return int(row["id"])


async def remove(connection: Connection, window: int) -> bool:
    """Takes a window away. False: there was none. Raises PermissionRefused."""
    row = await (await connection.execute(query("budgets", "remove"), {"id": window})).fetchone()
    assert row is not None
    return bool(row["removed"])
