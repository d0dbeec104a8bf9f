"""The invariants themselves: silent on a lawful ledger, and each is heard when it alone is broken."""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.ledger.invariants import NAMES, broken
from tests.ledger.law import append_usage, born, cancel, claim, expire, finish, reap, used

_RUNNING = "(select id from crewai_flow_executions where status = 'running')"
_PENDING = "(select id from crewai_flow_executions where status = 'pending')"
_COMPLETED = "(select id from crewai_flow_executions where status = 'completed')"

PLANTED = {
    "2 the first transition is the birth of a pending row": [
        f"delete from flowledger.transitions where execution_id = {_PENDING}",
        f"update flowledger.transitions set to_status = 'running' where execution_id = {_PENDING}",
    ],
    "3 the chain has no gap and ends at the row's status": [
        f"delete from flowledger.transitions where execution_id = {_COMPLETED} and to_status = 'running'",
        f"delete from flowledger.transitions where execution_id = {_COMPLETED} and to_status = 'completed'",
        f"update crewai_flow_executions set status = 'failed' where id = {_COMPLETED}",
    ],
    "3 every edge is the law's": [
        f"update flowledger.transitions set to_status = 'pending' where execution_id = {_RUNNING} and fence is not null"
    ],
    "4 an execution runs at most once": [
        f"""insert into flowledger.transitions (execution_id, from_status, to_status, actor, fence)
            values ({_RUNNING}, 'pending', 'running', 'worker', 99)"""
    ],
    "5 an execution ends at most once": [
        f"""insert into flowledger.transitions (execution_id, from_status, to_status, actor)
            values ({_COMPLETED}, 'running', 'failed', 'reaper')"""
    ],
    "7 what runs has a lease": ["delete from flowledger.leases"],
    "8 what has a lease runs": [f"update crewai_flow_executions set status = 'failed' where id = {_RUNNING}"],
    "what waits is queued, and nothing else is": [
        "delete from flowledger.queue",
        f"""insert into flowledger.queue (execution_id, flow_id)
            select id, flow_id from crewai_flow_executions where id = {_RUNNING}""",
    ],
    "10 no two claims have one fence, and an end carries its claim's": [
        f"""update flowledger.transitions set fence = fence - 1
            where execution_id = {_COMPLETED} and to_status = 'completed'""",
        "update flowledger.transitions set fence = 1 where to_status = 'running'",
        f"update flowledger.transitions set fence = null where execution_id = {_RUNNING}",
    ],
    "14 times and amounts make sense": [
        "update crewai_flow_executions set completed_at = started_at - interval '1 s' where status = 'completed'",
        "update crewai_flow_executions set duration_ms = null where status = 'completed'",
        "update crewai_flow_executions set duration_ms = 1 where status = 'cancelled'",
        "update crewai_flow_executions set completed_at = null where status = 'completed'",
        "update crewai_flow_executions set cost_usd = 'NaN' where status = 'completed'",
    ],
    "17 a flow's count is the number of its rows": [
        "update crewai_flows set execution_count = execution_count + 1",
        "delete from flowledger.uncounted_executions",
    ],
    "19 only who may decide a step does": [
        "update flowledger.transitions set actor = 'reaper' where to_status = 'completed'",
        "update flowledger.transitions set actor = 'worker' where to_status = 'cancelled'",
        f"update flowledger.transitions set actor = '{uuid4()}' where to_status = 'cancelled'",
        "update flowledger.transitions set actor = 'flowledger' where to_status = 'running'",
    ],
    "the row of a reaped execution tells the sum of its calls": [
        "update crewai_flow_executions set token_count = token_count + 1 where error_type = 'WorkerLost'",
        "update crewai_flow_executions set cost_usd = null where error_type = 'WorkerLost'",
        "update flowledger.usage set input_tokens = input_tokens + 1",
    ],
    "room is set aside for what runs only": [
        f"""insert into flowledger.reservations (execution_id, number, flow_id, tokens)
            select id, 1, flow_id, 1 from crewai_flow_executions where id = {_COMPLETED}"""
    ],
    "what failed is among the failures, and nothing else is": [
        "delete from flowledger.failures",
        f"""insert into flowledger.failures (execution_id, fingerprint, failed_at, flow_id)
            select id, 'f', now(), flow_id from crewai_flow_executions where id = {_COMPLETED}""",
    ],
    "what was spent is what the calls and the ended executions say, along every dimension": [
        "update flowledger.spending set cost_usd = cost_usd + 0.000001 where dimension = 'model' and key <> ''",
        "update flowledger.spending set executions = executions - 1 where dimension = 'meeting'",
        "delete from flowledger.spending where dimension = 'user'",
        "update flowledger.usage set estimated_tokens = 1",
        """insert into flowledger.repriced_calls (execution_id, number, price, cost_usd)
           select execution_id, number, '{}', 7 from flowledger.usage""",
        "delete from flowledger.unfolded_spending",
    ],
    "what has ended is listed as the row has it, and nothing else is": [
        "delete from flowledger.ended_executions where status = 'cancelled'",
        "update flowledger.ended_executions set executed_by = gen_random_uuid() where status = 'failed'",
        "update flowledger.ended_executions set status = 'failed' where status = 'completed'",
        f"""insert into flowledger.ended_executions (execution_id, listed_at, flow_id, status)
            select id, now(), flow_id, 'failed' from crewai_flow_executions where id = {_RUNNING}""",
    ],
    "20 the database's clock decides, and it does not go back": [
        "update flowledger.transitions set at = at - interval '10 min' where to_status = 'completed'",
        "update flowledger.transitions set at = at + interval '10 min' where to_status = 'completed'",
    ],
}


@pytest.fixture
def lawful(owner, alice, worker, flow) -> None:
    """One execution in each of the statuses that there are ways to, and sums that are folded in part."""
    completed, orphan, cancelled = born(alice, flow), born(alice, flow), born(alice, flow)
    held = {one["execution_id"]: one["fence"] for one in claim(worker, flow, slots=2)}
    append_usage(worker, {"execution_id": orphan, "fence": held[orphan]}, used())
    finish(worker, completed, held[completed])
    expire(owner, orphan)
    reap(worker)
    worker.execute("select flowledger.fold_spending()")
    cancel(alice, cancelled)
    born(alice, flow)
    claim(worker, flow)
    born(alice, flow)


def test_a_lawful_ledger_breaks_no_invariant(owner, lawful):
    assert broken(owner) == []


def test_every_invariant_has_a_planted_breach():
    assert set(PLANTED) == set(NAMES)


@pytest.mark.parametrize(("name", "planted"), [(name, one) for name in PLANTED for one in PLANTED[name]])
def test_a_planted_breach_is_heard(owner, lawful, name, planted):
    with owner.transaction(force_rollback=True):
        owner.execute("alter table crewai_flow_executions disable trigger user")
        owner.execute(planted.encode())
        assert name in {heard for heard, *_ in broken(owner)}


def test_an_execution_whose_lease_was_taken_away_by_hand_is_no_breach(owner, lawful):
    (running,) = owner.execute("delete from flowledger.leases returning execution_id").fetchall()
    assert broken(owner, bare=[running["execution_id"]]) == []
