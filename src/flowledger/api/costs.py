"""`/costs`: what was spent, in sums, and whether a sum is a lower bound."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Self
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import Field

from flowledger.api.answers import answered
from flowledger.api.asking import Asked
from flowledger.api.parameters import Moment, moment
from flowledger.api.shapes import Money, Shape, Text, TokensShape, money, refusals
from flowledger.domain.dimension import Dimension
from flowledger.ledger import flows, spending
from flowledger.ledger.spending import Days, Of, Spent

router = APIRouter(prefix="/costs", tags=["costs"])


class SpentShape(TokensShape):
    """Sums over ended executions and their calls. `executions` and `failed` are null along models: an execution is of
    no single one. `is_lower_bound`: nobody reported tokens of `unknown_calls`, or knows a price of `unpriced_calls`,
    and the costs lack them.
    """

    executions: int | None
    failed: int | None
    calls: int
    failed_calls: int
    unknown_calls: int
    unpriced_calls: int
    cost_usd: Annotated[Money, Field(description="At the prices of then.")]
    repriced_usd: Annotated[Money, Field(description="At later prices, where there are any.")]
    is_lower_bound: bool

    @classmethod
    def of(cls, spent: Spent, **more: Any) -> Self:
        facts = {name: value for name, value in vars(spent).items() if name not in ("day", "key", "usage")}
        amounts = {name: money(facts[name]) for name in ("cost_usd", "repriced_usd")}
        return cls(**{**facts, **vars(spent.usage), **amounts, "is_lower_bound": spent.is_lower_bound, **more})


class CostRowShape(SpentShape):
    key: Annotated[
        str | None,
        Field(description="A flow's key, a model, a mode, a day, or the id of a user or meeting; null: of none."),
    ]


class CostsShape(Shape):
    """The dearest first; days in their order. `first_day` and `last_day` are whole days, UTC; null: no bound."""

    by: Dimension
    flow: str | None
    meeting: UUID | None
    first_day: date | None
    last_day: date | None
    rows: list[CostRowShape]
    total: SpentShape


class CostParameters(Shape):
    """Along what, of when, and of which executions."""

    by: Dimension = Dimension.FLOW
    since: Annotated[
        Moment,
        Field(description="From that day on: ISO 8601, or how long ago. Whole days, UTC.", examples=["30d"]),
    ] = "30d"
    until: Annotated[Moment | None, Field(description="Before that moment; whole days, UTC.")] = None
    flow: Annotated[Text, Field(max_length=100, description="The flow's key.")] | None = None
    meeting: Annotated[UUID | None, Field(description="Of one board meeting only.")] = None


@router.get("", response_model=CostsShape, responses=refusals(404))
async def show(asked: Asked, given: Annotated[CostParameters, Query()]) -> Response:
    """What was spent: users see what they spent, operators what everybody did."""
    days = Days.between(moment(given.since, "since"), moment(given.until, "until"))
    async with asked.session() as session:
        flow = None if given.flow is None else await flows.find(session, given.flow)
        found = await spending.by(session, asked.claims, given.by, days, of=Of(flow, given.meeting))
    rows = [CostRowShape.of(spent, key=_key(spent, given.by)) for spent in found]
    return answered(
        CostsShape(
            by=given.by,
            flow=given.flow,
            meeting=given.meeting,
            first_day=days.first,
            last_day=days.last,
            rows=rows,
            total=SpentShape.of(spending.total(found)),
        )
    )


def _key(spent: Spent, by: Dimension) -> str | None:
    return (str(spent.day) if by is Dimension.DAY else spent.key) or None
