"""`/budgets`: windows that limit what is spent in a day or a month. For operators: they tell what everybody spends."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Self
from uuid import UUID

from fastapi import APIRouter, Path
from fastapi.responses import Response
from pydantic import ConfigDict, Field, Strict, StringConstraints

from flowledger.api.answers import NoParameters, answered
from flowledger.api.asking import Asked
from flowledger.api.shapes import Money, Shape, Text, Utc, money, refusals
from flowledger.database.session import Connection
from flowledger.domain.budget import Budget
from flowledger.domain.reach import OnReach
from flowledger.domain.window import Period, Scope
from flowledger.errors import BudgetNotFound, InvalidInput
from flowledger.ledger import budgets, flows
from flowledger.ledger.budgets import Whose, Window

router = APIRouter(prefix="/budgets", tags=["budgets"])

MOST_TOKENS = 10**15

BudgetId = Annotated[int, Path(ge=1, le=2**63 - 1, description="As the list tells it.")]


class WindowShape(Shape):
    """What may be spent in the day or month that is now, UTC, and what was. `usd` or `tokens` null: not limited.

    `told_of` is whose spending is told; of a window of each user, who has spent the most.
    """

    id: int
    scope: Scope
    flow_key: str | None
    user_id: Annotated[UUID | None, Field(description="null in a window of users: each of them.")]
    period: Period
    usd: Money | None
    tokens: int | None
    on_reach: OnReach
    set_by: str
    set_at: Utc
    told_of: UUID | None
    spent_usd: Annotated[Money, Field(description="With what was set aside for calls that nobody knows the cost of.")]
    spent_tokens: int
    reserved_usd: Annotated[Money, Field(description="Set aside for calls that are being made.")]
    reserved_tokens: int
    left_usd: Money | None
    left_tokens: int | None

    @classmethod
    def of(cls, window: Window) -> Self:
        facts = {**vars(window), "left_usd": window.left_usd, "left_tokens": window.left_tokens}
        amounts = {name: money(amount) for name, amount in facts.items() if isinstance(amount, Decimal)}
        return cls(**{**facts, **amounts})


class BudgetsShape(Shape):
    budgets: list[WindowShape]


class NewBudgetShape(Shape):
    """What to limit: `usd`, `tokens`, or both. A window of users without a `user` is one of each of them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"scope": "flow", "flow": "board_brief", "period": "day", "usd": "25"},
                {"scope": "everything", "period": "month", "usd": "1000", "on_reach": "warn"},
            ]
        }
    )

    scope: Scope
    flow: Annotated[Text, Field(min_length=1, max_length=100, description="With scope `flow`: its key.")] | None = None
    user: Annotated[UUID | None, Field(description="With scope `user`.")] = None
    period: Period
    usd: Annotated[
        Annotated[str, StringConstraints(pattern=r"^[0-9]{1,12}(\.[0-9]{1,12})?$")] | None,
        Field(description="The most that may be spent, in USD.", examples=["25"]),
    ] = None
    tokens: Annotated[int, Strict(), Field(ge=0, le=MOST_TOKENS)] | None = None
    on_reach: OnReach = OnReach.STOP


class RemovedShape(Shape):
    id: int
    removed: bool


@router.get("", response_model=BudgetsShape, responses=refusals())
async def list_(asked: Asked, _: NoParameters) -> Response:
    """Every window, with what is spent, set aside and left in it now."""
    async with asked.session() as session:
        found = await budgets.list_(session)
    return answered(BudgetsShape(budgets=[WindowShape.of(window) for window in found]))


@router.put("", response_model=WindowShape, responses=refusals(400, 404))
async def set_(asked: Asked, new: NewBudgetShape, _: NoParameters) -> Response:
    """Sets what may be spent in a window, or changes it: there is one for each scope, whom it is of, and period."""
    limit = Budget(None if new.usd is None else Decimal(new.usd), new.tokens, new.on_reach)
    async with asked.session() as session:
        id_ = await budgets.set_(session, await _whose(session, new), new.period, limit)
        window = next(window for window in await budgets.list_(session) if window.id == id_)
    return answered(WindowShape.of(window))


async def _whose(session: Connection, new: NewBudgetShape) -> Whose:
    for field, scope in (("flow", Scope.FLOW), ("user", Scope.USER)):
        if getattr(new, field) is not None and new.scope is not scope:
            raise InvalidInput(field, f"is given with scope {new.scope}", f"Leave it out, or say scope {scope}.")
    if new.scope is Scope.FLOW:
        if new.flow is None:
            raise InvalidInput("flow", "is missing", "Give the flow's key, or another scope.")
        return Whose(Scope.FLOW, flow=await flows.find(session, new.flow))
    return Whose(new.scope, user=new.user)


@router.delete("/{id}", response_model=RemovedShape, responses=refusals(404))
async def remove(asked: Asked, id: BudgetId, _: NoParameters) -> Response:  # noqa: A002 - its name in the path
    """Takes a window away."""
    async with asked.session() as session:
        if not await budgets.remove(session, id):
            raise BudgetNotFound(id)
    return answered(RemovedShape(id=id, removed=True))
