"""Trouble that lasts is told when it begins, when it changes and when it is over, and not at every attempt between."""

from __future__ import annotations

import time

import structlog

_log = structlog.get_logger("flowledger.worker")


class Trouble:
    """One thing that keeps being tried. `event` names what fails in the log; `<event>_over` that it works again."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._kind: str | None = None
        self._since = 0.0

    @property
    def lasts(self) -> bool:
        return self._kind is not None

    def met(self, error: Exception) -> None:
        """It failed. The same kind of failure as before is not told again."""
        kind = f"{type(error).__name__} {getattr(error, 'reason', '')[:40]}"
        if kind == self._kind:
            return
        if self._kind is None:
            self._since = time.monotonic()
        self._kind = kind
        _log.warning(self._event, reason=str(error) or "no answer in time")

    def over(self) -> None:
        """It worked."""
        if self._kind is not None:
            _log.info(f"{self._event}_over", seconds=round(time.monotonic() - self._since, 1))
            self._kind = None
