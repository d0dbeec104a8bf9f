"""What a worker costs while nothing is to be done."""

from __future__ import annotations

import time

import psutil
import psycopg

from benchmarks.figures import Figure, median, spread
from benchmarks.stage import Stage

# Every rhythm of an idle worker fits into this time without a rest. Autovacuum, which counts too, stays out of the
# median of three.
_SECONDS, _WINDOWS = 15.0, 3
_MOST_STATEMENTS = 1.0
_MOST_CPU_PERCENT = 1.0


def worker(stage: Stage) -> list[Figure]:
    process = psutil.Process(stage.worker.pid)
    time.sleep(1)
    rates, shares = [], []
    with psycopg.connect(stage.served.url("flowledger"), autocommit=True) as looking:
        for _ in range(_WINDOWS):
            statements, cpu = _statements(looking), _cpu(process)
            time.sleep(_SECONDS)
            # The look at the end is in the next window.
            rates.append((_statements(looking) - statements - 1) / _SECONDS)
            shares.append((_cpu(process) - cpu) / _SECONDS * 100)
    return [
        Figure(
            "idle worker, statements/s",
            f"{median(rates):.2f}/s",
            spread(rates, "/s", 2),
            target=f"< {_MOST_STATEMENTS:g}/s",
            reached=median(rates) < _MOST_STATEMENTS,
        ),
        Figure(
            "idle worker and its template, CPU",
            f"{median(shares):.2f} % of a core",
            spread(shares, "%", 2),
            target=f"< {_MOST_CPU_PERCENT:g} %",
            reached=median(shares) < _MOST_CPU_PERCENT,
        ),
    ]


def _statements(looking: psycopg.Connection[tuple[int]]) -> int:
    """Every statement of an idle worker is a transaction."""
    row = looking.execute(
        "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"
    ).fetchone()
    assert row is not None
    return int(row[0])


def _cpu(process: psutil.Process) -> float:
    return sum(sum(p.cpu_times()[:2]) for p in (process, *process.children(recursive=True)))
