"""A worker whose statements go through the pooler, and whose LISTEN goes past it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.product import PROJECT, Product, WorkerProcess, emptied, wait_for
from tests.pgbouncer.conftest import Pooled

pytestmark = pytest.mark.timeout(120)

POLL_SECONDS = 30


@pytest.fixture(scope="module")
def product(pooled: Pooled) -> Product:
    return emptied(pooled, PROJECT)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def worker(product: Product, pooled: Pooled, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    with product.worker(
        log=tmp_path_factory.mktemp("worker") / "log",
        database_url=pooled.url("flowledger_worker"),
        listen_url=pooled.behind.url("flowledger_worker"),
        slots=2,
        grace_seconds=1,
        lease_seconds=40,
        poll_seconds=POLL_SECONDS,
    ) as worker:
        yield worker


def test_executions_are_started_by_notification_and_end(product: Product, worker: WorkerProcess) -> None:
    wait_for(lambda: product.sql("select 1 from flowledger.workers where waiting"), what="the worker waits")
    for _ in range(10):
        row = product.ended(product.kickoff("good"), seconds=POLL_SECONDS / 2)
        assert (row["status"], row["output_state"]["result"]["said"]) == ("completed", "one")
    assert worker.process.poll() is None


def test_cancel_wish_reaches_a_running_flow_long_before_the_next_renewal(
    product: Product, worker: WorkerProcess
) -> None:
    execution = product.kickoff("slow", seconds=60)
    product.running(execution)
    with product.as_user(product.user) as me:
        me.execute("select flowledger.cancel(%s)", (execution,))
    row = product.ended(execution, seconds=5)
    assert row["status"] == "cancelled"


def test_commands_work_through_the_pooler(product: Product, pooled: Pooled, worker: WorkerProcess) -> None:
    url = pooled.url("flowledger_api")
    done = product.call("run", "good", "--json", database_url=url)
    assert done.returncode == 0, done.stderr
    assert product.call("executions", "list", "--json", database_url=url).returncode == 0


def test_worker_without_a_direct_address_still_finds_its_work_by_polling(
    product: Product, pooled: Pooled, tmp_path: Path
) -> None:
    """LISTEN through a pooler hears nothing; it must cost latency only."""
    with product.worker(
        log=tmp_path / "log", database_url=pooled.url("flowledger_worker"), slots=2, poll_seconds=1
    ) as deaf:
        rows = [product.ended(one, seconds=20) for one in [product.kickoff("slow", seconds=1) for _ in range(4)]]
        assert {row["status"] for row in rows} == {"completed"}
        assert deaf.process.poll() is None
