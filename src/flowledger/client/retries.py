"""When something is tried again, and for how long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

PASSING = frozenset({429, 502, 503, 504})
"""Statuses that pass: too much at once, the database away, or what a proxy says while a server restarts."""

LASTING = frozenset({"budget_used_up"})
"""Problems that come with such a status and last until a window ends."""


@dataclass
class Pauses:
    """Seconds between tries: they double, and vary so that many who failed together do not come back together."""

    first: float = 0.2
    longest: float = 5.0
    _last: float = field(default=0.0, init=False)

    def next(self) -> float:
        self._last = min(self.longest, self._last * 2 or self.first)
        return self._last * random.uniform(0.5, 1.0)  # noqa: S311 - nothing depends on its being guessed

    def reset(self) -> None:
        self._last = 0.0


class Attempts:
    """The tries of one request. `seconds` is how long it may be sent again; 0: it is sent once."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ends_at = clock() + seconds
        self._clock = clock
        self._pauses = Pauses()

    def pause(self, wanted: float | None = None) -> float | None:
        """Seconds until the next try: at least those that the server wanted. None: there is none any more."""
        pause = max(self._pauses.next(), wanted or 0.0)
        return pause if self._clock() + pause < self._ends_at else None


class Patience:
    """How long somebody waits. `seconds` None: for ever."""

    def __init__(self, seconds: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._ends_at = float("inf") if seconds is None else clock() + seconds
        self._clock = clock

    @property
    def left(self) -> float:
        return max(0.0, self._ends_at - self._clock())


def wanted_pause(retry_after: str | None) -> float | None:
    """Seconds that `Retry-After` names. Its other form, a date, is not what flowledger sends, and counts as none."""
    return float(retry_after) if retry_after is not None and retry_after.strip().isdigit() else None
