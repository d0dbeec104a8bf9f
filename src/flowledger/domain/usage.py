"""Tokens by class, as the providers bill them, what they cost, and sums that keep unknown apart from zero.

The words are OpenTelemetry's `gen_ai.usage.*`. Money is USD as Decimal, exact: rounding is the reader's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import datetime
from decimal import Context, Decimal, DivisionByZero, Inexact, InvalidOperation, Overflow, localcontext
from enum import StrEnum
from typing import Any

from flowledger.errors import InvalidInput

_EXACT = Context(prec=200, traps=[Inexact, InvalidOperation, DivisionByZero, Overflow])
"""Raises where a digit would be lost. 200 digits hold 2^63 tokens at any price with 100 decimals."""

_PER_MILLION = -6


MOST_TOKENS_OF_A_CALL = 10**12
"""The ledger holds no call of so many. Sums over millions of calls stay numbers that a database can hold."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one LLM call or a sum of calls.

    `input_tokens` includes cached input and cache writes; `output_tokens` includes reasoning. So the total is
    input + output, each token counted once.
    """

    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total(self) -> int:
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_input_tokens + other.cached_input_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


PRICED_CLASSES = ("input", "output", "cached_input", "cache_write", "reasoning", "call")
"""What a price may give an amount for."""


@dataclass(frozen=True)
class Price:
    """USD per million tokens of each class, as it applies to one call.

    `input` is for input that was neither read from a cache nor written to one, `output` for output that was not
    reasoning. None: no price of its own, so cached input and cache writes are billed as input, reasoning as output.
    `call` is USD for the call itself, which few models charge. `source` and `version` say where the price is from.
    """

    input: Decimal
    output: Decimal
    source: str
    version: str
    cached_input: Decimal | None = None
    cache_write: Decimal | None = None
    reasoning: Decimal | None = None
    call: Decimal = Decimal(0)

    @property
    def amounts(self) -> dict[str, Decimal]:
        """What it says, class by class, where it says anything."""
        given = {name: getattr(self, name) for name in PRICED_CLASSES}
        return {name: amount for name, amount in given.items() if amount is not None}

    def as_json(self) -> dict[str, str]:
        """As the ledger keeps it: amounts as text, so that no digit is lost."""
        amounts = {name: exact_text(amount) for name, amount in self.amounts.items()}
        return {"source": self.source, "version": self.version, **amounts}

    @classmethod
    def from_json(cls, given: dict[str, str]) -> Price:
        """Reads what `as_json` wrote."""
        amounts: dict[str, Any] = {name: Decimal(given[name]) for name in PRICED_CLASSES if name in given}
        return cls(source=given["source"], version=given["version"], **amounts)

    def __post_init__(self) -> None:
        for amount in fields(self):
            if amount.name not in ("source", "version"):
                _check_amount(getattr(self, amount.name), f"price {amount.name}")

    @property
    def dearest_input(self) -> Decimal:
        """Before a call nobody knows how its input splits into the classes."""
        return max(price for price in (self.input, self.cached_input, self.cache_write) if price is not None)

    @property
    def dearest_output(self) -> Decimal:
        return max(self.output, self.output if self.reasoning is None else self.reasoning)


class CallStatus(StrEnum):
    """UNKNOWN: the call was started and nobody saw it end, as when its run was killed. It may have been billed."""

    COMPLETED = "completed"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class LlmCall:
    """One call of an LLM, as seen from inside its execution.

    `number` counts from 1 within the execution, in the order of the calls' starts; `call_id` is CrewAI's. `sequence` is
    the event of the timeline with which it began; None: it was dropped. `step` is the flow's method. `model` and
    `provider` are those asked for. `usage` None: nobody reported tokens. `first_token_ms`
    None: not streamed. `retries` counts the failed attempts before this one, of the same request.
    """

    number: int
    call_id: str
    model: str
    provider: str
    started_at: datetime
    status: CallStatus
    usage: Usage | None = None
    step: str | None = None
    crew: str | None = None
    agent: str | None = None
    task: str | None = None
    latency_ms: float | None = None
    first_token_ms: float | None = None
    finish_reason: str | None = None
    retries: int = 0
    sequence: int | None = None


@dataclass(frozen=True)
class PricedCall:
    """A call with the price that applied to it. `price` None: its model has none that is known.

    `estimated_usd` is what a budget had set aside for a call that nobody knows the cost of; None: nothing, or known.
    """

    call: LlmCall
    price: Price | None = None
    estimated_usd: Decimal | None = None

    @property
    def cost_usd(self) -> Decimal | None:
        """Exact. None: unknown, for want of tokens or of a price."""
        if self.call.usage is None or self.price is None:
            return None
        return cost(self.call.usage, self.price)


@dataclass(frozen=True)
class Repricing:
    """A later look at what an execution cost, in USD. `old_usd` None: unknown then; `new_usd` None: still unknown."""

    repriced_at: datetime
    repriced_by: str
    old_usd: Decimal | None
    new_usd: Decimal | None
    prices: Any


@dataclass(frozen=True)
class Total:
    """A sum over LLM calls. `Total()` is that of no calls: known to be nothing.

    Sums of the known parts are kept beside what is unknown: `usage` over the calls that reported tokens, `priced_usd`
    over those that have a price too. `unreported` counts completed calls without tokens, `unended` those of status
    unknown. A failed call without tokens was refused or broke off: it counts as a call and as free of charge.
    """

    calls: int = 0
    failed: int = 0
    unended: int = 0
    unreported: int = 0
    usage: Usage = field(default_factory=Usage)
    reported: int = 0
    priced_usd: Decimal = Decimal(0)
    unpriced_models: frozenset[str] = frozenset()
    unreported_models: frozenset[str] = frozenset()
    prices: frozenset[str] = frozenset()

    @classmethod
    def of(cls, call: LlmCall, price: Price | None) -> Total:
        unknown = call.usage is None
        unended = unknown and call.status is CallStatus.UNKNOWN
        unreported = unknown and call.status is CallStatus.COMPLETED
        return cls(
            calls=1,
            failed=int(call.status is CallStatus.FAILED),
            unended=int(unended),
            unreported=int(unreported),
            usage=call.usage or Usage(),
            reported=int(not unknown),
            priced_usd=Decimal(0) if call.usage is None or price is None else cost(call.usage, price),
            unpriced_models=frozenset() if unknown or price is not None else frozenset({call.model}),
            unreported_models=frozenset({call.model}) if unreported or unended else frozenset(),
            prices=frozenset() if unknown or price is None else frozenset({f"{price.source} {price.version}"}),
        )

    def __add__(self, other: Total) -> Total:
        return Total(
            calls=self.calls + other.calls,
            failed=self.failed + other.failed,
            unended=self.unended + other.unended,
            unreported=self.unreported + other.unreported,
            usage=self.usage + other.usage,
            reported=self.reported + other.reported,
            priced_usd=add_usd(self.priced_usd, other.priced_usd),
            unpriced_models=self.unpriced_models | other.unpriced_models,
            unreported_models=self.unreported_models | other.unreported_models,
            prices=self.prices | other.prices,
        )

    @property
    def tokens(self) -> int | None:
        """None when calls were made and none of them reported; else what was reported."""
        return None if self._is_silent else self.usage.total

    @property
    def cost_usd(self) -> Decimal | None:
        """None when it holds a call without a price, or a completed one without tokens.

        A call that was cut off makes the sum a lower bound, not unknown: it is the sum of what had arrived by then.
        """
        known = not self.unpriced_models and not self.unreported and not self._is_silent
        return self.priced_usd if known else None

    def as_metadata(self) -> dict[str, Any]:
        """What the ledger row's metadata tells of it. The SQL function `usage_total` says the same of stored calls."""
        if not self.calls:
            return {}
        facts = {
            "usage": {
                **vars(self.usage),
                "calls": self.calls,
                "failed_calls": self.failed,
                "calls_without_usage": self.unreported,
                "calls_without_end": self.unended,
            },
            "exact_cost_usd": exact_text(self.priced_usd) if self.reported else None,
            "unpriced_models": sorted(self.unpriced_models),
            "unreported_models": sorted(self.unreported_models),
            "prices": sorted(self.prices),
        }
        return {name: value for name, value in facts.items() if value}

    @property
    def _is_silent(self) -> bool:
        return not self.reported and bool(self.unreported or self.unended)


def cost(usage: Usage, price: Price) -> Decimal:
    """What the tokens cost in USD, to the last digit.

    Parts that exceed their whole, which no sound report holds, are billed as parts and leave no rest.
    """
    fresh = max(usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens, 0)
    spoken = max(usage.output_tokens - usage.reasoning_tokens, 0)
    with localcontext(_EXACT):
        per_million = (
            fresh * price.input
            + usage.cached_input_tokens * _or(price.cached_input, price.input)
            + usage.cache_write_tokens * _or(price.cache_write, price.input)
            + spoken * price.output
            + usage.reasoning_tokens * _or(price.reasoning, price.output)
        )
        return per_million.scaleb(_PER_MILLION) + price.call


def worst_cost(input_tokens: int, output_tokens: int, price: Price) -> Decimal:
    """The most that a call of at most so many tokens can cost, however they split into classes."""
    with localcontext(_EXACT):
        per_million = input_tokens * price.dearest_input + output_tokens * price.dearest_output
        return per_million.scaleb(_PER_MILLION) + price.call


def add_usd(one: Decimal, other: Decimal) -> Decimal:
    """A sum that raises where it would lose a digit; the ordinary one keeps 28 and rounds in silence."""
    return _EXACT.add(one, other)


def exact_text(amount: Decimal) -> str:
    """Every digit and no zeros behind them."""
    return f"{amount.normalize(_EXACT):f}"


def dollars(amount: Decimal) -> str:
    """`$0.10`, `$12.00`, `$0.000123`: every digit, at least two behind the point."""
    whole, _, rest = exact_text(amount).partition(".")
    return f"${int(whole):,}.{rest.ljust(2, '0')}"


def _or(price: Decimal | None, otherwise: Decimal) -> Decimal:
    return otherwise if price is None else price


def _check_amount(amount: object, place: str) -> None:
    if amount is None:
        return
    if not isinstance(amount, Decimal) or not amount.is_finite() or amount < 0:
        raise InvalidInput(place, f"must be a Decimal of zero or more, not {amount!r}")
