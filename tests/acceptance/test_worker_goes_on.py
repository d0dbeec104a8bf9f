"""What may happen around a worker while it works: wishes, lost connections, changed and broken sources, kills."""

from __future__ import annotations

import os
import signal
import time
from uuid import UUID

import psutil
import pytest

from tests.acceptance.product import Product, WorkerProcess, wait_for

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("worker")]

GRACE_SECONDS = 1
POLL_SECONDS = 1


def test_cancel_wish_reaches_a_running_flow_within_a_second(product: Product) -> None:
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    execution = product.kickoff("slow", seconds=60, mark=mark)
    product.running(execution)
    assert _processes_with(mark), "the flow has left a process"
    with product.as_user(product.user) as me:
        me.execute("select flowledger.cancel(%s, 'enough')", (execution,))
    row = product.ended(execution)
    wished = product.sql("select wished_at from flowledger.cancel_wishes where execution_id = %s", execution)
    assert (row["status"], row["error_type"], row["error_message"]) == ("cancelled", "Cancelled", "enough")
    assert (row["completed_at"] - wished[0]["wished_at"]).total_seconds() < 1 + GRACE_SECONDS
    wait_for(lambda: not _processes_with(mark), seconds=2)


def test_pending_execution_is_cancelled_at_once_and_never_runs(product: Product) -> None:
    held = [product.kickoff("slow", seconds=60) for _ in range(3)]
    for execution in held:
        product.running(execution)
    waiting = product.kickoff("good")
    with product.as_user(product.user) as me:
        for execution in (waiting, *held):
            me.execute("select flowledger.cancel(%s)", (execution,))
    row = product.row(waiting)
    assert (row["status"], row["duration_ms"], row["output_state"]) == ("cancelled", None, None)
    for execution in held:
        assert product.ended(execution)["status"] == "cancelled"
    assert not product.logs(waiting)


def test_execution_past_its_own_timeout_ends_as_timeout(product: Product) -> None:
    row = product.ended(product.kickoff("slow", timeout=0.5, seconds=60))
    assert (row["status"], row["error_type"]) == ("timeout", "Timeout")
    assert 500 <= row["duration_ms"] < 2000 + 1000 * GRACE_SECONDS


def test_poll_finds_what_nobody_was_notified_of(product: Product) -> None:
    wait_for(lambda: product.sql("select 1 from flowledger.workers where waiting"), what="a worker waits")
    with product.connection() as owner, owner.transaction():
        # No worker is marked as waiting, so that the birth notifies nobody.
        owner.execute("update flowledger.workers set waiting = false")
        born = owner.execute(
            "insert into crewai_flow_executions (flow_id, execution_key, executed_by) "
            "select id, flowledger.execution_key(flow_key), %s from crewai_flows where flow_key = 'good' returning id",
            (product.user,),
        ).fetchone()
    assert born is not None
    assert product.ended(born["id"])["status"] == "completed"
    assert _claim_seconds(product, born["id"]) < POLL_SECONDS + 1


def test_outcome_lands_though_every_connection_of_the_worker_is_cut_while_it_runs(
    product: Product, worker: WorkerProcess
) -> None:
    execution = product.kickoff("slow", seconds=2)
    product.running(execution)
    with product.connection("flowledger_worker") as itself:
        cut = itself.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where usename = current_user and pid <> pg_backend_pid()"
        ).fetchall()
    assert len(cut) >= 2, "the pool and the listener"
    row = product.ended(execution)
    assert (row["status"], row["output_state"]["result"]) == ("completed", "awake")
    with product.connection("flowledger_worker") as itself:
        listening = b"select 1 from pg_stat_activity where usename = current_user and query ilike 'listen%'"
        wait_for(lambda: itself.execute(listening).fetchall(), what="the worker listens again")
    assert product.ended(product.kickoff("good"))["status"] == "completed"
    assert worker.process.poll() is None


def test_user_filling_the_queue_is_told_and_loses_nothing(product: Product) -> None:
    product.sql("update flowledger.settings set value = '0' where name = 'queue_limit'")
    try:
        before = product.rows()
        done = product.run("run", "good", "--json")
        assert done.returncode == 1
        assert '"queue_full"' in done.stderr
        assert product.rows() == before
    finally:
        product.sql("update flowledger.settings set value = '10000' where name = 'queue_limit'")


def test_flow_code_sees_no_secret_of_the_ledger(product: Product, worker: WorkerProcess) -> None:
    row = product.ended(product.kickoff("looks", pids=[1, worker.pid, os.getpid()]))
    result = row["output_state"]["result"]
    told = repr(result)
    for role in ("flowledger", "flowledger_worker", "flowledger_api"):
        url = product.postgres.url(role)
        assert url not in told
        assert _password(url) not in told
    assert not [name for name in result["environ"] if name.startswith("FLOWLEDGER_") and name != "FLOWLEDGER_RUN"]
    assert str(worker.pid) in result["secrets_of"]
    assert "FLOWLEDGER_DATA_DIR" not in result["secrets_of"][str(worker.pid)]


def test_killed_template_costs_no_execution(product: Product, worker: WorkerProcess) -> None:
    running = product.kickoff("slow", seconds=60)
    product.running(running)
    for process in worker.descendants():
        with _gone_is_fine():
            process.send_signal(signal.SIGKILL)
    row = product.ended(running)
    assert (row["status"], row["error_type"]) == ("failed", "ProcessKilled")
    after = product.ended(product.kickoff("good"), seconds=90)
    assert after["status"] == "completed", after
    assert worker.process.poll() is None


def test_changed_source_is_a_new_version_and_its_code_runs(product: Product) -> None:
    before = product.ended(product.kickoff("good"))
    assert before["output_state"]["result"]["said"] == "one"
    _change(product, 'return "one"', 'return "uno"')
    after = product.ended(product.kickoff("good"), seconds=60)
    assert after["output_state"]["result"]["said"] == "uno"
    assert after["metadata"]["flow_version"] == before["metadata"]["flow_version"] + 1
    (flow,) = product.sql("select version, id from crewai_flows where flow_key = 'good'")
    assert (flow["version"], flow["id"]) == (after["metadata"]["flow_version"], before["flow_id"])


def test_broken_change_keeps_the_worker_alive_and_its_repair_is_seen(product: Product, worker: WorkerProcess) -> None:
    _change(product, 'return "uno"', 'return "uno')
    wait_for(
        lambda: any("good" in told["module"] for told in worker.facts("module_broken")),
        what="the broken module is told",
    )
    row = product.ended(product.kickoff("faulty", how="wanders"))
    assert row["status"] == "completed"
    _change(product, 'return "uno', 'return "due"  # ')
    again = wait_for(lambda: _said(product) == "due", seconds=60, every=1, what="the repaired flow runs")
    assert again
    assert worker.process.poll() is None


def _said(product: Product) -> str | None:
    row = product.ended(product.kickoff("good"), seconds=60)
    return row["output_state"]["result"]["said"] if row["status"] == "completed" else None


def _change(product: Product, old: str, new: str) -> None:
    source = product.project / "src/hostile/good.py"
    text = source.read_text()
    assert old in text
    source.write_text(text.replace(old, new))


def _claim_seconds(product: Product, execution: UUID) -> float:
    born, claimed, *_ = product.sql(
        "select at from flowledger.transitions where execution_id = %s order by seq", execution
    )
    return float((claimed["at"] - born["at"]).total_seconds())


def _processes_with(mark: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with _gone_is_fine():
            if mark in process.cmdline():
                found.append(process.pid)
    return found


def _password(url: str) -> str:
    from flowledger.database.session import password

    return password(url)


class _gone_is_fine:  # noqa: N801 - reads as a statement
    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, psutil.NoSuchProcess)
