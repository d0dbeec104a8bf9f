"""The embedded Postgres crashes, and is stopped, under a worker that runs: both come back without anybody's hand."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.migrate import migrate
from flowledger.database.supervisor import Place
from tests.acceptance.product import PROJECT, Product, WorkerProcess, wait_for
from tests.survival.stage import at_rest, running

pytestmark = pytest.mark.timeout(120)

SLOTS = 2


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A server of its own: the session's is needed whole."""
    with EmbeddedPostgres.start(tmp_path_factory.mktemp("embedded")) as postgres:
        migrate(postgres.url("flowledger"))
        yield Product(postgres, PROJECT, uuid4())


@pytest.fixture(scope="module")
def worker(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    log = tmp_path_factory.mktemp("worker") / "log"
    with product.worker(log=log, slots=SLOTS, lease_seconds=20, grace_seconds=1, poll_seconds=1) as worker:
        yield worker


@pytest.fixture(autouse=True)
def nobody_is_started_again(worker: WorkerProcess) -> Iterator[None]:
    yield
    assert worker.process.poll() is None


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT], ids=["crash", "clean stop"])
def test_embedded_postgres_comes_back_under_a_worker(product: Product, by: signal.Signals) -> None:
    executions = running(product, SLOTS, seconds=3)
    waiting = [product.kickoff("good") for _ in range(3)]
    before = _postmaster(product)
    os.kill(before, by)
    wait_for(lambda: _postmaster(product) not in (0, before), seconds=30, what="another postmaster")
    wait_for(lambda: _answers(product), seconds=30, what="the database answers")
    fresh = product.kickoff("good")
    # An execution that was claimed while the answer was lost is nobody's until its lease ends; these were not.
    rows = at_rest(product, [*executions, *waiting, fresh], seconds=40)
    assert {row["status"] for row in rows} == {"completed"}


def _postmaster(product: Product) -> int:
    """Its pid as this process sees it; 0 while there is none."""
    try:
        return int((Path(Place(product.postgres.data_dir).cluster) / "postmaster.pid").read_text().split("\n")[0])
    except (OSError, ValueError):
        return 0


def _answers(product: Product) -> bool:
    import psycopg

    try:
        return product.sql("select 1 as one") == [{"one": 1}]
    except psycopg.OperationalError:
        return False
