"""Prices that a team sets itself: what one says, and how people write its parts; and the models that need prices."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from flowledger.domain.usage import PRICED_CLASSES, Price
from flowledger.errors import InvalidInput

TEAM = "team"
"""The source of such a price."""

PARTS = ("model", "provider", "since", *PRICED_CLASSES)
"""What a price is written with."""

HIGHEST_USD = 1_000_000
MOST_DECIMALS = 12
_SMALLEST = Decimal(1).scaleb(-MOST_DECIMALS)
_LONGEST_NAME = 200

_NUMBER = re.compile(r"-?(\d{1,20}(\.\d{0,40})?|\.\d{1,40})([eE][+-]?\d{1,2})?", re.ASCII)


@dataclass(frozen=True)
class TeamPrice:
    """A price that the team set. `provider` None: whoever serves the model. `since` None: always.

    `model` may be written with its provider's prefix, as in `openai/gpt-4o`: that is the price for that provider.
    Of several that fit, the one for the provider wins, then the latest.
    """

    model: str
    price: Price
    provider: str | None = None
    since: datetime | None = None
    set_by: str | None = None

    @property
    def key(self) -> tuple[str, str | None, datetime | None]:
        """What there is one price for."""
        return self.model, self.provider, self.since


@dataclass(frozen=True)
class SeenModel:
    """A model that calls were made of. `unpriced_calls` have tokens and count with no cost."""

    model: str
    provider: str
    calls: int
    unpriced_calls: int
    last_call_at: datetime


def written(given: Mapping[str, Any], place: Callable[[str], str]) -> TeamPrice:
    """The price that people wrote, by PARTS; a part that is None or empty is left out.

    `place` names a part to whoever wrote it. Raises InvalidInput.
    """
    said = {part: value for part, value in given.items() if value is not None and value != ""}
    for part in ("model", "input", "output"):
        if part not in said:
            raise InvalidInput(place(part), "is missing", "A price needs a model, and USD for input and output.")
    amounts = {part: usd(said[part], place(part)) for part in PRICED_CLASSES if part in said}
    return TeamPrice(
        model=name(said["model"], place("model")),
        price=Price(source=TEAM, version="", **amounts),
        provider=name(said["provider"], place("provider")) if "provider" in said else None,
        since=since(said["since"], place("since")) if "since" in said else None,
    )


def usd(given: Any, place: str) -> Decimal:
    """An amount as text or as a JSON number, exact. Raises InvalidInput."""
    text = str(given).strip()
    if isinstance(given, bool) or not _NUMBER.fullmatch(text):
        raise InvalidInput(place, f"{_short(text)} is no amount", "Give USD per million tokens as a number, like 0.15.")
    amount = Decimal(text)
    if amount.is_signed() and amount:
        raise InvalidInput(place, f"{text} is below zero", "A price is zero or more.")
    if amount > HIGHEST_USD or amount != amount.quantize(_SMALLEST):
        raise InvalidInput(
            place,
            f"{_short(text)} is no likely price",
            f"Give at most {HIGHEST_USD:,} USD and {MOST_DECIMALS} decimals; prices are per million tokens.",
        )
    return amount.copy_abs()


def name(given: Any, place: str) -> str:
    """A model's or provider's name, as calls are compared with it. Raises InvalidInput."""
    text = given.strip().lower() if isinstance(given, str) else ""
    if not text or len(text) > _LONGEST_NAME or not text.isprintable():
        raise InvalidInput(
            place, f"{_short(str(given))} is no name", f"Give 1 to {_LONGEST_NAME} printable characters."
        )
    return text


def since(given: Any, place: str) -> datetime:
    """A date or time; UTC unless it says otherwise. Raises InvalidInput."""
    try:
        at = datetime.fromisoformat(given.strip())
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (AttributeError, ValueError, OverflowError) as wrong:
        raise InvalidInput(
            place, f"{_short(str(given))} is no date", "Give one like 2026-11-01 or 2026-11-01T12:00Z; UTC."
        ) from wrong


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
