"""The LLM calls of the flow's process, between their start and their end: numbers, attempts, first pieces, tokens.

Inside the child: standard library only. What CrewAI tells at the end of a call is not all that was billed: a call that
runs a tool itself ends without usage, one that asks twice (a follow-up after a tool, a second try without a parameter)
tells of the last answer only, and one whose tool raised is told as failed. Each answer passes one method of the LLM
class, `_track_token_usage_internal`, a private name that is looked for first; what passes there is summed by call.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from flowledger.runner.usage import Counts, normalise

_MOST_OPEN = 10_000
_MOST_ATTEMPTS = 1_000
_METER = "_track_token_usage_internal"

_metering: ContextVar[bool] = ContextVar("flowledger_metering", default=False)


@dataclass
class Call:
    """One call. `retries` counts the failed attempts before this one, of the same request."""

    number: int
    retries: int
    request: Any
    began: int = field(default_factory=time.monotonic_ns)
    first_piece: int | None = None
    counted: Counts | None = None

    def first_token_ms(self) -> float | None:
        return None if self.first_piece is None else round((self.first_piece - self.began) / 1e6, 3)


class Calls:
    """Everything is looked up by CrewAI's call id. Called from any thread."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._given_back: list[int] = []
        self._open: dict[str, Call] = {}
        self._ended: dict[str, None] = {}
        self._failures: dict[Any, int] = {}
        self._lock = threading.Lock()

    def next_number(self) -> int:
        """A number that no other call has."""
        with self._lock:
            return heapq.heappop(self._given_back) if self._given_back else next(self._numbers)

    def begin(self, call_id: str, number: int, request: Any) -> Call:
        """`request` is the same for each attempt to make the same call."""
        with self._lock:
            call = Call(number, self._failures.pop(request, 0), request)
            if len(self._open) < _MOST_OPEN:
                self._open[call_id] = call
            return call

    def piece(self, call_id: str) -> None:
        """A piece of a streamed answer came."""
        call = self._open.get(call_id)
        if call is not None and call.first_piece is None:
            call.first_piece = time.monotonic_ns()

    def end(self, call_id: str, *, failed: bool) -> Call | None:
        """None when it has ended before, which CrewAI tells twice of some calls, or was never seen to begin."""
        with self._lock:
            call = self._open.pop(call_id, None)
            self._remember(call_id)
            if call is None:
                return None
            if failed and len(self._failures) < _MOST_ATTEMPTS:
                self._failures[call.request] = call.retries + 1
            return call

    def refuse(self, call_id: str, number: int) -> None:
        """It is not made: another call may have its number, and what CrewAI tells of its end is to be left out."""
        with self._lock:
            heapq.heappush(self._given_back, number)
            self._remember(call_id)

    def has_ended(self, call_id: str) -> bool:
        return call_id in self._ended

    def _remember(self, call_id: str) -> None:
        self._ended[call_id] = None
        if len(self._ended) > _MOST_OPEN:
            del self._ended[next(iter(self._ended))]

    # -- Tokens -------------------------------------------------------------------------------------------------------

    def meter(self, kind: type) -> None:
        """Sees what each answer to an LLM of this class used, from now on."""
        for owner in kind.__mro__:
            method = owner.__dict__.get(_METER)
            if method is not None:
                if not getattr(method, "of_flowledger", False):
                    _replace(owner, _metered(method, self._used))
                return

    def _used(self, llm: Any, usage: Any) -> None:
        call = self._open.get(_current_call_id() or "")
        counted = normalise(usage, _provider(llm))
        if call is not None and counted is not None:
            with self._lock:
                before = call.counted or dict.fromkeys(counted, 0)
                call.counted = {name: before[name] + counted[name] for name in counted}


def whole_usage(call: Call | None, told: Any, provider: str) -> Counts | None:
    """What a call used: the sum over its answers, or what CrewAI told of its end if that is more."""
    last = normalise(told, provider)
    if call is None or call.counted is None:
        return last
    return call.counted if last is None or _total(call.counted) >= _total(last) else last


def _total(counts: Counts) -> int:
    return counts["input_tokens"] + counts["output_tokens"]


def _metered(method: Callable[..., Any], used: Callable[[Any, Any], None]) -> Callable[..., Any]:
    def metered(llm: Any, usage: Any, *arguments: Any, **options: Any) -> Any:
        # A class of ours may hand on to the one it comes from: the same answer passes twice.
        if not _metering.get():
            with contextlib.suppress(Exception):
                used(llm, usage)
        token = _metering.set(True)
        try:
            return method(llm, usage, *arguments, **options)
        finally:
            _metering.reset(token)

    metered.of_flowledger = True  # type: ignore[attr-defined]
    return metered


def _replace(owner: type, method: Callable[..., Any]) -> None:
    with contextlib.suppress(Exception):
        setattr(owner, _METER, method)


def _current_call_id() -> str | None:
    from crewai.llms import base_llm

    variable = getattr(base_llm, "_current_call_id", None)
    return None if variable is None else variable.get()


def _provider(llm: Any) -> str:
    return str(getattr(llm, "provider", None) or "unknown")
