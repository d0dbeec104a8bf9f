"""Whatever a flow does, its row tells the truth soon after, and the worker goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.acceptance.product import Product, Row, WorkerProcess

pytestmark = pytest.mark.timeout(240)

FAILURES: dict[str, tuple[str, str]] = {
    "raises": ("hostile.faults.NoAnswer", "nobody knows"),
    "sys.exit": ("ProcessExited", "exit status 3"),
    "os._exit": ("ProcessExited", "exit status 4"),
    "os.abort": ("ProcessKilled", "SIGABRT"),
    "segfault": ("ProcessKilled", "SIGSEGV"),
    "recursion": ("RecursionError", "maximum recursion depth"),
    "generator": ("TypeError", ""),
    "nul in error": ("ValueError", "b"),
}
RESULTS: dict[str, Any] = {
    "bytes": {"__bytes__": "/wA="},
    "nan": [None, None],
    "nul": "ab",
    "surrogate": "a\ufffdb",
    "closes stdout": "still here",
    "prints 100 MB": "printed",
    "wanders": "/",
}
OTHERS = ("lock", "50 MB", "deep")


class Started:
    """One execution for each fault, all at once, and the file with the time of its end."""

    def __init__(self, product: Product, marks: Path) -> None:
        self._product = product
        self._marks = marks
        self._ids: dict[str, UUID] = {
            how: product.kickoff("faulty", how=how, mark=str(marks / how)) for how in (*FAILURES, *RESULTS, *OTHERS)
        }

    def row(self, how: str) -> Row:
        return self._product.ended(self._ids[how], seconds=120)

    def logs(self, how: str) -> str:
        return self._product.logs(self._ids[how])

    def ended_at(self, how: str) -> float:
        return float((self._marks / how).read_text())


@pytest.fixture(scope="module")
def started(product: Product, worker: WorkerProcess, tmp_path_factory: pytest.TempPathFactory) -> Started:
    return Started(product, tmp_path_factory.mktemp("marks"))


@pytest.fixture(autouse=True, scope="module")
def worker_lives_and_runs_a_good_flow_afterwards(product: Product, worker: WorkerProcess) -> Iterator[None]:
    yield
    assert worker.process.poll() is None
    row = product.ended(product.kickoff("good", given=7))
    assert (row["status"], row["output_state"]["result"]) == ("completed", {"said": "one", "given": 7})
    assert row["metadata"]["worker_id"] == worker.id


@pytest.mark.parametrize("how", FAILURES)
def test_flow_that_dies_is_failed_with_what_killed_it(started: Started, how: str) -> None:
    row = started.row(how)
    error_type, message = FAILURES[how]
    assert (row["status"], row["error_type"]) == ("failed", error_type), row
    assert message in row["error_message"]
    assert row["completed_at"] >= row["started_at"]
    assert row["duration_ms"] >= 0


@pytest.mark.parametrize("how", ["raises", "recursion", "sys.exit"])
def test_stack_names_the_users_file_and_line(product: Product, started: Started, how: str) -> None:
    stack = started.row(how)["error_stack"]
    source = product.project / "src/hostile/faults.py"
    line = next(n for n, text in enumerate(source.read_text().splitlines(), 1) if "return FAULTS" in text)
    assert f'{source}", line {line}' in stack
    assert "site-packages" not in stack


@pytest.mark.parametrize("how", RESULTS)
def test_result_that_postgres_would_refuse_completes_in_a_shape_it_takes(started: Started, how: str) -> None:
    row = started.row(how)
    assert row["status"] == "completed", row
    assert row["output_state"]["result"] == RESULTS[how]


@pytest.mark.parametrize("how", OTHERS)
def test_result_beyond_every_bound_completes_within_the_bound(started: Started, how: str) -> None:
    row = started.row(how)
    assert row["status"] == "completed", row
    assert len(json.dumps(row["output_state"])) <= 1_048_576


def test_huge_output_keeps_its_true_size_and_hash(started: Started) -> None:
    output = started.row("50 MB")["output_state"]
    assert output["truncated"] is True
    assert output["bytes"] > 50_000_000
    assert len(output["sha256"]) == 64


@pytest.mark.parametrize("how", sorted({*FAILURES, *RESULTS, "lock"} - {"os._exit", "os.abort", "segfault"}))
def test_row_is_terminal_within_two_seconds_of_the_flows_end(started: Started, how: str) -> None:
    assert started.row(how)["completed_at"].timestamp() - started.ended_at(how) < 2


def test_hundred_megabytes_of_print_are_kept_bounded_and_out_of_the_workers_log(
    started: Started, worker: WorkerProcess
) -> None:
    row, text = started.row("prints 100 MB"), started.logs("prints 100 MB")
    assert text.startswith("HEAD\n")
    assert text.endswith("TAIL\n")
    assert len(text) < 1_048_576 + 1000
    assert row["metadata"]["log_bytes_dropped"] > 90_000_000
    own = worker.log.read_text()
    assert "yyyyyyyy" not in own
    assert "HEAD" not in own


def test_flow_of_a_module_that_starts_threads_runs_in_a_fresh_interpreter(product: Product, started: Started) -> None:
    row = product.ended(product.kickoff("restless"), seconds=60)
    assert (row["status"], row["metadata"]["start"]) == ("completed", "fresh interpreter")


def test_module_that_raises_at_import_is_told_and_the_others_are_served(worker: WorkerProcess) -> None:
    (told,) = worker.facts("module_broken")
    assert "this module is broken" in told["error"]
    assert {"good", "faulty", "restless", "required"} <= set(worker.facts("worker_ready")[0]["flows"])


def test_missing_field_of_the_state_fails_the_execution_and_names_it(product: Product, started: Started) -> None:
    row = product.ended(product.kickoff("required", amount=2))
    assert (row["status"], row["error_type"]) == ("failed", "InvalidInput")
    assert "customer" in row["error_message"]


@pytest.mark.parametrize(
    "hostile", ["repeat('[', 3000) || repeat(']', 3000)", "repeat('9', 6000)"], ids=["deep", "long number"]
)
def test_input_that_python_cannot_read_does_not_stop_the_worker(
    product: Product, started: Started, hostile: str
) -> None:
    with product.as_user(product.user) as connection:
        row = connection.execute(
            f"select id from flowledger.kickoff('good', ('{{\"given\": ' || {hostile} || '}}')::jsonb)".encode()
        ).fetchone()
    assert row is not None
    ended = product.ended(row["id"])
    assert ended["status"] in ("completed", "failed")
    assert ended["error_type"] in (None, "InvalidInput")
    assert product.run("executions", "show", row["id"], "--json").returncode == 0


def test_every_row_has_the_facts_of_its_run(product: Product, started: Started, worker: WorkerProcess) -> None:
    row = started.row("wanders")
    assert row["executed_by"] == product.user
    assert row["execution_mode"] == "manual"
    assert row["execution_key"].startswith("faulty-")
    assert row["metadata"].keys() >= {
        "crewai_version", "flow_version", "host", "exit_status", "peak_memory_bytes", "worker_id", "isolation"
    }  # fmt: skip
    assert row["metadata"]["peak_memory_bytes"] > 1_000_000
    steps = product.sql(
        "select from_status, to_status, actor from flowledger.transitions where execution_id = %s order by seq",
        row["id"],
    )
    assert [(step["from_status"], step["to_status"]) for step in steps] == [
        (None, "pending"),
        ("pending", "running"),
        ("running", "completed"),
    ]
    assert [step["actor"] for step in steps] == [str(product.user), "worker", "worker"]
