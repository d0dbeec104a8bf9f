"""`flowledger run` while a worker is at work: it records, watches, and exits by the outcome."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from tests.acceptance.product import Product, WorkerProcess, command, wait_for

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("worker")]


def test_running_worker_does_the_running(product: Product, worker: WorkerProcess) -> None:
    execution = product.json("run", "good", "-i", "given=7")
    assert execution["status"] == "completed"
    assert execution["metadata"]["worker_id"] == worker.id
    assert execution["executed_by"] == str(product.user)
    assert execution["output_state"]["result"] == {"said": "one", "given": 7}


def test_inputs_come_in_every_form_and_pairs_win(product: Product, tmp_path: Path) -> None:
    file = tmp_path / "inputs.json"
    file.write_text('{"customer": "of the file", "amount": 3}')
    text = tmp_path / "customer.txt"
    text.write_text("of a file")
    for arguments, stdin, expected in (
        (["-i", "customer=Ada", "-i", "amount=2", "-i", "express=true"], None, "Ada 2 True"),
        (["--set", "customer=Ada"], None, "Ada 1 False"),
        (["-i", "customer=Ada", "-i", "amount:=4"], None, "Ada 4 False"),
        (["-i", f"customer=@{text}"], None, "of a file 1 False"),
        (["--json-input", '{"customer": "of JSON"}'], None, "of JSON 1 False"),
        (["--input", file], None, "of the file 3 False"),
        (["--input", "-"], '{"customer": "of stdin"}', "of stdin 1 False"),
        (["--input", file, "-i", "amount=9"], None, "of the file 9 False"),
    ):
        done = product.call("run", "required", *arguments, stdin=stdin)
        assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["-i", "customer=Ada", "-i", "amont=2"], "amont"),
        (["-i", "customer=Ada", "-i", "amount=many"], "amount"),
        (["-i", "amount=2"], "customer"),
        (["--json-input", "[1]"], "--json-input"),
        (["--json-input", "{"], "--json-input"),
        (["--json-input", "{}", "--input", "-"], "--input"),
        (["--input", "/nowhere.json"], "--input"),
        (["-i", "customer"], "customer"),
        (["-i", "customer=Ada", "--timeout", "soon"], "--timeout"),
        (["-i", "customer=Ada", "--timeout", "0"], "timeout"),
    ],
)
def test_wrong_input_names_the_field_exits_2_and_leaves_no_row(
    product: Product, arguments: list[object], field: str
) -> None:
    before = product.rows()
    done = product.call("run", "required", *arguments, "--json")
    assert done.returncode == 2, done.stderr
    error = json.loads(done.stderr)["error"]
    assert error["code"] == "invalid_input"
    assert field in error["message"]
    assert done.stdout == ""
    assert product.rows() == before


def test_failed_execution_exits_3_and_shows_why(product: Product) -> None:
    done = product.run("run", "faulty", "-i", "how=raises")
    assert done.returncode == 3
    assert "hostile.faults.NoAnswer: nobody knows" in done.stderr
    assert done.stdout == ""


def test_failed_execution_under_json_is_still_one_document(product: Product) -> None:
    done = product.run("run", "faulty", "-i", "how=raises", "--json")
    assert (done.returncode, json.loads(done.stdout)["error_type"]) == (3, "hostile.faults.NoAnswer")


def test_timeout_exits_7(product: Product) -> None:
    done = product.run("run", "slow", "--timeout", "500ms", "--json")
    assert (done.returncode, json.loads(done.stdout)["status"]) == (7, "timeout")


def test_execution_cancelled_by_somebody_exits_6(product: Product) -> None:
    running = _start(product, "run", "slow", "-i", "seconds=60", "--json")
    (row,) = wait_for(
        lambda: product.sql("select id from crewai_flow_executions where status = 'running'"), what="it runs"
    )
    assert product.json("executions", "cancel", row["id"], "--reason", "enough") == {str(row["id"]): "wished"}
    stdout, _ = running.communicate(timeout=20)
    assert (running.returncode, json.loads(stdout)["error_message"]) == (6, "enough")


def test_detached_run_prints_the_id_and_leaves_it_to_the_worker(product: Product, worker: WorkerProcess) -> None:
    done = product.run("run", "good", "--detach")
    assert done.returncode == 0
    row = product.ended(done.stdout.strip())
    assert (row["status"], row["metadata"]["worker_id"]) == ("completed", worker.id)


def test_meeting_is_kept_with_the_row(product: Product) -> None:
    meeting = uuid4()
    assert product.json("run", "good", "--meeting", meeting)["board_meeting_id"] == str(meeting)


def test_piped_run_prints_one_line_for_each_step_and_the_result_alone_on_stdout(product: Product) -> None:
    done = product.run("run", "good")
    assert json.loads(done.stdout) == {"said": "one", "given": None}
    assert "✓ first" in done.stderr
    assert "✓ second" in done.stderr
    assert "completed" in done.stderr


def test_interrupted_run_leaves_an_execution_of_another_worker_going(product: Product) -> None:
    running = _start(product, "run", "slow", "-i", "seconds=3")
    (row,) = wait_for(
        lambda: product.sql("select id from crewai_flow_executions where status = 'running'"), what="it runs"
    )
    product.running(row["id"])
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=10)
    assert running.returncode == 130
    assert product.ended(row["id"])["status"] == "completed"


def _start(product: Product, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=product.environment(),
    )
