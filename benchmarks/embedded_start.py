"""How long the embedded Postgres takes: a first start, a warm one, joining, leaving, and back after a kill -9.

`python -m benchmarks.embedded_start [ROUNDS]` prints medians in seconds. Ready means: a login succeeds.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TypeVar

import psycopg

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.supervisor import Place

T = TypeVar("T")
REACH = {"first start": 2.0, "warm start": 0.5, "join": None, "last leave": None, "after kill -9": 3.0}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seconds: dict[str, list[float]] = {name: [] for name in REACH}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as directory:
            for name, took in one_round(Path(directory, "data")):
                seconds[name].append(took)
    print(f"{'':16}{'median':>8}{'most':>8}{'reach':>8}")
    for name, reach in REACH.items():
        print(f"{name:16}{median(seconds[name]):8.3f}{max(seconds[name]):8.3f}{reach or '':>8}")


def one_round(data_dir: Path) -> list[tuple[str, float]]:
    took, postgres = timed(lambda: started(data_dir))
    found = [("first start", took), ("last leave", timed(postgres.close)[0])]
    took, postgres = timed(lambda: started(data_dir))
    found.append(("warm start", took))
    took, other = timed(lambda: started(data_dir))
    found.append(("join", took))
    other.close()
    os.kill(int((Place(data_dir).cluster / "postmaster.pid").read_text().split("\n")[0]), signal.SIGKILL)
    found.append(("after kill -9", timed(lambda: log_in_again(postgres))[0]))
    postgres.close()
    return found


def started(data_dir: Path) -> EmbeddedPostgres:
    postgres = EmbeddedPostgres.start(data_dir)
    psycopg.connect(postgres.url("flowledger")).close()
    return postgres


def log_in_again(postgres: EmbeddedPostgres) -> None:
    while True:
        with suppress(psycopg.OperationalError), psycopg.connect(postgres.url("flowledger_worker")) as connection:
            connection.execute("select 1")
            return
        time.sleep(0.01)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    began = time.monotonic()
    result = work()
    return time.monotonic() - began, result


if __name__ == "__main__":
    main()
