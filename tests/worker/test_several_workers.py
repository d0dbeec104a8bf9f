"""Two workers, short leases: what one loses, another ends; and how a worker leaves."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from flowledger.database.embedded import EmbeddedPostgres
from tests.acceptance.product import PROJECT, Product, WorkerProcess, emptied, wait_for

pytestmark = pytest.mark.timeout(180)

LEASE_SECONDS = 2.0
GRACE_SECONDS = 1.0
REAP_SECONDS = LEASE_SECONDS + GRACE_SECONDS + 5


@pytest.fixture(scope="module")
def product(postgres: EmbeddedPostgres) -> Product:
    return emptied(postgres, PROJECT)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def workers(product: Product, logs: Path) -> Iterator[list[WorkerProcess]]:
    """Two that load side by side; a test that ends one takes it from the list."""
    with ExitStack() as stack:
        both = [
            stack.enter_context(
                product.worker(
                    log=logs / name,
                    ready=False,
                    slots=2,
                    lease_seconds=LEASE_SECONDS,
                    grace_seconds=GRACE_SECONDS,
                    poll_seconds=0.5,
                )
            )
            for name in ("one", "other")
        ]
        for worker in both:
            worker.wait_until_ready()
        yield both


def test_stopped_worker_loses_its_lease_its_child_dies_and_its_late_outcome_is_refused(
    product: Product, workers: list[WorkerProcess]
) -> None:
    execution = product.kickoff("slow", seconds=60, mark="of-the-stopped")
    product.running(execution)
    holder = _holder(product, workers, execution)
    holder.signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    try:
        row = product.ended(execution)
        assert time.monotonic() - stopped_at < REAP_SECONDS
        assert (row["status"], row["error_type"]) == ("failed", "WorkerLost")
        assert product.sql("select actor from flowledger.transitions where execution_id = %s and to_status = 'failed'",
                           execution) == [{"actor": "reaper"}]  # fmt: skip
        wait_for(lambda: not _processes_with("of-the-stopped"), seconds=3, what="the child's processes are gone")
    finally:
        holder.signal(signal.SIGCONT)
    (late,) = wait_for(lambda: [end for end in holder.facts("execution_ended") if end["execution"] == str(execution)])
    assert late["answer"] == "lost"
    assert product.row(execution) == row, "a terminal row is frozen"
    assert holder.process.poll() is None


def test_stopped_worker_that_comes_back_works_on(product: Product, workers: list[WorkerProcess]) -> None:
    for execution in [product.kickoff("slow", seconds=0.5) for _ in range(4)]:
        assert product.ended(execution)["status"] == "completed"


def test_killed_worker_leaves_a_failed_execution_not_a_running_one_and_no_process(
    product: Product, workers: list[WorkerProcess]
) -> None:
    execution = product.kickoff("slow", seconds=60, mark="of-the-killed")
    product.running(execution)
    holder = _holder(product, workers, execution)
    family = holder.descendants()
    assert family
    holder.signal(signal.SIGKILL)
    killed_at = time.monotonic()
    wait_for(
        lambda: not _processes_with("of-the-killed") and not any(_lives(process) for process in family),
        seconds=2,
        what="no process of the killed worker's lives",
    )
    row = product.ended(execution)
    assert time.monotonic() - killed_at < REAP_SECONDS
    assert (row["status"], row["error_type"]) == ("failed", "WorkerLost")
    assert "not known" in row["error_message"]
    workers.remove(holder)


def test_terminated_worker_finishes_what_runs_claims_nothing_more_and_exits_0(
    product: Product, workers: list[WorkerProcess]
) -> None:
    (worker,) = workers
    running = product.kickoff("slow", seconds=3)
    product.running(running)
    worker.signal(signal.SIGTERM)
    wait_for(lambda: worker.facts("worker_draining"))
    later = product.kickoff("good")
    assert worker.wait() == 0
    assert product.row(running)["status"] == "completed"
    assert product.row(later)["status"] == "pending"
    assert product.sql("select 1 from flowledger.workers where id = %s", worker.id) == []
    workers.remove(worker)


def test_second_signal_stops_now_and_says_so_in_the_row(product: Product, logs: Path) -> None:
    with product.worker(log=logs / "third", slots=2, lease_seconds=10, grace_seconds=GRACE_SECONDS) as worker:
        family = worker.descendants()
        execution = product.kickoff("slow", seconds=60, mark="of-the-hurried")
        product.running(execution)
        worker.signal(signal.SIGTERM)
        wait_for(lambda: worker.facts("worker_draining"))
        assert worker.process.poll() is None
        assert product.row(execution)["status"] == "running"
        worker.signal(signal.SIGTERM)
        assert worker.wait(10) == 0
        row = product.row(execution)
        assert (row["status"], row["error_type"]) == ("failed", "WorkerStopped")
        assert not _processes_with("of-the-hurried")
        assert not any(_lives(process) for process in family)


def _holder(product: Product, workers: list[WorkerProcess], execution: object) -> WorkerProcess:
    pid = product.holder(execution)["pid"]
    return next(worker for worker in workers if worker.pid == pid)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _processes_with(mark: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if mark in process.cmdline():
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found
