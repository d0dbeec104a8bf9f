"""What a project says about its flows, kept by a real worker: timeouts, concurrency, retries, crash loops, drains."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from tests.acceptance.product import PROJECT, Product, WorkerProcess, emptied, wait_for

pytestmark = pytest.mark.timeout(180)

SAID = """
[tool.flowledger.flows.slow]
timeout_seconds = "1s"
concurrency = 1

[tool.flowledger.flows.faulty]
retries = 1
retry_seconds = 0.1
crash_limit = 2

[tool.flowledger.flows.nowhere]
retries = 1
"""


@pytest.fixture(scope="module")
def product(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Product:
    project = tmp_path_factory.mktemp("project") / "hostile"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("__pycache__", ".flowledger"))
    for name in ("broken.py", "threads.py"):
        (project / "src/hostile" / name).unlink()
    with (project / "pyproject.toml").open("a") as file:
        file.write(SAID)
    return emptied(postgres, project)


@pytest.fixture(scope="module")
def worker(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    with product.worker(
        log=tmp_path_factory.mktemp("worker") / "log", slots=3, grace_seconds=0.5, poll_seconds=0.2, lease_seconds=4
    ) as worker:
        yield worker


def test_a_flows_own_timeout_ends_it(product: Product, worker: WorkerProcess) -> None:
    row = product.ended(product.kickoff("slow", seconds=60))
    assert (row["status"], row["error_type"]) == ("timeout", "Timeout")
    assert 900 < row["duration_ms"] < 5000


def test_an_executions_own_timeout_comes_before_its_flows(product: Product, worker: WorkerProcess) -> None:
    row = product.ended(product.kickoff("slow", timeout=20, seconds=2))
    assert row["status"] == "completed"


def test_a_flow_at_its_limit_waits_while_slots_are_free(product: Product, worker: WorkerProcess) -> None:
    both = [product.kickoff("slow", timeout=20, seconds=1) for _ in range(2)]
    first, second = sorted((product.ended(one) for one in both), key=lambda row: row["started_at"])
    assert second["started_at"] >= first["completed_at"]


def test_a_table_that_names_no_flow_is_warned_of(worker: WorkerProcess) -> None:
    assert any("flows.nowhere" in fact["warning"] for fact in worker.facts("project_warning"))


def test_a_failed_execution_is_tried_again_by_itself_as_often_as_its_project_says(
    product: Product, worker: WorkerProcess
) -> None:
    first = product.kickoff("faulty", how="raises")
    assert product.ended(first)["status"] == "failed"
    (retry,) = wait_for(lambda: _repeating(product, first))
    assert product.ended(retry)["status"] == "failed"
    assert _repeating(product, retry) == []


def test_a_crash_loop_pauses_the_flow_and_what_is_asked_for_waits(product: Product, worker: WorkerProcess) -> None:
    for _ in range(2):
        row = product.ended(product.kickoff("faulty", how="segfault"))
        assert row["error_type"] == "ProcessKilled"
    waiting = product.kickoff("faulty", how="raises")
    (status,) = [one for one in product.json("flows", "status") if one["flow_key"] == "faulty"]
    assert (status["paused_by"], status["waiting"]) == ("flowledger", 1)
    product.call("flows", "resume", "faulty")
    assert product.ended(waiting)["error_type"] != "ProcessKilled"


def test_what_nobody_takes_in_time_ends_as_timeout(product: Product, worker: WorkerProcess) -> None:
    product.call("flows", "pause", "good")
    row = product.json("run", "good", "--queue-timeout", "0.5s", "--detach")
    ended = product.ended(row["id"])
    assert (ended["status"], ended["error_type"]) == ("timeout", "QueueTimeout")
    product.call("flows", "resume", "good")


def test_a_mistake_in_the_projects_file_stops_a_worker_at_its_start_and_names_it(product: Product) -> None:
    file = product.project / "pyproject.toml"
    before = file.read_text()
    file.write_text(before + "\n[tool.flowledger.flows.good]\nretry = 1\n")
    try:
        done = product.run("worker")
    finally:
        file.write_text(before)
    assert done.returncode == 2
    assert "[tool.flowledger.flows.good] retry" in done.stderr


def test_a_changed_limit_counts_without_a_restart(product: Product, worker: WorkerProcess) -> None:
    file = product.project / "pyproject.toml"
    before = file.read_text()
    file.write_text(before + "\n[tool.flowledger.flows.good]\nconcurrency = 7\n")
    try:
        wait_for(
            lambda: product.sql(
                "select 1 from flowledger.flow_controls join crewai_flows on id = flow_id "
                "where flow_key = 'good' and concurrency = 7"
            ),
            seconds=60,
        )
    finally:
        file.write_text(before)


def test_a_drain_that_takes_too_long_stops_what_runs(product: Product, tmp_path: Path, worker: WorkerProcess) -> None:
    worker.end()
    with product.worker(
        log=tmp_path / "log", slots=1, grace_seconds=0.5, drain_seconds=1, lease_seconds=4, poll_seconds=0.2
    ) as draining:
        execution = product.kickoff("slow", timeout=60, seconds=60)
        product.running(execution)
        asked_at = time.monotonic()
        draining.signal(signal.SIGTERM)
        assert draining.wait() == 0
        assert time.monotonic() - asked_at < 15
    row = product.row(execution)
    assert (row["status"], row["error_type"]) == ("failed", "WorkerStopped")


def _repeating(product: Product, execution: object) -> list[object]:
    rows = product.sql("select execution_id from flowledger.reruns where of_execution = %s", execution)
    return [row["execution_id"] for row in rows]
