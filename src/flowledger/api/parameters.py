"""Query parameters of lists, and what they ask the ledger for."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field, StringConstraints

from flowledger.api.shapes import MOST_ROWS, Sequence_, Shape, Text
from flowledger.database.session import Claims
from flowledger.domain.duration import parse_moment
from flowledger.domain.mode import Mode
from flowledger.domain.status import Status
from flowledger.errors import InvalidInput
from flowledger.ledger.executions import Filters, Inside, Place

_ONE = "|".join(Status)
_STEP = re.compile(r'\.([^.\[\]"]+)|\[(\d{1,9})\]|\["([^"]*)"\]')
_ROOTS = ("input_state", "output_state", "metadata")
_DEEPEST = 20

_UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_STEPS = r"""(\.[^.\[\]"\x00]+|\[[0-9]{1,9}\]|\["[^"\x00]*"\])"""

# Forms that JSON Schema can tell and pydantic need not check: what is wrong is told in better words further down.
_MOMENT = {
    "type": "string",
    "anyOf": [
        {"format": "date-time"},
        {"format": "date"},
        {"pattern": r"^([0-9]{1,9}(\.[0-9]{1,9})?|([0-9]{1,5}(ms|s|m|h|d|w)){1,4})$"},
    ],
}
_WHOSE = {"pattern": f"^(me|{_UUID})$"}
_PLACE = {"pattern": f"^({'|'.join(_ROOTS)}){_STEPS}{{0,{_DEEPEST}}}$"}

Moment = Annotated[Text, Field(max_length=64, json_schema_extra=_MOMENT)]
"""ISO 8601, or how long ago: what `moment` reads."""
Limit = Annotated[int, Field(ge=1, le=MOST_ROWS)]


class FilterParameters(Shape):
    """Which executions. What is not given takes all."""

    status: Annotated[
        Annotated[str, StringConstraints(pattern=f"^({_ONE})(,({_ONE}))*$")] | None,
        Field(description="One or several, between commas.", examples=["failed,timeout"]),
    ] = None
    flow: Annotated[Text, Field(max_length=100, description="The flow's key.")] | None = None
    mode: Mode | None = None
    since: Annotated[
        Moment | None,
        Field(
            description="Started then or later: ISO 8601, UTC if it names no zone, or how long ago.", examples=["24h"]
        ),
    ] = None
    until: Annotated[Moment | None, Field(description="Started before.")] = None
    meeting: UUID | None = None
    by: Annotated[
        Annotated[Text, Field(max_length=64, json_schema_extra=_WHOSE)] | None,
        Field(description="A user's id, or `me`.", examples=["me"]),
    ] = None
    search: Annotated[
        Annotated[Text, Field(min_length=1, max_length=200)] | None,
        Field(description="Part of the error's type, or of the first 1,000 characters of its message."),
    ] = None
    path: Annotated[
        Annotated[Text, Field(max_length=500, json_schema_extra=_PLACE)] | None,
        Field(
            description="A place in `input_state`, `output_state` or `metadata` that must be there.",
            examples=["input_state.topic", 'output_state.leads[0]["first name"]'],
        ),
    ] = None
    value: Annotated[
        Annotated[Text, Field(max_length=1000)] | None, Field(description="What stands at `path`, as text.")
    ] = None

    def filters(self, claims: Claims) -> Filters:
        """Raises InvalidInput."""
        return Filters(
            statuses=None if self.status is None else tuple(Status(one) for one in self.status.split(",")),
            flow_key=self.flow,
            mode=self.mode,
            since=moment(self.since, "since"),
            until=moment(self.until, "until"),
            meeting=self.meeting,
            by=_user(self.by, claims),
            search=self.search,
            inside=_inside(self.path, self.value),
        )


class ListParameters(FilterParameters):
    """Which executions, and which page of them."""

    limit: Limit = 50
    after: Annotated[Annotated[Text, Field(max_length=200)] | None, Field(description="The `next` of a page.")] = None


class PageParameters(Shape):
    """What comes after the given number."""

    after: Sequence_ = 0
    limit: Limit = MOST_ROWS


def written(place: Place | None) -> str | None:
    """A place as callers see it: nothing to read, nothing to compute with."""
    return None if place is None else urlsafe_b64encode(str(place).encode()).decode().rstrip("=")


def place(text: str | None) -> Place | None:
    """Reads what `written` wrote. Raises InvalidInput."""
    if text is None:
        return None
    try:
        read = Place.parse(urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode())
    except (ValueError, InvalidInput) as wrong:
        raise InvalidInput("after", "is no place in a list", "Use the `next` of the page before.") from wrong
    return Place(read.started_at if read.started_at.tzinfo else read.started_at.replace(tzinfo=UTC), read.id)


def moment(text: str | None, field: str) -> datetime | None:
    """A point in time: ISO 8601, UTC unless it names a zone, or how long ago. Raises InvalidInput."""
    if text is None:
        return None
    try:
        return parse_moment(text, UTC)
    except ValueError as wrong:
        raise InvalidInput(
            field, f"{text!r} is no time", "Give a date like 2026-11-26T08:00:00Z or a span like 24h."
        ) from wrong


def _user(text: str | None, claims: Claims) -> UUID | None:
    if text == "me":
        return claims.user
    try:
        return UUID(text) if text is not None else None
    except ValueError as wrong:
        raise InvalidInput("by", f"{text!r} is no user id", "Give a UUID, or `me`.") from wrong


def _inside(path: str | None, value: str | None) -> Inside | None:
    if path is None:
        if value is not None:
            raise InvalidInput("value", "says what stands at `path`, which is not given", "Add path=input_state.NAME.")
        return None
    root = next((root for root in _ROOTS if path.startswith(root)), "")
    rest = path.removeprefix(root)
    steps = tuple(found.group(found.lastindex or 0) for found in _STEP.finditer(rest))
    if not root or _STEP.sub("", rest) or len(steps) > _DEEPEST:
        raise InvalidInput(
            "path",
            f"must begin with {', '.join(_ROOTS)}, and have {_DEEPEST} steps at most",
            'Like input_state.topic, output_state.leads[0] or metadata["a name"].',
        )
    return Inside(root, steps, value)
