"""`python -m benchmarks.soak [--seconds N]`: whether a worker grows while it carries one execution after another."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import psutil

from benchmarks.figures import Figure, show
from benchmarks.stage import SIDE_BY_SIDE, Stage, User

_IN_FLIGHT = 2 * SIDE_BY_SIDE
_PAUSE_SECONDS = 0.5
_WARM_UP = 0.25
"""Of the time: pools fill, caches are made, the allocator settles."""
_MOST_GROWTH = 1.0
"""MB per 10 minutes."""


@dataclass(frozen=True)
class _Look:
    at: float
    executions: int
    worker: float
    templates: float
    """Memory that is nobody else's, in MB: the worker's, and that of the processes it forks runs from."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.soak")
    parser.add_argument("--seconds", type=float, default=600)
    seconds = parser.parse_args().seconds
    with Stage() as stage:
        show(_figures(_looks(stage, seconds), seconds))


def _looks(stage: Stage, seconds: float) -> list[_Look]:
    postgres = stage.server("soaked")
    worker = psutil.Process(stage.worker_for(postgres).pid)
    resident = [worker, *worker.children(recursive=True)]
    looks: list[_Look] = []
    with User(postgres) as user:
        begun, ended = time.monotonic(), 0
        while (now := time.monotonic() - begun) < seconds:
            ended += _some_executions(user)
            worker_memory, *others = [_own_memory(process) for process in resident]
            looks.append(_Look(now, ended, worker_memory, sum(others)))
    return looks


def _some_executions(user: User) -> int:
    """As many as end in a moment, several at a time."""
    begun, ended = time.monotonic(), 0
    while time.monotonic() - begun < _PAUSE_SECONDS:
        for execution in [user.start("three_steps")[0] for _ in range(_IN_FLIGHT)]:
            user.ended(execution)
            ended += 1
    return ended


def _own_memory(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        return float(process.memory_full_info().uss) / 1e6
    return 0.0


def _figures(looks: list[_Look], seconds: float) -> Iterator[Figure]:
    warm = [look for look in looks if look.at > seconds * _WARM_UP]
    yield Figure("executions", f"{looks[-1].executions:,} in {seconds:g} s", f"{len(warm)} looks after warm-up")
    for name, values in (
        ("worker", [look.worker for look in warm]),
        ("launcher, base and template", [look.templates for look in warm]),
    ):
        growth = slope([look.at for look in warm], values) * 600
        yield Figure(
            f"{name}: own memory, growth in 10 minutes",
            f"{growth:+.2f} MB",
            f"{values[0]:.1f} to {values[-1]:.1f} MB",
            target=f"< {_MOST_GROWTH:g} MB",
            reached=growth < _MOST_GROWTH,
        )


def slope(times: list[float], values: list[float]) -> float:
    """Of the straight line that lies nearest to all of them."""
    middle, mean = sum(times) / len(times), sum(values) / len(values)
    spread = sum((at - middle) ** 2 for at in times)
    return sum((at - middle) * (value - mean) for at, value in zip(times, values, strict=True)) / spread


if __name__ == "__main__":
    main()
