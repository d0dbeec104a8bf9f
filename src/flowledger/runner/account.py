"""The account of one run, on the worker's side: its LLM calls with their prices, and whether the next may be made.

The child measures a prompt and asks; here are the prices and the budgets. What a call can take at most is set aside
before it is made and given back when it is known what it took, so that calls side by side never pass a limit together.
A call that would pass it while others run waits for them; one that would pass it anyway is refused, and with it the run
ends, unless its budget only warns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol

from flowledger.domain.budget import (
    Budget,
    PromptSize,
    Refusal,
    Reservation,
    Spending,
    WorstCase,
    most_input_tokens,
    most_output_tokens,
)
from flowledger.domain.execution import JsonObject
from flowledger.domain.reach import OnReach
from flowledger.domain.timeline import Event
from flowledger.domain.usage import MOST_TOKENS_OF_A_CALL, CallStatus, LlmCall, PricedCall, Total, Usage, exact_text
from flowledger.prices import Prices
from flowledger.runner.limits import Limits

_LOOK_AGAIN_SECONDS = 0.25
"""For room in windows that others spend from."""
_OTHERWISE_OUTPUT_TOKENS = 16_384
"""What a model may answer with of which nobody knows how much that is at most."""
_CALLS_REMEMBERED = 10_000


class Purse(Protocol):
    """Windows that several workers spend from."""

    async def reserve(self, number: int, worst: WorstCase) -> list[Refusal]:
        """Sets the most that a call can take aside. Where one of the answers is no warning, nothing is set aside."""
        ...


@dataclass(frozen=True)
class _SetAside:
    """For one call: the most that it can take, in each book of the run's own budgets."""

    worst: WorstCase
    held: list[tuple[Spending, Reservation]]


@dataclass(frozen=True)
class _Open:
    """A call that is being made. `aside` None: the run has no budget, or the call did not ask."""

    call: LlmCall
    aside: _SetAside | None = None


class Account:
    """Made for one run. `keep` takes each call once it has ended, or once nobody can see its end any more.

    `budgets` are the run's own, `purse` the windows that it falls into; None: it falls into none.
    """

    def __init__(
        self,
        prices: Prices,
        keep: Callable[[PricedCall], None],
        limits: Limits,
        budgets: tuple[Budget, ...] = (),
        purse: Purse | None = None,
    ) -> None:
        self.total = Total()
        self._prices = prices
        self._keep = keep
        self._limits = limits
        self._books = [Spending(budget) for budget in budgets]
        self._purse = purse
        self._open: dict[int, _Open] = {}
        self._aside: dict[int, _SetAside] = {}
        self._ended: dict[int, None] = {}
        self.refusal: Refusal | None = None
        """The call that could pass a budget, with which the run ends."""
        self._warnings: dict[str, None] = {}
        self._changed = asyncio.Event()

    @property
    def asks(self) -> bool:
        """Whether the run has to ask before each call."""
        return bool(self._books) or self._purse is not None

    # -- Before a call ------------------------------------------------------------------------------------------------

    async def ask(self, question: JsonObject) -> JsonObject:
        """Whether a call may be made: `go`, `wait` (begin anew later), or `stop`, with the reason.

        A patient question is answered with `go` or `stop`, however long that takes.
        """
        number = int(question["call"])
        worst = self._worst_case(question)
        while self.refusal is None and self._limits.decision is None:
            self._changed.clear()
            warned, refusal = await self._set_aside(number, worst)
            if refusal is None:
                return {"answer": number, "verdict": "go", **({"warning": str(warned)} if warned else {})}
            if refusal.is_final:
                self.refusal = refusal
                self._limits.exceed(str(refusal))
            elif not question["patient"]:
                return {"answer": number, "verdict": "wait", "reason": str(refusal)}
            else:
                await self._change()
        reason = str(self.refusal) if self.refusal is not None else "the run is ending"
        return {"answer": number, "verdict": "stop", "reason": reason}

    async def _set_aside(self, number: int, worst: WorstCase) -> tuple[Refusal | None, Refusal | None]:
        """In all of its budgets or in none. Answers with a warning, and with why not."""
        held: list[tuple[Spending, Reservation]] = []
        for book in self._books:
            answer = book.reserve(worst)
            if isinstance(answer, Refusal):
                _release(held)
                return None, answer
            held.append((book, answer))
        warnings = [reservation.warning for _, reservation in held if reservation.warning is not None]
        if self._purse is not None:
            for full in await self._purse.reserve(number, worst):
                if not full.is_warning:
                    _release(held)
                    return None, full
                warnings.append(full)
        self._aside[number] = _SetAside(worst, held)
        self._warnings.update(dict.fromkeys(map(str, warnings)))
        return (warnings[0] if warnings else None), None

    async def _change(self) -> None:
        try:
            async with asyncio.timeout(_LOOK_AGAIN_SECONDS):
                await self._changed.wait()
        except TimeoutError:
            pass

    def _worst_case(self, question: JsonObject) -> WorstCase:
        model, provider = str(question["model"]), str(question["provider"])
        known = self._prices.limits(model, provider)
        size = PromptSize(**question["size"])
        given = most_input_tokens(size, model, known.input_tokens)
        answered = most_output_tokens(
            question["max_tokens"], known.output_tokens, _OTHERWISE_OUTPUT_TOKENS, question["choices"]
        )
        price = self._prices.dearest(model, provider, _now(), given)
        return WorstCase.of(model, given, answered, price)

    # -- The call -----------------------------------------------------------------------------------------------------

    def begun(self, event: Event, *, kept: bool) -> None:
        """A call begins. `kept`: the timeline holds this event."""
        fields = event.fields
        number = int(fields["call"])
        call = replace(
            _named(event, number),
            step=fields.get("method"),
            crew=fields.get("crew_name"),
            agent=fields.get("agent_role"),
            task=fields.get("task_name"),
            retries=int(fields.get("retries", 0)),
            sequence=event.sequence if kept else None,
        )
        self._open[number] = _Open(call, self._aside.pop(number, None))

    def ended(self, event: Event, status: CallStatus) -> None:
        """A call has ended. The end of one that was not seen to begin counts too."""
        fields = event.fields
        number = int(fields.get("call", 0)) or -event.sequence
        if number in self._ended:
            return
        self._remember(number)
        opened = self._open.pop(number, None) or _Open(_named(event, number))
        call = replace(
            opened.call,
            status=status,
            usage=_reported(fields.get("usage")),
            latency_ms=fields.get("duration_ms"),
            first_token_ms=fields.get("first_token_ms"),
            finish_reason=fields.get("finish_reason"),
        )
        self._settle(opened, call)

    def close(self) -> None:
        """The run is over: of what is still open nobody will see the end."""
        for opened in list(self._open.values()):
            self._settle(opened, opened.call)
        self._open.clear()

    def _settle(self, opened: _Open, call: LlmCall) -> None:
        price = None
        if call.usage is not None:
            price = self._prices.lookup(call.model, call.provider, call.started_at, call.usage.input_tokens)
        priced = PricedCall(call, price)
        if opened.aside is not None and call.usage is None and call.status is CallStatus.FAILED:
            _release(opened.aside.held)
        elif opened.aside is not None:
            for book, reservation in opened.aside.held:
                book.settle(reservation, call.usage, priced.cost_usd)
            if priced.cost_usd is None:
                # Windows count it too, and these have no book here.
                priced = replace(priced, estimated_usd=opened.aside.worst.usd)
        self.total += Total.of(call, price)
        self._keep(priced)
        self._changed.set()

    def _remember(self, number: int) -> None:
        self._ended[number] = None
        if len(self._ended) > _CALLS_REMEMBERED:
            del self._ended[next(iter(self._ended))]

    # -- Afterwards ---------------------------------------------------------------------------------------------------

    @property
    def token_count(self) -> int | None:
        """None: no call was seen, or none reported its tokens."""
        return self.total.tokens if self.total.calls else None

    @property
    def cost_usd(self) -> Decimal | None:
        """None: no call was seen, or the sum is not known."""
        return self.total.cost_usd if self.total.calls else None

    def as_metadata(self) -> JsonObject:
        """What the ledger row tells of calls, prices and budgets."""
        budgets = [_told(book) for book in self._books]
        facts: dict[str, Any] = {
            **self.total.as_metadata(),
            "budgets": budgets,
            "budget_refused": str(self.refusal) if self.refusal is not None else None,
            "budget_warnings": list(self._warnings)[:10],
        }
        return {name: value for name, value in facts.items() if value}


def _reported(usage: Any) -> Usage | None:
    """The tokens, if they are such as a call can have. They come from the flow's own process and may be anything."""
    if not isinstance(usage, dict):
        return None
    counts = Usage(**usage)
    sound = all(type(count) is int and 0 <= count < MOST_TOKENS_OF_A_CALL for count in vars(counts).values())
    return counts if sound else None


def _release(held: list[tuple[Spending, Reservation]]) -> None:
    for book, reservation in held:
        book.release(reservation)


def _named(event: Event, number: int) -> LlmCall:
    """What a call's beginning and its end both tell; how it ended is not known."""
    return LlmCall(
        number=number,
        call_id=str(event.fields.get("call_id", "")),
        model=event.name,
        provider=str(event.fields.get("provider", "unknown")),
        started_at=event.at,
        status=CallStatus.UNKNOWN,
    )


def _told(book: Spending) -> JsonObject:
    budget = book.budget
    facts = {
        "limit_usd": None if budget.usd is None else exact_text(budget.usd),
        "spent_usd": None if budget.usd is None else exact_text(book.spent_usd),
        "limit_tokens": budget.tokens,
        "spent_tokens": None if budget.tokens is None else book.spent_tokens,
        "estimated_usd": exact_text(book.estimated_usd) if book.estimated_usd else None,
        "on_reach": str(budget.on_reach) if budget.on_reach is OnReach.WARN else None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _now() -> datetime:
    return datetime.now().astimezone()
