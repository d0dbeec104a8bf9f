"""A worker that stands still for three leases in mid-run loses its run, and only that: one start, one end.

`FENCING_ROUNDS` says how often (3 when it is not set; `make chaos` asks for 50).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from tests.acceptance.product import Product, Row, WorkerProcess, emptied, wait_for
from tests.faults.test_kill_matrix import PROJECT, processes_of

ROUNDS = int(os.environ.get("FENCING_ROUNDS", "3"))
SIDE_BY_SIDE = 3
LEASE_SECONDS = 2.0
GRACE_SECONDS = 1.0
SLACK_SECONDS = 0.5
_NO_MARK = "a word that no command line holds"

pytestmark = pytest.mark.timeout(120 + 10 * ROUNDS)


@dataclass(frozen=True)
class Round:
    """What one stop of a worker led to. Seconds count from the stop."""

    execution: UUID
    starts: int
    last_beat_seconds: float
    gone_seconds: float
    reaped_seconds: float
    stale_answer: str
    row: Row
    transitions: list[Row]


@dataclass(frozen=True)
class Fencing:
    product: Product
    workers: list[WorkerProcess]
    directory: Path
    chance: random.Random

    def rounds(self, many: int) -> Iterator[Round]:
        """So many at once as leave one worker that does not stand still."""
        while many > 0:
            with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
                executions = [self._begun() for _ in range(min(many, SIDE_BY_SIDE))]
                yield from pool.map(
                    self._round, executions, [self.chance.uniform(0, LEASE_SECONDS) for _ in executions]
                )
            many -= SIDE_BY_SIDE

    def _begun(self) -> UUID:
        effects = self.directory / f"effects-{time.monotonic_ns()}"
        execution = self.product.kickoff("steady", effects=str(effects))
        self.product.running(execution)
        effects.rename(self._effects(execution))
        return execution

    def _effects(self, execution: UUID) -> Path:
        return self.directory / str(execution)

    def _round(self, execution: UUID, phase: float) -> Round:
        holder = str(self.product.holder(execution)["id"])
        worker = next(each for each in self.workers if each.id == holder)
        time.sleep(phase)
        stopped_at = time.clock_gettime(time.CLOCK_BOOTTIME)
        worker.signal(signal.SIGSTOP)
        try:
            gone = wait_for(lambda: not processes_of({str(execution): _NO_MARK})[str(execution)] and _since(stopped_at))
            self.product.ended(execution)
            reaped = _since(stopped_at)
            time.sleep(max(0.0, 3 * LEASE_SECONDS - _since(stopped_at)))
        finally:
            worker.signal(signal.SIGCONT)
        ended = wait_for(
            lambda: [fact for fact in worker.facts("execution_ended") if fact["execution"] == str(execution)],
            what="the stopped worker ends its run",
        )
        beats = [line.split() for line in self._effects(execution).read_text().splitlines()]
        return Round(
            execution,
            starts=sum(word == "start" for word, *_ in beats),
            last_beat_seconds=float(beats[-1][2]) - stopped_at,
            gone_seconds=gone,
            reaped_seconds=reaped,
            stale_answer=ended[0]["answer"],
            row=self.product.row(execution),
            transitions=self.product.sql(
                "select from_status, to_status, actor, fence from flowledger.transitions where execution_id = %s "
                "order by seq",
                execution,
            ),
        )


def _since(moment: float) -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) - moment


@pytest.fixture(scope="module")
def fencing(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fencing]:
    directory = tmp_path_factory.mktemp("fencing")
    project = directory / "project"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("__pycache__", ".flowledger"))
    product = emptied(postgres, project)
    settings = {
        "lease_seconds": LEASE_SECONDS,
        "grace_seconds": GRACE_SECONDS,
        "poll_seconds": 0.5,
        "slots": 1,
        "import_seconds": 120,
    }
    with ExitStack() as leaving:
        workers = [
            leaving.enter_context(product.worker(log=directory / f"worker-{number}.log", ready=False, **settings))
            for number in range(SIDE_BY_SIDE + 1)
        ]
        for worker in workers:
            worker.wait_until_ready()
        yield Fencing(product, workers, directory, random.Random(0))


def test_worker_that_stands_still_for_three_leases_loses_its_run_and_no_more(fencing: Fencing) -> None:
    rounds = list(fencing.rounds(ROUNDS))
    assert len(rounds) == ROUNDS
    for each in rounds:
        steps = [(step["from_status"], step["to_status"], step["actor"]) for step in each.transitions]
        assert steps[1:] == [("pending", "running", "worker"), ("running", "failed", "reaper")], each
        assert each.starts == 1, each
        assert each.row["error_type"] == "WorkerLost", each
        assert each.stale_answer == "lost", each
        assert each.last_beat_seconds <= LEASE_SECONDS + SLACK_SECONDS, each
        assert each.gone_seconds <= LEASE_SECONDS + SLACK_SECONDS, each
        assert each.reaped_seconds <= LEASE_SECONDS + GRACE_SECONDS + 5, each
    latest = max(each.gone_seconds for each in rounds)
    print(f"\n{ROUNDS} rounds: the child was gone {latest:.2f} s after the stop at the latest")  # noqa: T201


def test_workers_that_stood_still_go_on_serving(fencing: Fencing) -> None:
    assert all(worker.process.poll() is None for worker in fencing.workers)
    execution = fencing.product.kickoff("steady", effects=str(fencing.directory / "after"))
    fencing.product.running(execution)
    with fencing.product.as_user(fencing.product.user) as me:
        me.execute("select flowledger.cancel(%s)", (execution,))
    assert fencing.product.ended(execution)["status"] == "cancelled"
