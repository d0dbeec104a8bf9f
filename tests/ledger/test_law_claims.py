"""Claim, renew, finish, cancel, reap: one holder at a time, one outcome, in every order of events."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import psycopg
import pytest

from flowledger.domain.status import Status
from tests.ledger.law import BOB, WORKER, born, cancel, claim, expire, finish, reap, renew, row, steps

OTHER_WORKER = uuid4()


# -- Claim ------------------------------------------------------------------------------------------------------------


def test_claims_take_the_oldest_first_and_fences_grow(alice, worker, flow):
    waiting = [born(alice, flow) for _ in range(5)]
    first, rest = claim(worker, flow, slots=2), claim(worker, flow)
    assert [one["execution_id"] for one in [*first, *rest]] == waiting
    fences = [one["fence"] for one in [*first, *rest]]
    assert fences == sorted(set(fences))
    assert claim(worker, flow) == []


def test_a_claimed_execution_runs_under_a_lease(owner, alice, worker, flow):
    execution = born(alice, flow, input_state={"topic": "tea"})
    (held,) = claim(worker, flow)
    assert (held["flow_key"], held["inputs"], held["timeout_seconds"]) == ("FLOW", {"topic": "tea"}, 60.0)
    lease = owner.execute("select * from flowledger.leases").fetchone()
    assert (lease["execution_id"], lease["fence"], lease["worker_id"]) == (execution, held["fence"], WORKER)
    assert lease["expires_at"] - lease["claimed_at"] == timedelta(seconds=30)
    assert row(owner, execution)["started_at"] == lease["claimed_at"]
    assert steps(owner, execution)[-1] == ("pending", "running", "worker")
    assert owner.execute("select count(*) as n from flowledger.queue").fetchone()["n"] == 0


def test_a_higher_priority_is_claimed_before_an_older_place(owner, alice, worker, flow):
    older, urgent = born(alice, flow), born(alice, flow)
    owner.execute("update flowledger.queue set priority = 1 where execution_id = %s", [urgent])
    assert [one["execution_id"] for one in claim(worker, flow)] == [urgent, older]


def test_what_may_not_run_yet_is_not_claimed(owner, alice, worker, flow):
    born(alice, flow)
    owner.execute("update flowledger.queue set run_after = clock_timestamp() + interval '1 hour'")
    assert claim(worker, flow) == []


def test_a_worker_claims_executions_of_its_own_flows_only(alice, worker, flow):
    other = worker.execute("select id from flowledger.remember_flow('OTHER', 'Other', '', '{}', '')").fetchone()["id"]
    born(alice, flow)
    execution = born(alice, other)
    assert [one["execution_id"] for one in claim(worker, other)] == [execution]


def test_two_workers_that_claim_at_once_never_share_and_never_wait(alice, connect, flow):
    waiting = {born(alice, flow) for _ in range(4)}
    first, second = connect("flowledger_worker"), connect("flowledger_worker")
    with first.transaction():
        taken = {one["execution_id"] for one in claim(first, flow, slots=2)}
        others = {one["execution_id"] for one in claim(second, flow, slots=4)}
    assert len(taken) == 2
    assert others == waiting - taken


def test_many_workers_claim_every_execution_exactly_once(alice, connect, flow):
    waiting = sorted(born(alice, flow) for _ in range(60))
    workers = [connect("flowledger_worker") for _ in range(6)]

    def claim_until_empty(conn):
        taken = []
        while batch := claim(conn, flow, slots=3):
            taken += [one["execution_id"] for one in batch]
        return taken

    with ThreadPoolExecutor(len(workers)) as pool:
        taken = [one for batch in pool.map(claim_until_empty, workers) for one in batch]
    assert sorted(taken) == waiting


def test_a_worker_is_notified_only_when_it_waits(alice, connect, worker, flow):
    enlist = "select flowledger.enlist_worker(%s, 'host', 1, '0', 4, %s)"
    worker.execute(enlist, [WORKER, [flow]])
    listener = connect("flowledger_worker")
    listener.execute("listen flowledger_queue")

    born(alice, flow)
    assert list(listener.notifies(timeout=0.3)) == []

    claim(worker, flow, slots=1)
    born(alice, flow)
    assert list(listener.notifies(timeout=0.3)) == [], "its slots were filled: it does not wait"

    claim(worker, flow, slots=4)
    born(alice, flow)
    (told,) = listener.notifies(timeout=5, stop_after=1)
    assert (told.channel, told.payload) == ("flowledger_queue", "")


# -- Renew and finish -------------------------------------------------------------------------------------------------


def test_renewing_keeps_what_is_held_and_omits_what_is_lost(owner, alice, worker, flow):
    born(alice, flow), born(alice, flow)
    kept, lost = claim(worker, flow)
    expire(owner, lost["execution_id"])
    assert reap(worker) == {lost["execution_id"]: "failed"}
    assert [one["execution_id"] for one in renew(worker, kept, lost)] == [kept["execution_id"]]
    assert renew(worker, kept | {"fence": kept["fence"] + 1}) == []
    assert renew(worker, kept, as_worker=OTHER_WORKER) == []


def test_a_renewed_lease_lasts_from_now(owner, alice, worker, flow):
    execution = born(alice, flow)
    (held,) = claim(worker, flow, lease=timedelta(seconds=1))
    renew(worker, held, lease=timedelta(hours=1))
    left = owner.execute("select expires_at - clock_timestamp() as left from flowledger.leases").fetchone()["left"]
    assert left > timedelta(minutes=59)
    assert row(owner, execution)["status"] == "running"


def test_finishing_stores_the_outcome_once_and_tells_a_repetition_apart(owner, alice, worker, flow):
    execution = born(alice, flow, metadata={"mine": 1})
    (held,) = claim(worker, flow)
    outcome = {"output": {"answer": 42}, "tokens": 7, "cost": "0.25", "metadata": {"host": "h"}}
    assert finish(worker, execution, held["fence"], **outcome) == "ok"
    assert finish(worker, execution, held["fence"], **outcome) == "dup"
    assert finish(worker, execution, held["fence"], "failed") == "lost"
    assert finish(worker, execution, held["fence"] + 1) == "lost"
    assert finish(worker, uuid4(), held["fence"]) == "lost"
    told = row(owner, execution)
    assert (told["status"], told["output_state"], told["token_count"]) == ("completed", {"answer": 42}, 7)
    assert told["metadata"] == {"mine": 1, "host": "h"}
    assert owner.execute("select count(*) as n from flowledger.leases").fetchone()["n"] == 0
    assert steps(owner, execution)[-1] == ("running", "completed", "worker")


@pytest.mark.parametrize("status", ["running", "pending", "nonsense", None])
def test_an_execution_ends_only_with_an_outcome(owner, alice, worker, flow, status):
    execution = born(alice, flow)
    (held,) = claim(worker, flow)
    with pytest.raises(psycopg.DatabaseError) as refusal:
        finish(worker, execution, held["fence"], status)
    assert refusal.value.sqlstate == "FL002"
    assert row(owner, execution)["status"] == "running"


def test_a_pending_execution_cannot_be_finished(alice, worker, flow):
    assert finish(worker, born(alice, flow), 1) == "lost"


def test_a_holder_whose_execution_was_reaped_comes_too_late(owner, alice, worker, flow):
    execution = born(alice, flow)
    (held,) = claim(worker, flow)
    expire(owner, execution)
    reap(worker)
    assert finish(worker, execution, held["fence"]) == "lost"
    assert finish(worker, execution, held["fence"], "failed") == "lost"
    assert row(owner, execution)["error_type"] == "WorkerLost"


# -- Cancel -----------------------------------------------------------------------------------------------------------


def test_a_pending_execution_is_cancelled_at_once(owner, alice, worker, flow):
    execution = born(alice, flow)
    assert cancel(alice, execution, "changed my mind") == "cancelled"
    told = row(owner, execution)
    assert (told["status"], told["error_message"], told["duration_ms"]) == ("cancelled", "changed my mind", None)
    assert steps(owner, execution)[-1] == ("pending", "cancelled", str(told["executed_by"]))
    assert claim(worker, flow) == []
    assert cancel(alice, execution) == "ended"


def test_a_running_execution_is_wished_cancelled_and_its_holder_learns_it(owner, alice, connect, worker, flow):
    execution = born(alice, flow)
    (held,) = claim(worker, flow)
    listener = connect("flowledger_worker")
    listener.execute("listen flowledger_wishes")
    assert cancel(alice, execution, "stop") == "wished"
    assert cancel(alice, execution, "again") == "wished"
    assert next(listener.notifies(timeout=5, stop_after=1)).payload == ""
    (answer,) = renew(worker, held)
    assert (answer["cancel_wished"], answer["cancel_reason"]) == (True, "stop")
    assert row(owner, execution)["status"] == "running"


def test_only_the_owner_and_operators_may_cancel(alice, bob, as_user, worker, flow):
    execution = born(alice, flow)
    assert cancel(bob, execution) == "unknown"
    assert cancel(as_user(), execution) == "unknown"
    assert cancel(bob, uuid4()) == "unknown"
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        cancel(as_user(role="anon"), execution)
    assert cancel(worker, execution) == "cancelled"


def test_a_login_that_may_become_an_operator_is_none_until_it_does(alice, as_user, connect, flow):
    execution = born(alice, flow)
    assert cancel(as_user(BOB), execution) == "unknown"
    assert cancel(as_user(role="service_role"), execution) == "cancelled"


def test_a_cancel_that_comes_before_the_claim_wins(owner, alice, connect, flow):
    execution = born(alice, flow)
    worker = connect("flowledger_worker")
    with alice.transaction():
        assert cancel(alice, execution) == "cancelled"
        assert claim(worker, flow) == [], "it neither waits for the cancel nor takes what is being cancelled"
    assert claim(worker, flow) == []
    assert row(owner, execution)["status"] == "cancelled"


def test_a_cancel_that_comes_during_the_claim_waits_and_becomes_a_wish(owner, alice, worker, flow):
    execution = born(alice, flow)
    answers = []
    canceller = threading.Thread(target=lambda: answers.append(cancel(alice, execution)))
    with worker.transaction():
        (held,) = claim(worker, flow)
        canceller.start()
        _until_somebody_waits_for_a_lock(owner)
    canceller.join(10)
    assert answers == ["wished"]
    assert renew(worker, held)[0]["cancel_wished"]


# -- Reap -------------------------------------------------------------------------------------------------------------


def test_a_lost_worker_leaves_a_failed_execution_not_a_running_one(owner, alice, worker, flow):
    execution = born(alice, flow)
    claim(worker, flow)
    assert reap(worker) == {}
    expire(owner, execution)
    assert reap(worker, grace=timedelta(minutes=1)) == {}
    assert reap(worker) == {execution: "failed"}
    told = row(owner, execution)
    assert (told["error_type"], told["output_state"]) == ("WorkerLost", None)
    assert steps(owner, execution)[-1] == ("running", "failed", "reaper")
    assert reap(worker) == {}


def test_the_verdict_on_an_orphan_follows_what_is_known(owner, alice, worker, flow):
    wished, late, bare = born(alice, flow), born(alice, flow, metadata={"timeout_seconds": 0.001}), born(alice, flow)
    claim(worker, flow)
    cancel(alice, wished)
    for execution in (wished, late):
        expire(owner, execution)
    owner.execute("delete from flowledger.leases where execution_id = %s", [bare])
    assert reap(worker) == {wished: "cancelled", late: "timeout", bare: "failed"}


def test_a_renewal_that_comes_before_the_reaper_keeps_the_execution(owner, alice, connect, worker, flow):
    execution = born(alice, flow)
    (held,) = claim(worker, flow)
    expire(owner, execution)
    reaper, reaped = connect("flowledger_worker"), []
    reaping = threading.Thread(target=lambda: reaped.append(reap(reaper)))
    with worker.transaction():
        assert len(renew(worker, held)) == 1
        reaping.start()
        _until_somebody_waits_for_a_lock(owner)
    reaping.join(10)
    assert reaped == [{}]
    assert row(owner, execution)["status"] == "running"
    assert finish(worker, execution, held["fence"]) == "ok"


def test_a_renewal_that_comes_after_the_reaper_is_told_that_it_lost(owner, alice, connect, worker, flow):
    execution = born(alice, flow)
    (held,) = claim(worker, flow)
    expire(owner, execution)
    reaper, renewed = connect("flowledger_worker"), []
    renewing = threading.Thread(target=lambda: renewed.append(renew(worker, held)))
    with reaper.transaction():
        assert reap(reaper) == {execution: "failed"}
        renewing.start()
        _until_somebody_waits_for_a_lock(owner)
    renewing.join(10)
    assert renewed == [[]]


def test_two_reapers_write_one_outcome_each(owner, alice, connect, worker, flow):
    orphans = {born(alice, flow) for _ in range(20)}
    claim(worker, flow, slots=20)
    owner.execute("update flowledger.leases set expires_at = clock_timestamp() - interval '1 s'")
    reapers = [connect("flowledger_worker") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        reaped = [execution for answer in pool.map(reap, reapers) for execution in answer]
    assert sorted(reaped) == sorted(orphans)
    for execution in orphans:
        assert [step[1] for step in steps(owner, execution)] == ["pending", "running", "failed"]


# -- Counting ---------------------------------------------------------------------------------------------------------


def test_the_counter_is_exact_while_many_write_and_many_fold(owner, as_user, connect, worker, flow):
    users = [as_user(uuid4()) for _ in range(8)]
    folders = [connect("flowledger_worker") for _ in range(2)]
    writing = threading.Event()
    writing.set()

    def fold(conn):
        folded = 0
        while writing.is_set():
            folded += conn.execute("select flowledger.fold_execution_counts() as n").fetchone()["n"]
        return folded

    with ThreadPoolExecutor(10) as pool:
        folding = [pool.submit(fold, conn) for conn in folders]
        list(pool.map(lambda user: [born(user, flow) for _ in range(25)], users))
        writing.clear()
        folded = sum(one.result(30) for one in folding)
    folded += worker.execute("select flowledger.fold_execution_counts() as n").fetchone()["n"]
    told = owner.execute("select execution_count, last_executed_at from crewai_flows").fetchone()
    assert (folded, told["execution_count"]) == (200, 200)
    assert told["last_executed_at"] is not None
    assert owner.execute("select count(*) as n from flowledger.uncounted_executions").fetchone()["n"] == 0


def test_being_executed_does_not_change_a_flow(owner, alice, worker, flow):
    before = owner.execute("select updated_at from crewai_flows").fetchone()
    born(alice, flow)
    worker.execute("select flowledger.fold_execution_counts()")
    assert owner.execute("select updated_at from crewai_flows").fetchone() == before


def test_a_flow_keeps_its_id_while_its_versions_pile_up_whoever_wants_their_keys(alice, owner, worker, flow):
    remember = """select * from flowledger.remember_flow(
                    'FLOW', 'Flow', '', jsonb_build_object('fingerprint', %s::text), '')"""
    alice.execute("""insert into crewai_flows (flow_key, flow_name, flow_definition, created_by)
                     values ('FLOW@1', 'x', '{}', auth.uid())""")
    assert worker.execute(remember, ["a"]).fetchone() == {"id": flow, "version": 2}
    assert worker.execute(remember, ["a"]).fetchone() == {"id": flow, "version": 2}
    assert worker.execute(remember, ["b"]).fetchone() == {"id": flow, "version": 3}
    archived = owner.execute("select version from crewai_flows where status = 'archived' order by version").fetchall()
    assert [one["version"] for one in archived] == [1, 2]


def test_every_outcome_of_a_finish_is_an_outcome_of_the_law(owner, alice, worker, flow):
    for status in (status for status in Status if status.is_terminal):
        execution = born(alice, flow)
        (held,) = claim(worker, flow)
        assert finish(worker, execution, held["fence"], status) == "ok"
        assert row(owner, execution)["status"] == status


def _until_somebody_waits_for_a_lock(owner) -> None:
    """Waits for the fact that another connection is held up, at most 10 s."""
    waiting = "select count(*) as n from pg_locks where not granted"
    for _ in range(1000):
        if owner.execute(waiting).fetchone()["n"]:
            return
        owner.execute("select pg_sleep(0.01)")
    raise AssertionError("nobody waited for a lock")
