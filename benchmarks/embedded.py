"""How soon the embedded Postgres takes connections: the first time, and in a directory that it knows."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg

from benchmarks.figures import Figure, median, spread
from benchmarks.stage import Stage
from flowledger.database.embedded import EmbeddedPostgres

_FIRST_STARTS = 3
_WARM_STARTS_EACH = 3
_MOST_FIRST_SECONDS, _MOST_WARM_SECONDS = 2.0, 0.5


def starts(stage: Stage) -> list[Figure]:
    first: list[float] = []
    warm: list[float] = []
    for turn in range(_FIRST_STARTS):
        directory = stage.directory / f"start-{turn}"
        first.append(_took(directory))
        warm += [_took(directory) for _ in range(_WARM_STARTS_EACH)]
    return [
        _figure("embedded Postgres, first start to first answer", first, _MOST_FIRST_SECONDS),
        _figure("embedded Postgres, warm start to first answer", warm, _MOST_WARM_SECONDS),
    ]


def _figure(name: str, seconds: list[float], most: float) -> Figure:
    took = median(seconds)
    return Figure(name, f"{took:.2f} s", spread(seconds, "s", 2), target=f"< {most:g} s", reached=took < most)


def _took(directory: Path) -> float:
    begun = time.monotonic()
    with (
        EmbeddedPostgres.start(directory) as postgres,
        psycopg.connect(postgres.url("flowledger_worker")) as connection,
    ):
        connection.execute("select 1")
        return time.monotonic() - begun
