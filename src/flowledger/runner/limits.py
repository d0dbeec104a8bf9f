"""When a run is to stop, and why. Decided in the worker; `process.py` carries it out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from flowledger.domain.status import Status


class ErrorType(StrEnum):
    """The error types that flowledger itself gives; every other one is the name of a flow's own exception."""

    CANCELLED = "Cancelled"
    TIMEOUT = "Timeout"
    BUDGET_EXCEEDED = "BudgetExceeded"
    """An LLM call was refused because it could pass a budget; or the start, because a window was used up."""
    LEASE_LOST = "LeaseLost"
    """The worker could not renew its lease, so the run was killed; another may decide its outcome."""
    WORKER_STOPPED = "WorkerStopped"
    """The worker was told to stop at once, and took the run with it."""
    MEMORY_LIMIT = "MemoryLimit"
    """The run's processes took more memory together than the flow may have, and were killed."""
    PROCESS_LIMIT = "ProcessLimit"
    """The run had more processes than the flow may have, and they were killed."""
    PROCESS_EXITED = "ProcessExited"
    """The flow's process ended by itself (sys.exit, os._exit) before the flow returned."""
    PROCESS_KILLED = "ProcessKilled"
    """A signal ended the flow's process: a crash in native code, the kernel out of memory, somebody's kill."""
    PROCESS_NOT_STARTED = "ProcessNotStarted"
    """No process could be made for the flow; its code did not run."""
    FRAMES_UNREADABLE = "FramesUnreadable"
    """The flow wrote into flowledger's own pipe, so that its report cannot be believed."""


class Stop(StrEnum):
    CANCEL = "cancel"
    TIMEOUT = "timeout"
    BUDGET = "budget"
    WORKER = "worker"
    LOST = "lost"


@dataclass(frozen=True)
class Decision:
    """The first reason to stop wins; later ones change nothing."""

    stop: Stop
    reason: str

    @property
    def status(self) -> Status:
        return _ENDINGS[self.stop][0]

    @property
    def error_type(self) -> ErrorType:
        return _ENDINGS[self.stop][1]


_ENDINGS = {
    Stop.CANCEL: (Status.CANCELLED, ErrorType.CANCELLED),
    Stop.TIMEOUT: (Status.TIMEOUT, ErrorType.TIMEOUT),
    Stop.BUDGET: (Status.FAILED, ErrorType.BUDGET_EXCEEDED),
    Stop.WORKER: (Status.FAILED, ErrorType.WORKER_STOPPED),
    Stop.LOST: (Status.FAILED, ErrorType.LEASE_LOST),
}


class Limits:
    """One run's limits. Made before the run and given to `run`; its methods are called in the run's event loop."""

    def __init__(self) -> None:
        self.decision: Decision | None = None
        self._decided = asyncio.Event()
        self._on_tick: Callable[[], None] | None = None
        self._is_held: Callable[[], bool] = lambda: True

    def cancel(self, reason: str | None) -> None:
        """The owner's wish: ask the flow to stop, then make it."""
        self._decide(Stop.CANCEL, reason or "cancelled by its owner")

    def stop_worker(self) -> None:
        """The worker was told to stop at once: its runs end as failed."""
        self._decide(Stop.WORKER, "the worker was stopped while this ran")

    def lose(self) -> None:
        """The lease is lost: kill at once. The outcome does not matter, somebody else writes it."""
        self._decide(Stop.LOST, "the worker lost its lease")
        self.decision = Decision(Stop.LOST, "the worker lost its lease")

    def expire(self, timeout_seconds: float) -> None:
        """The run used up its time."""
        self._decide(Stop.TIMEOUT, f"ran longer than its limit of {timeout_seconds:g} s")

    def exceed(self, reason: str) -> None:
        """An LLM call was refused: the run ends, whether or not it heeds that."""
        self._decide(Stop.BUDGET, reason)

    def tick(self) -> None:
        """A renewal succeeded: the run's own watchdog may rest for another lease."""
        if self._on_tick is not None:
            self._on_tick()

    def held_while(self, is_held: Callable[[], bool]) -> None:
        """`is_held` tells without asking anybody whether the lease is surely ours."""
        self._is_held = is_held

    def may_start(self) -> bool:
        """Asked right before the flow gets its order. Whoever was halted since the last renewal must not start it."""
        if not self._is_held():
            self.lose()
        return self.decision is None or self.decision.stop is not Stop.LOST

    async def decided(self) -> Decision:
        """Waits until there is a reason to stop."""
        await self._decided.wait()
        assert self.decision is not None
        return self.decision

    def feed(self, on_tick: Callable[[], None] | None) -> None:
        """Where ticks go while the run lasts."""
        self._on_tick = on_tick

    def _decide(self, stop: Stop, reason: str) -> None:
        if self.decision is None:
            self.decision = Decision(stop, reason)
            self._decided.set()
