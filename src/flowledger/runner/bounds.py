"""How much memory and how many processes a run has, and when that is too much. Used by its supervisor, beside the flow.

The kernel tells a process's resident memory at once (statm) and its true share of it slowly: smaps_rollup walks every
page, 70 µs a megabyte, and holds the process up meanwhile. So the quick figure is read every time, and the slow one
only when the quick one has grown into the limit, or now and then, because a page that was shared with the template and
is written to becomes the run's own without being counted as new.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

from flowledger.runner import namespace

_LONGEST_PAUSE_SECONDS = 0.25
_SHORTEST_PAUSE_SECONDS = 0.02
_MOST_WEIGHING = 0.02
"""Of the time, for slow looks that nothing has called for; those at the limit may take five times that."""
_TASKS_PER_PROCESS = 32
_RESERVED_PIDS = 300
"""The kernel never goes back below this number once it has passed it."""

_PAGE = os.sysconf("SC_PAGESIZE")


@dataclass(frozen=True)
class Bounds:
    """What a run may use; None: as much as there is. `open_files` holds for each of its processes alone."""

    memory_bytes: int | None = None
    processes: int | None = None
    open_files: int | None = None

    def limit_files(self) -> None:
        """For this process and all that come from it."""
        if self.open_files is not None:
            most = min(self.open_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def limit_pids(self) -> None:
        """For pid 1 of a run: a bomb of forks ends at a number of tasks, however late it is noticed.

        Linux 6.14 and later, and only where the worker runs as root; elsewhere the watching has to do.
        """
        if self.processes is not None:
            most = _RESERVED_PIDS + self.processes * _TASKS_PER_PROCESS
            with contextlib.suppress(OSError), open("/proc/sys/kernel/pid_max", "r+") as file:  # noqa: PTH123
                if int(file.read()) > most:
                    file.write(str(most))


@dataclass(frozen=True)
class Excess:
    """What a run had when it had too much."""

    memory_bytes: int | None = None
    processes: int | None = None


class Meter:
    """Looks at a run's processes every now and then, sooner when they grow fast."""

    def __init__(self, bounds: Bounds, list_processes: Callable[[], list[int]]) -> None:
        self._bounds = bounds
        self._list_processes = list_processes
        self._memory = _Memory(bounds.memory_bytes) if bounds.memory_bytes is not None else None
        self._growth = {"memory": _Growth(), "processes": _Growth()}
        self._next_look = time.monotonic() + _SHORTEST_PAUSE_SECONDS if self._is_needed else float("inf")

    @property
    def _is_needed(self) -> bool:
        return self._memory is not None or self._bounds.processes is not None

    @property
    def peak_memory_bytes(self) -> int:
        """The largest sum that was weighed; 0 when it never came near the limit."""
        return self._memory.peak if self._memory is not None else 0

    @property
    def seconds_to_next_look(self) -> float:
        return max(0.0, self._next_look - time.monotonic())

    def look(self) -> Excess | None:
        """None while all is within bounds, and when it is not yet time."""
        now = time.monotonic()
        if now < self._next_look:
            return None
        pids = self._list_processes()
        pauses = [_LONGEST_PAUSE_SECONDS]
        if self._bounds.processes is not None:
            if len(pids) > self._bounds.processes and (living := sum(map(_lives, pids))) > self._bounds.processes:
                return Excess(processes=living)
            pauses.append(self._growth["processes"].time_left(len(pids), self._bounds.processes, now) / 2)
        if self._memory is not None:
            if self._memory.is_exceeded(pids, now):
                return Excess(memory_bytes=self._memory.peak)
            pauses.append(self._growth["memory"].time_left(self._memory.at_most, self._memory.limit, now) / 2)
        self._next_look = time.monotonic() + max(_SHORTEST_PAUSE_SECONDS, min(pauses))
        return None


class _Growth:
    """How long a figure takes to its limit if it goes on as it did since the last look."""

    def __init__(self) -> None:
        self._before = (0, 0.0)

    def time_left(self, value: int, limit: int, now: float) -> float:
        (value_before, at), self._before = self._before, (value, now)
        if at == 0.0 or value <= value_before:
            return float("inf")
        return (limit - value) * (now - at) / (value - value_before)


class _Memory:
    """The sum of a run's memory: each page counts as many times as processes outside the run do not share it (PSS)."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.at_most = 0
        self.peak = 0
        self._weighed = 0
        self._resident_then = 0
        self._weigh_not_before = 0.0
        self._weigh_at_limit_not_before = 0.0
        self._machine_swaps = _machine_swaps()

    def is_exceeded(self, pids: list[int], now: float) -> bool:
        resident = sum(map(_resident, pids))
        self.at_most = min(resident, self._weighed + max(0, resident - self._resident_then))
        # What is resident is all there can be, unless pages were swapped out.
        if (resident > self.limit or self._machine_swaps) and self._is_time_to_weigh(now):
            self._weigh(pids, resident)
            return self._weighed > self.limit
        return False

    def _is_time_to_weigh(self, now: float) -> bool:
        if self._weighed == 0 or now >= self._weigh_not_before:
            return True
        return self.at_most > self.limit and now >= self._weigh_at_limit_not_before

    def _weigh(self, pids: list[int], resident: int) -> None:
        begun = time.monotonic()
        self._weighed = self.at_most = sum(map(_share, pids))
        self._resident_then = resident
        self.peak = max(self.peak, self._weighed)
        took = time.monotonic() - begun
        self._weigh_not_before = begun + took / _MOST_WEIGHING
        self._weigh_at_limit_not_before = begun + took / _MOST_WEIGHING / 5


def _lives(pid: int) -> bool:
    """False for a zombie: it holds a number and nothing else."""
    return _statm(pid)[0] > 0


def _resident(pid: int) -> int:
    return _statm(pid)[1] * _PAGE


def _statm(pid: int) -> tuple[int, int]:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123 - no Path objects several times a second
            size, resident = file.read().split()[:2]
            return int(size), int(resident)
    except OSError:
        return 0, 0


def _machine_swaps() -> bool:
    with contextlib.suppress(OSError), open("/proc/swaps", "rb") as file:  # noqa: PTH123
        return len(file.readlines()) > 1
    return False


def _share(pid: int) -> int:
    """A process's proportional share. One that hides (another user's, not dumpable) counts in full."""
    share = 0
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:  # noqa: PTH123
            for line in file:
                if line.startswith((b"Pss:", b"SwapPss:")):
                    share += int(line.split()[1]) * 1024
    except OSError:
        return _resident(pid)
    return share


def processes_beside(own: int, isolation: str) -> list[int]:
    """The processes of the run that `own` supervises."""
    if isolation == namespace.NAMESPACE:
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own]  # noqa: PTH208
    return namespace.children_of_children(own)
