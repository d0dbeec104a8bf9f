"""`/prices`: what models cost, and the team's own prices, which operators set and take away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Self

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import Field, StringConstraints

from flowledger.api.answers import NoParameters, answered
from flowledger.api.asking import Asked
from flowledger.api.parameters import Moment, moment
from flowledger.api.shapes import Shape, Text, Utc, refusals
from flowledger.domain import price
from flowledger.domain.price import SeenModel, TeamPrice
from flowledger.errors import PriceNotFound
from flowledger.ledger import prices
from flowledger.prices import Listed, Prices, catalogue_file, listed_prices

router = APIRouter(prefix="/prices", tags=["prices"])

Name = Annotated[Text, Field(min_length=1, max_length=200)]
Usd = Annotated[str, StringConstraints(pattern=r"^([0-9]{1,6}(\.[0-9]{1,12})?|1000000)$")]
Since = Annotated[
    Text,
    Field(
        min_length=1,
        max_length=64,
        json_schema_extra={"anyOf": [{"format": "date-time"}, {"format": "date"}]},
    ),
]
Amount = Annotated[Usd | None, Field(description="USD per million tokens.", examples=["2.50"])]


class ListedShape(Shape):
    """What a model costs now: USD per million tokens of each class. `price` null: nobody knows. `applies` false: a
    price of the team's that no call gets now. Calls are the caller's own, for operators everybody's.
    """

    model: str
    provider: Annotated[str | None, Field(description="null: whoever serves the model.")]
    price: Annotated[dict[str, str] | None, Field(description="By class, with `source` and `version`.")]
    since: Annotated[Utc | None, Field(description="Of a price of the team's: for calls from then on.")]
    set_by: str | None
    applies: bool
    calls: int
    unpriced_calls: int
    last_call_at: Utc | None

    @classmethod
    def of(cls, one: Listed) -> Self:
        return cls(**{**vars(one), "price": one.price and one.price.as_json()})


class PricesShape(Shape):
    prices: list[ListedShape]


class PriceParameters(Shape):
    """Of which models. Without `model`: of those that calls were made of since then, and of the team's own prices."""

    model: Annotated[Name | None, Field(description="Also one that no call was made of.", examples=["gpt-4o"])] = None
    provider: Annotated[Name | None, Field(description="Whoever serves it.", examples=["openai"])] = None
    since: Annotated[
        Moment,
        Field(description="ISO 8601, or how long ago.", examples=["30d"]),
    ] = "30d"


class NewPriceShape(Shape):
    """A price of the team's. What is left out is billed as input or output. `call` is USD for the call itself."""

    model: Name
    provider: Annotated[Name | None, Field(description="null: whoever serves the model.")] = None
    since: Annotated[Since | None, Field(description="For calls from then on; null: for all.")] = None
    input: Annotated[Usd, Field(description="USD per million tokens.", examples=["2.50"])]
    output: Annotated[Usd, Field(description="USD per million tokens.", examples=["10"])]
    cached_input: Amount = None
    cache_write: Amount = None
    reasoning: Amount = None
    call: Annotated[Usd | None, Field(description="USD.")] = None


class SetShape(Shape):
    """`changed` 0: it was so already."""

    given: int
    changed: int


class RemovedShape(Shape):
    removed: bool


class PriceKey(Shape):
    """Which of the team's prices: there is one for each."""

    model: Annotated[Name, Field(description="As it was set.")]
    provider: Annotated[Name | None, Field(description="As it was set; none: whoever serves the model.")] = None
    since: Annotated[Since | None, Field(description="As it was set; none: the one for all calls.")] = None


@router.get("", response_model=PricesShape, responses=refusals())
async def list_(asked: Asked, given: Annotated[PriceParameters, Query()]) -> Response:
    """What models cost now, from which source and version, and how many calls have no cost."""
    since = moment(given.since, "since")
    assert since is not None
    async with asked.session() as session:
        team, seen = await prices.list_(session), await prices.seen(session, asked.claims, since)
    # The lists of prices are loaded at the first question, which takes seconds.
    found = await asyncio.to_thread(_listed, given, team, seen)
    return answered(PricesShape(prices=[ListedShape.of(one) for one in found]))


@cache
def _lists() -> Prices:
    return Prices((), catalogue_file())


def _listed(given: PriceParameters, team: Sequence[TeamPrice], seen: Sequence[SeenModel]) -> list[Listed]:
    known, now = _lists().with_team(team), datetime.now(UTC)
    model, provider = _lower(given.model), _lower(given.provider)
    found = [
        one
        for one in listed_prices(known, team, seen, now)
        if model in (None, one.model.lower()) and provider in (None, one.provider)
    ]
    if model is None or found:
        return found
    return [Listed(model, provider, known.lookup(model, provider or "", now))]


def _lower(name: str | None) -> str | None:
    return None if name is None else name.strip().lower()


@router.put("", response_model=SetShape, responses=refusals(400))
async def set_(asked: Asked, new: NewPriceShape, _: NoParameters) -> Response:
    """Sets a price of the team's, which comes before all others for calls that begin from now on. For operators."""
    wanted = price.written(new.model_dump(), lambda part: part)
    async with asked.session() as session:
        changed = await prices.set_(session, [wanted])
    return answered(SetShape(given=1, changed=changed))


@router.delete("", response_model=RemovedShape, responses=refusals(404))
async def remove(asked: Asked, given: Annotated[PriceKey, Query()]) -> Response:
    """Forgets a price of the team's; calls that it priced keep it. For operators."""
    model = price.name(given.model, "model")
    provider = None if given.provider is None else price.name(given.provider, "provider")
    since = None if given.since is None else price.since(given.since, "since")
    async with asked.session() as session:
        if not await prices.remove(session, model, provider, since):
            raise PriceNotFound(model, tuple(_told(own) for own in await prices.list_(session) if own.model == model))
    return answered(RemovedShape(removed=True))


def _told(own: TeamPrice) -> str:
    """Which one it is, as it is asked for."""
    provider = "" if own.provider is None else f" of provider={own.provider}"
    since = "" if own.since is None else f" with since={own.since.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return f"one{provider}{since}"
