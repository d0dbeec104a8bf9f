"""Machines whose clocks are wrong, and machines that sleep: the database's clock and the fence decide."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.acceptance.product import Product, WorkerProcess, wait_for
from tests.survival.conftest import GRACE_SECONDS, LEASE_SECONDS, POLL_SECONDS, SLOTS, Distant
from tests.survival.stage import NetworkPostgres, at_rest, running, works_again

pytestmark = pytest.mark.timeout(120)

WRONG_CLOCK = Path(__file__).parent / "wrong_clock"
WRONG_BY_SECONDS = 600
REAPED_SECONDS = LEASE_SECONDS + GRACE_SECONDS + 5


def test_suspended_worker_wakes_to_find_its_executions_ended_by_another(
    product: Product, workers: list[Distant]
) -> None:
    executions = running(product, 2 * SLOTS, seconds=60)
    sleeper = workers[0].worker
    its_own = [one for one in executions if product.holder(one)["pid"] == sleeper.pid]
    assert len(its_own) == SLOTS
    with _suspended(sleeper):
        rows = at_rest(product, its_own, seconds=REAPED_SECONDS)
        assert {row["error_type"] for row in rows} == {"WorkerLost"}
    for execution in its_own:
        (late,) = wait_for(lambda execution=execution: _answers(sleeper, str(execution)))
        assert late["answer"] == "lost"
    assert at_rest(product, its_own, seconds=1) == rows, "frozen"
    _cancel(product, executions)
    works_again(product, SLOTS)


def test_suspended_laptop_with_nobody_to_reap_ends_what_ran_once_it_wakes(
    product: Product, workers: list[Distant]
) -> None:
    executions = running(product, 2 * SLOTS, seconds=60)
    with _suspended(*(distant.worker for distant in workers)):
        # Longer than any lease: nothing can be observed meanwhile, since nobody is awake.
        time.sleep(LEASE_SECONDS + GRACE_SECONDS + 1)
        assert {product.row(one)["status"] for one in executions} == {"running"}
    rows = at_rest(product, executions, seconds=10)
    assert {row["error_type"] for row in rows} <= {"WorkerLost", "LeaseLost"}
    works_again(product, SLOTS)


def test_workers_whose_clocks_are_twenty_minutes_apart_share_one_ledger(
    product: Product, network: NetworkPostgres, workers: list[Distant], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's own workers look away, so that only clocks that are wrong work and reap."""
    with ExitStack() as stack:
        wrong = []
        for by in (WRONG_BY_SECONDS, -WRONG_BY_SECONDS):
            monkeypatch.setenv("PYTHONPATH", str(WRONG_CLOCK))
            monkeypatch.setenv("WRONG_BY", str(by))
            settings = {"slots": SLOTS, "lease_seconds": LEASE_SECONDS, "grace_seconds": GRACE_SECONDS}
            url = network.url("flowledger_worker")
            started = product.worker(
                log=tmp_path / str(by), ready=False, database_url=url, poll_seconds=POLL_SECONDS, **settings
            )
            wrong.append(stack.enter_context(started))
        for worker in wrong:
            worker.wait_until_ready()
            assert _clock_is_off(worker), "the clock is wrong indeed"
        stack.enter_context(_suspended(*(distant.worker for distant in workers)))
        # Longer than a lease: by a wrong clock every one of them would be long dead, or would never be.
        executions = running(product, 2 * SLOTS, seconds=1.5 * LEASE_SECONDS)
        rows = at_rest(product, executions, seconds=20)
        assert {row["status"] for row in rows} == {"completed"}
        assert all(1000 * LEASE_SECONDS < row["duration_ms"] < 20_000 for row in rows)
        timed_out = product.ended(product.kickoff("slow", timeout=1, seconds=60))
        assert timed_out["status"] == "timeout"
        assert 1000 <= timed_out["duration_ms"] < 6000

        orphans = running(product, 2 * SLOTS, seconds=60)
        lost = [one for one in orphans if product.holder(one)["pid"] == wrong[0].pid]
        wrong[0].signal(signal.SIGKILL)
        killed_at = time.monotonic()
        assert {row["error_type"] for row in at_rest(product, lost, seconds=REAPED_SECONDS)} == {"WorkerLost"}
        assert time.monotonic() - killed_at > LEASE_SECONDS / 2, "not before its time either"
        _cancel(product, orphans)
        steps = product.sql("select count(*) as n from flowledger.transitions where at > clock_timestamp()")
        assert steps == [{"n": 0}]
    works_again(product, SLOTS)


@contextmanager
def _suspended(*workers: WorkerProcess) -> Iterator[None]:
    """Worker, template and children, as a machine that sleeps has them."""
    sleeping = [process for worker in workers for process in (psutil.Process(worker.pid), *worker.descendants())]
    for process in sleeping:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in reversed(sleeping):
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _cancel(product: Product, executions: list[object]) -> None:
    with product.as_user(product.user) as me:
        for execution in executions:
            me.execute("select flowledger.cancel(%s)", (execution,))
    at_rest(product, executions, seconds=20)


def _answers(worker: WorkerProcess, execution: str) -> list[dict[str, object]]:
    return [end for end in worker.facts("execution_ended") if end["execution"] == execution]


def _clock_is_off(worker: WorkerProcess) -> bool:
    from datetime import UTC, datetime

    told = datetime.fromisoformat(str(worker.facts("worker_ready")[0]["timestamp"]))
    return abs((datetime.now(UTC) - told).total_seconds()) > WRONG_BY_SECONDS / 2
