"""What a signed-in user starts with SQL runs like any other execution, and nobody else sees it."""

from __future__ import annotations

from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from flowledger.client import Client
from flowledger.domain.timeline import Event, EventKind
from flowledger.errors import ExecutionFailed
from tests.acceptance.product import Product, WorkerProcess, wait_for
from tests.api.serving import served, signed

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("worker")]

ALICE, BOB = uuid4(), uuid4()


def test_plain_insert_by_a_user_runs_like_any_other(product: Product, worker: WorkerProcess) -> None:
    with product.as_user(ALICE) as alice:
        born = alice.execute(
            "insert into crewai_flow_executions (flow_id, execution_key, input_state, executed_by) "
            "select id, flowledger.execution_key(flow_key), %s, auth.uid() from crewai_flows where flow_key = 'good' "
            "returning id, status",
            (Jsonb({"given": 1}),),
        ).fetchone()
        assert born is not None
        assert born["status"] == "pending"
        row = product.ended(born["id"])
        assert (row["status"], row["executed_by"], row["metadata"]["worker_id"]) == ("completed", ALICE, worker.id)
        seen = alice.execute("select output_state from crewai_flow_executions where id = %s", (born["id"],)).fetchone()
        assert seen is not None
        assert seen["output_state"]["result"] == {"said": "one", "given": 1}


def test_kickoff_in_one_line_of_sql_runs_like_any_other(product: Product) -> None:
    row = product.ended(product.kickoff("good", ALICE, given="sql"))
    assert (row["status"], row["output_state"]["result"]["given"]) == ("completed", "sql")


def test_only_the_one_who_started_it_sees_row_timeline_and_logs(product: Product) -> None:
    execution = product.kickoff("good", ALICE)
    product.ended(execution)
    looks = (
        "select 1 from crewai_flow_executions where id = %s",
        "select 1 from flowledger.timeline where execution_id = %s",
        "select 1 from flowledger.logs where execution_id = %s",
        "select 1 from flowledger.transitions where execution_id = %s",
    )
    with product.as_user(ALICE) as alice, product.as_user(BOB) as bob:
        for look in looks:
            assert alice.execute(look, (execution,)).fetchall(), look
            assert not bob.execute(look, (execution,)).fetchall(), look


def test_a_program_runs_a_flow_with_the_client_and_sees_its_steps(product: Product) -> None:
    events: list[Event] = []
    with served(product.postgres) as server, Client(server.url, signed(ALICE)) as client:
        execution = client.run("good", {"given": "client"}, timeout=30, on_event=events.append)
        assert execution.output_state["result"]["given"] == "client"
        assert execution.executed_by == ALICE
        with pytest.raises(ExecutionFailed) as failed:
            client.run("faulty", {"how": "raises"})
    assert (events[0].kind, events[-1].kind) == (EventKind.FLOW_STARTED, EventKind.FLOW_FINISHED)
    assert [event.sequence for event in events] == sorted({event.sequence for event in events})
    assert failed.value.execution.error_type in str(failed.value)


def test_user_can_neither_write_an_outcome_nor_act_as_somebody_else(product: Product) -> None:
    execution = product.kickoff("slow", ALICE, seconds=20)
    product.running(execution)
    with product.as_user(ALICE) as alice:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            alice.execute("update crewai_flow_executions set status = 'completed' where id = %s", (execution,))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            alice.execute("select flowledger.reap('0 s')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            alice.execute(
                "insert into crewai_flow_executions (flow_id, execution_key, executed_by) "
                "select flow_id, 'of-bob', %s from crewai_flow_executions where id = %s",
                (BOB, execution),
            )
        alice.execute("select flowledger.cancel(%s)", (execution,))
    assert product.ended(execution)["status"] == "cancelled"


def test_another_user_cannot_cancel(product: Product) -> None:
    execution = product.kickoff("slow", ALICE, seconds=1)
    with product.as_user(BOB) as bob:
        answer = bob.execute("select flowledger.cancel(%s) as answer", (execution,)).fetchone()
    assert answer == {"answer": "unknown"}
    assert product.ended(execution)["status"] == "completed"


def test_execution_count_is_exact_once_the_worker_has_folded(product: Product) -> None:
    for execution in [product.kickoff("good", ALICE) for _ in range(5)]:
        product.ended(execution)
    counted = """
        select flows.flow_key, flows.execution_count as counted, count(executions.id) as real
        from crewai_flows as flows left join crewai_flow_executions as executions on executions.flow_id = flows.id
        where flows.status = 'active' group by flows.id"""
    wait_for(lambda: not product.sql("select 1 from flowledger.uncounted_executions"), seconds=10)
    found = product.sql(counted)
    assert found
    assert all(flow["counted"] == flow["real"] for flow in found), found
