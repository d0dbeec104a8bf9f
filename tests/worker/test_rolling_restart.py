"""One worker is drained and another takes its place, again and again, while executions are started without a pause."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from tests.acceptance.product import PROJECT, Product, WorkerProcess, emptied, wait_for

pytestmark = pytest.mark.timeout(300)

SETTINGS = {"slots": 3, "lease_seconds": 10, "grace_seconds": 1, "poll_seconds": 0.5}


def test_a_rolling_restart_under_load_loses_and_fails_nothing(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    product = emptied(postgres, PROJECT)
    with ExitStack() as stack:

        def another(name: str) -> WorkerProcess:
            return stack.enter_context(product.worker(log=tmp_path / name, ready=False, **SETTINGS))

        serving, generations = another("0"), []
        serving.wait_until_ready()
        with _births(product) as born:
            replacement = another("1")
            for following in ("2", None):
                replacement.wait_until_ready()
                slow = product.kickoff("slow", seconds=4)
                born.append(slow)
                product.running(slow)
                holder = str(product.holder(slow)["id"])
                before = len(born)
                # It loads while the one before it drains.
                after = another(following) if following else replacement
                serving.signal(signal.SIGTERM)
                wait_for(lambda: len(born) >= before + 5, what="executions are started while one drains")  # noqa: B023
                assert serving.wait(60) == 0
                generations.append(serving.id)
                assert product.row(slow)["status"] in ("completed", "running"), "it was given its time"
                assert product.row(slow)["status"] == "completed" or holder != serving.id
                serving, replacement = replacement, after
        rows = [product.ended(execution, seconds=120) for execution in born]
        generations.append(serving.id)
    assert Counter((row["status"], row["error_type"]) for row in rows) == {("completed", None): len(born)}
    assert {row["metadata"]["worker_id"] for row in rows} == set(generations), "each had its share"
    assert len(rows) == product.rows(), "nobody else started anything, no retry was needed"
    starts = product.sql("select count(*) as n from flowledger.transitions where to_status = 'running'")
    assert starts == [{"n": len(rows)}], "each started once"


@contextmanager
def _births(product: Product) -> Iterator[list[UUID]]:
    """Somebody starts executions until the block ends; what goes wrong there goes wrong here."""
    born: list[UUID] = []
    wrong: list[BaseException] = []
    stopped = threading.Event()

    def start() -> None:
        try:
            while not stopped.wait(0.3):
                born.append(product.kickoff("good", given=len(born)))
        except BaseException as error:
            wrong.append(error)

    starting = threading.Thread(target=start)
    starting.start()
    try:
        yield born
    finally:
        stopped.set()
        starting.join(30)
    assert wrong == []
