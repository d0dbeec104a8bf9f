"""How soon a cancel wish is known, and how soon a run is dead of it, in whichever moment it comes."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from uuid import UUID

from benchmarks.figures import Figure, median, percentile
from benchmarks.stage import Stage, User

_CANCELS = 100
_SIDE_BY_SIDE = 8
_LATEST_SECONDS = 1.5
"""Wishes come up to so long after the insert: before the claim, in the fork, between steps, in a call that blocks."""
_MOST_VISIBLE_SECONDS, _MOST_DEAD_SECONDS = 1.0, 10.0
_HOW = ("steps", "sleep", "native", "stubborn")


@dataclass(frozen=True)
class _Cancelled:
    how: str
    status: str
    dead_seconds: float
    survivors: int


def wishes(stage: Stage) -> list[Figure]:
    """100 runs: a quarter goes step by step, a quarter each blocks in Python, in C, and ignores SIGTERM as well."""
    chance = random.Random(0)
    plan = [(how, chance.uniform(0, _LATEST_SECONDS)) for how in islice(cycle(_HOW), _CANCELS)]
    postgres = stage.server("cancelled")
    stage.worker_for(postgres, _SIDE_BY_SIDE)
    with ExitStack() as leaving, ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        users = [leaving.enter_context(User(postgres)) for _ in range(_SIDE_BY_SIDE)]
        return list(_figures(list(pool.map(lambda job: _cancelled(users, *job), plan))))


def _cancelled(users: list[User], how: str, delay: float) -> _Cancelled:
    user = users.pop()
    try:
        execution = user.start("endless", {"how": how})[0]
        time.sleep(delay)
        wished = time.monotonic()
        user.cancel(execution)
        status = user.ended_as(execution)
        return _Cancelled(how, status, time.monotonic() - wished, _living(execution))
    finally:
        users.append(user)


def _living(execution: UUID) -> int:
    mark, living = f"FLOWLEDGER_RUN={execution}".encode(), 0
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            living += mark in entry.read_bytes()
        except OSError:
            continue
    return living


def _figures(found: list[_Cancelled]) -> Iterator[Figure]:
    """A flow between steps ends as soon as it learns of the wish, so its end is the latest that the wish was seen."""
    ended_otherwise = sum(each.status != "cancelled" for each in found)
    survivors = sum(each.survivors for each in found)
    for name, kinds, most in (
        ("cancel wish known to the run", ("steps",), _MOST_VISIBLE_SECONDS),
        ("cancelled run dead, all phases", _HOW, _MOST_DEAD_SECONDS),
    ):
        seconds = [each.dead_seconds for each in found if each.how in kinds]
        p99 = percentile(seconds, 99)
        yield Figure(
            f"{name}, p99",
            f"{p99:.2f} s",
            f"{len(seconds)}: median {median(seconds):.2f}, most {max(seconds):.2f} s",
            target=f"<= {most:g} s",
            reached=p99 <= most,
        )
    yield Figure(
        "cancelled runs with another end, or a living process",
        f"{ended_otherwise} and {survivors}",
        target="0 and 0",
        reached=ended_otherwise == survivors == 0,
    )
