"""`/errors`: what failed, in groups: the same error in the same place is one."""

from __future__ import annotations

from typing import Annotated, Self
from uuid import UUID

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import Field

from flowledger.api.answers import answered
from flowledger.api.asking import Asked
from flowledger.api.parameters import Limit, Moment, moment
from flowledger.api.shapes import Money, Shape, Text, Utc, money, refusals
from flowledger.errors import InvalidInput
from flowledger.ledger import failures, flows
from flowledger.ledger.failures import Failures

router = APIRouter(prefix="/errors", tags=["errors"])


class FailuresShape(Shape):
    """Executions that failed or ran out of time with one fingerprint. Type, place and message are those of the latest,
    `example`.
    """

    fingerprint: str
    first_seen: Annotated[Utc, Field(description="Ever, also before `since`.")]
    last_seen: Utc
    count: int
    flows: Annotated[dict[str, list[int]], Field(description="Flow key -> versions; none where they are not known.")]
    error_type: str | None
    place: Annotated[str | None, Field(description="The project's innermost frame, file:function.")]
    message: str | None
    tokens: Annotated[int | None, Field(description="Wasted, at least; null: nothing is known.")]
    cost_usd: Annotated[Money | None, Field(description="Wasted, at least; null: nothing is known.")]
    unpriced: Annotated[int, Field(description="Executions that `cost_usd` lacks.")]
    example: UUID

    @classmethod
    def of(cls, one: Failures) -> Self:
        return cls(**{**vars(one), "cost_usd": money(one.cost_usd)})


class ErrorsShape(Shape):
    """`is_complete` false: there are more than `limit`."""

    errors: list[FailuresShape]
    is_complete: bool


class ErrorParameters(Shape):
    """Of when, and of which flow."""

    since: Annotated[
        Moment,
        Field(description="Failed then or later: ISO 8601, or how long ago.", examples=["7d"]),
    ] = "30d"
    until: Annotated[Moment | None, Field(description="Failed before.")] = None
    flow: Annotated[Text, Field(max_length=100, description="The flow's key.")] | None = None
    limit: Limit = 100


@router.get("", response_model=ErrorsShape, responses=refusals(404))
async def list_(asked: Asked, given: Annotated[ErrorParameters, Query()]) -> Response:
    """What failed, the latest seen first: users see their own failures, operators everybody's."""
    since, until = moment(given.since, "since"), moment(given.until, "until")
    if since is not None and until is not None and until <= since:
        raise InvalidInput("until", f"{given.until} is not after {given.since}", "Give a later time.")
    async with asked.session() as session:
        flow = None if given.flow is None else await flows.find(session, given.flow)
        found = await failures.groups(session, asked.claims, since=since, until=until, flow=flow, limit=given.limit + 1)
    shapes = [FailuresShape.of(one) for one in found[: given.limit]]
    return answered(ErrorsShape(errors=shapes, is_complete=len(found) <= given.limit))
