"""What may be spent, and the book that parallel calls reserve in before they start.

A call is let through if the most it can cost fits beside what is spent and what other running calls have reserved. So
calls that run at the same time cannot pass together through the last dollar, and as long as no call costs more than it
reserved, what was spent never exceeds the limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from typing import Any

from flowledger.domain.reach import OnReach
from flowledger.domain.usage import Price, Usage, add_usd, dollars, exact_text, worst_cost
from flowledger.errors import InvalidInput


@dataclass(frozen=True)
class Budget:
    """The most that may be spent, in USD, tokens or both. None: no limit of that kind. Zero lets no call through."""

    usd: Decimal | None = None
    tokens: int | None = None
    on_reach: OnReach = OnReach.STOP
    name: str = "the execution's budget"

    def __post_init__(self) -> None:
        if self.usd is not None and (not isinstance(self.usd, Decimal) or not self.usd.is_finite() or self.usd < 0):
            raise InvalidInput("budget in USD", f"must be an amount from 0 up, not {self.usd}")
        if self.tokens is not None and (type(self.tokens) is not int or self.tokens < 0):
            raise InvalidInput("budget in tokens", f"must be a whole number from 0 up, not {self.tokens!r}")

    def as_json(self) -> dict[str, Any]:
        """As it stands in an execution's metadata: the amount as text, so that no digit is lost."""
        given = {
            "budget_usd": None if self.usd is None else exact_text(self.usd),
            "budget_tokens": self.tokens,
            "on_budget": str(self.on_reach) if self.on_reach is OnReach.WARN else None,
        }
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def from_json(cls, metadata: Mapping[str, Any]) -> Budget | None:
        """Reads what `as_json` wrote, or what a user put there, which the database has checked. None: no budget."""
        usd, tokens = metadata.get("budget_usd"), metadata.get("budget_tokens")
        if usd is None and tokens is None:
            return None
        return cls(
            None if usd is None else Decimal(str(usd)),
            None if tokens is None else int(Decimal(str(tokens))),
            OnReach(metadata.get("on_budget", OnReach.STOP)),
        )


@dataclass(frozen=True)
class PromptSize:
    """How large a prompt is, as `runner/prompt` measures it where the prompt is. All counts.

    `plain` are ASCII letters and blanks in ordinary words; `dense` are the bytes of everything else: digits,
    punctuation, other scripts, and long unbroken runs such as keys and base64.
    """

    plain: int = 0
    dense: int = 0
    messages: int = 0
    tools: int = 0
    images: int = 0
    files: int = 0
    file_bytes: int = 0


@dataclass(frozen=True)
class WorstCase:
    """The most that one call can use. `usd` None: its model has no price."""

    model: str
    input_tokens: int
    output_tokens: int
    usd: Decimal | None

    @classmethod
    def of(cls, model: str, input_tokens: int, output_tokens: int, price: Price | None) -> WorstCase:
        """`price` is the dearest that so much input can meet: a tier may begin below it."""
        usd = None if price is None else worst_cost(input_tokens, output_tokens, price)
        return cls(model, input_tokens, output_tokens, usd)

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class Reason(StrEnum):
    """REACHED: it would pass the limit. UNPRICED: its model has no price, so no limit in USD can be held."""

    REACHED = "reached"
    UNPRICED = "unpriced"


@dataclass(frozen=True)
class Refusal:
    """Why a call was not let through, or why a warning was given. `unit` is "usd" or "tokens".

    `is_final` False: it only has to wait, for it fits as soon as calls that are running now turn out cheaper.
    `is_warning`: its budget does not stop, and the call is let through. `budget` says whose budget it is. What is spent
    of one that others spend from too is not for whoever reads this: then `is_shared`, and no amount of it is told.
    """

    reason: Reason
    unit: str
    worst: WorstCase
    spent: Decimal | int
    reserved: Decimal | int
    limit: Decimal | int
    is_final: bool
    is_warning: bool = False
    budget: str = ""
    is_shared: bool = False

    @property
    def _named(self) -> str:
        return self.budget if self.is_shared else f"{self.budget} of {_amount(self.limit)}"

    def __str__(self) -> str:
        if self.reason is Reason.UNPRICED:
            return (
                f"{self.worst.model} has no price, so {self._named} cannot be kept to: "
                "set its price, or give the budget in tokens"
            )
        asked = self.worst.usd if self.unit == "usd" else self.worst.tokens
        call = (
            f"a call of {self.worst.model} may take {_amount(asked)} "
            f"(at most {self.worst.input_tokens:,} tokens in, {self.worst.output_tokens:,} out)"
        )
        if self.is_shared:
            return f"{call}, and {self.budget} has no room for it; a max_tokens on the LLM makes it less"
        return (
            f"{call}, with {_amount(self.spent)} spent and {_amount(self.reserved)} set aside of {self._named}; "
            "a max_tokens on the LLM makes it less"
        )


@dataclass(frozen=True)
class Reservation:
    """Room for one call. `warning` says what would have refused it if the budget stopped instead of warning."""

    number: int
    worst: WorstCase
    warning: Refusal | None = None


@dataclass
class Spending:
    """The book of one budget. Not for several threads: one owner asks, one call after the other.

    It may begin with what was spent before. `estimated_usd` and `estimated_tokens` are the part of what is spent that
    nobody reported: there the reservation was kept. `unpriced_calls` are in no sum of USD at all.
    """

    budget: Budget
    spent_usd: Decimal = Decimal(0)
    spent_tokens: int = 0
    reserved_usd: Decimal = Decimal(0)
    reserved_tokens: int = 0
    estimated_usd: Decimal = Decimal(0)
    estimated_tokens: int = 0
    estimated_calls: int = 0
    unpriced_calls: int = 0
    _open: dict[int, Reservation] = field(default_factory=dict)
    _last: int = 0

    def reserve(self, worst: WorstCase) -> Reservation | Refusal:
        """Asks for room before a call starts."""
        refusal = self._why_not(worst)
        if refusal is not None:
            refusal = replace(refusal, is_warning=self.budget.on_reach is OnReach.WARN, budget=self.budget.name)
            if not refusal.is_warning:
                return refusal
        self._last += 1
        reservation = Reservation(self._last, worst, refusal)
        self._open[reservation.number] = reservation
        self.reserved_usd = add_usd(self.reserved_usd, worst.usd or Decimal(0))
        self.reserved_tokens += worst.tokens
        return reservation

    def settle(self, reservation: Reservation, usage: Usage | None, usd: Decimal | None) -> bool:
        """Puts what the call really took in the place of its reservation. False: it was settled or released before.

        None is unknown: nobody reported tokens, or they have no price. The reservation then counts as spent.
        """
        if not self._close(reservation):
            return False
        worst = reservation.worst
        if usage is None:
            self.spent_tokens += worst.tokens
            self.estimated_tokens += worst.tokens
            usd = None
        else:
            self.spent_tokens += usage.total
        self._spend(usd, worst.usd)
        self.estimated_calls += usage is None or (usd is None and worst.usd is not None)
        return True

    def release(self, reservation: Reservation) -> bool:
        """The call was refused by its provider, or never started: it took nothing. False as in `settle`."""
        return self._close(reservation)

    @property
    def is_reached(self) -> bool:
        """Nothing is left, or less than nothing: a call took more than it had reserved."""
        budget = self.budget
        return (budget.usd is not None and self.spent_usd >= budget.usd) or (
            budget.tokens is not None and self.spent_tokens >= budget.tokens
        )

    def _why_not(self, worst: WorstCase) -> Refusal | None:
        if self.budget.usd is not None:
            spent, reserved, limit = self.spent_usd, self.reserved_usd, self.budget.usd
            if worst.usd is None:
                return Refusal(Reason.UNPRICED, "usd", worst, spent, reserved, limit, is_final=True)
            alone = add_usd(spent, worst.usd)
            if add_usd(alone, reserved) > limit:
                return Refusal(Reason.REACHED, "usd", worst, spent, reserved, limit, is_final=alone > limit)
        if self.budget.tokens is not None:
            taken, held, most = self.spent_tokens, self.reserved_tokens, self.budget.tokens
            if taken + held + worst.tokens > most:
                is_final = taken + worst.tokens > most
                return Refusal(Reason.REACHED, "tokens", worst, taken, held, most, is_final=is_final)
        return None

    def _spend(self, usd: Decimal | None, reserved: Decimal | None) -> None:
        if usd is not None:
            self.spent_usd = add_usd(self.spent_usd, usd)
        elif reserved is not None:
            self.spent_usd = add_usd(self.spent_usd, reserved)
            self.estimated_usd = add_usd(self.estimated_usd, reserved)
        else:
            self.unpriced_calls += 1

    def _close(self, reservation: Reservation) -> bool:
        if self._open.pop(reservation.number, None) is None:
            return False
        self.reserved_usd = add_usd(self.reserved_usd, -(reservation.worst.usd or Decimal(0)))
        self.reserved_tokens -= reservation.worst.tokens
        return True


# -- The most that a call can use -------------------------------------------------------------------------------------

_PLAIN_BYTES_PER_TOKEN = 3
"""English prose has 4 to 5 letters and blanks a token, code 3 to 4."""

_TOKENS_PER_MESSAGE = 8
_TOKENS_PER_TOOL = 16
_TOKENS_PER_CALL = 64
"""Roles, separators and the frames of tools: providers document 3 to 12 tokens each."""

_TOKENS_OF_TOOL_USE = 530
"""The instructions that Anthropic adds to a call with tools: 264 to 530 tokens, by its documentation."""

_TOKENS_PER_IMAGE = 5_000
_TOKENS_PER_IMAGE_BY_MODEL = {"gpt-4o-mini": 48_169}
"""An image's largest: OpenAI 1,445 to 2,500, Anthropic 4,784, Gemini 258 a tile. gpt-4o-mini: 2,833 + 8 x 5,667."""

_TOKENS_PER_FILE = 20_000


def most_input_tokens(size: PromptSize, model: str, model_maximum: int | None = None) -> int:
    """The most tokens that a provider may count for a prompt; never less than a third of its characters.

    A tokenizer that works on bytes makes at most one token of each. `dense` text is counted so, for real tokenizers
    come near it there. In ordinary ASCII words that bound would be four times too large, so a third stands for them:
    a margin over 4 to 5 letters a token, not a proof. A file's tokens cannot be known before (a PDF is billed by its
    pages): each counts its bytes or 20,000. `model_maximum`, the model's own limit, bounds them all.
    """
    text = -(-size.plain // _PLAIN_BYTES_PER_TOKEN) + size.dense
    frames = _TOKENS_PER_CALL + size.messages * _TOKENS_PER_MESSAGE + size.tools * _TOKENS_PER_TOOL
    tool_use = _TOKENS_OF_TOOL_USE if size.tools else 0
    images = size.images * _tokens_per_image(model)
    files = max(size.file_bytes, size.files * _TOKENS_PER_FILE)
    most = text + frames + tool_use + images + files
    return most if model_maximum is None else min(most, model_maximum)


def most_output_tokens(asked: int | None, model_maximum: int | None, otherwise: int, choices: int = 1) -> int:
    """What the call itself allows, else what its model can, else the setting; for each of its choices."""
    return (asked or model_maximum or otherwise) * max(choices, 1)


def _tokens_per_image(model: str) -> int:
    return next((most for name, most in _TOKENS_PER_IMAGE_BY_MODEL.items() if name in model), _TOKENS_PER_IMAGE)


def _amount(value: Decimal | int | None) -> str:
    if isinstance(value, int):
        return f"{value:,} tokens"
    return "an unknown amount" if value is None else dollars(value)
