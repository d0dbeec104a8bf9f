"""What operators decide about flows: limits, deadlines, priorities, pauses, retries; and reruns, prunes, audit."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.ledger.law import ALICE, born, cancel, claim, expire, finish, reap, row, steps

MINUTE = timedelta(minutes=1)
OTHER_WORKER = UUID("00000000-0000-4000-8000-000000000002")


def set_controls(worker: psycopg.Connection, flow: UUID, **controls: object) -> None:
    worker.execute("select flowledger.set_controls(%s, %s)", [flow, Jsonb(controls)])


def controls_of(owner: psycopg.Connection, flow: UUID) -> dict:
    return owner.execute("select * from flowledger.flow_controls where flow_id = %s", [flow]).fetchone()


def ids(claims: list[dict]) -> list[UUID]:
    return [one["execution_id"] for one in claims]


def end(worker: psycopg.Connection, flow: UUID, status: str = "failed", error_type: str | None = "ValueError") -> UUID:
    """Claims one execution of the flow and ends it."""
    (held,) = claim(worker, flow, slots=1)
    assert finish(worker, held["execution_id"], held["fence"], status, error_type=error_type) == "ok"
    return held["execution_id"]


def retries_of(owner: psycopg.Connection, execution: UUID) -> list[UUID]:
    rows = owner.execute(
        "select execution_id from flowledger.reruns where of_execution = %s and kind = 'retry'", [execution]
    )
    return [one["execution_id"] for one in rows]


def let_retries_run(owner: psycopg.Connection) -> None:
    owner.execute("update flowledger.queue set run_after = clock_timestamp()")


# -- Concurrency ------------------------------------------------------------------------------------------------------


def test_a_flow_never_runs_more_than_its_limit_at_a_time(alice, worker, flow):
    set_controls(worker, flow, concurrency=2)
    waiting = [born(alice, flow) for _ in range(4)]
    first = claim(worker, flow, slots=10)
    assert ids(first) == waiting[:2]
    assert claim(worker, flow, slots=10) == []
    finish(worker, first[0]["execution_id"], first[0]["fence"])
    assert ids(claim(worker, flow, slots=10)) == [waiting[2]]


def test_two_workers_that_claim_at_once_keep_the_limit_together(owner, alice, connect, worker, flow):
    set_controls(worker, flow, concurrency=3)
    for _ in range(6):
        born(alice, flow)
    first, second, taken = connect("flowledger_worker"), connect("flowledger_worker"), []
    claiming = threading.Thread(target=lambda: taken.extend(claim(second, flow, slots=4, as_worker=OTHER_WORKER)))
    with first.transaction():
        assert len(claim(first, flow, slots=2)) == 2
        claiming.start()
        _until_somebody_waits_for_a_lock(owner)
    claiming.join(10)
    assert len(taken) == 1


def test_a_claim_that_is_undone_leaves_its_places_to_the_next(owner, alice, connect, worker, flow):
    set_controls(worker, flow, concurrency=1)
    execution = born(alice, flow)
    first, second, taken = connect("flowledger_worker"), connect("flowledger_worker"), []
    claiming = threading.Thread(target=lambda: taken.extend(claim(second, flow, as_worker=OTHER_WORKER)))
    with first.transaction():
        assert len(claim(first, flow)) == 1
        claiming.start()
        _until_somebody_waits_for_a_lock(owner)
        raise psycopg.Rollback
    claiming.join(10)
    assert ids(taken) == [execution]


def test_many_workers_never_exceed_the_limit_and_run_everything(owner, alice, connect, worker, flow):
    set_controls(worker, flow, concurrency=3)
    waiting = sorted(born(alice, flow) for _ in range(40))
    workers = [connect("flowledger_worker") for _ in range(4)]
    most: list[int] = []

    def work(conn: psycopg.Connection) -> list[UUID]:
        done = []
        for _ in range(200):
            for held in claim(conn, flow, slots=3):
                running = conn.execute("select count(*) as n from flowledger.leases").fetchone()["n"]
                most.append(running)
                finish(conn, held["execution_id"], held["fence"])
                done.append(held["execution_id"])
            if conn.execute("select count(*) as n from flowledger.queue").fetchone()["n"] == 0:
                break
        return done

    with ThreadPoolExecutor(len(workers)) as pool:
        done = [one for batch in pool.map(work, workers) for one in batch]
    assert sorted(done) == waiting
    assert max(most) <= 3


def test_each_user_has_a_limit_of_their_own(alice, bob, worker, flow):
    set_controls(worker, flow, concurrency_per_user=2)
    of_alice = [born(alice, flow) for _ in range(4)]
    of_bob = [born(bob, flow) for _ in range(3)]
    first = claim(worker, flow, slots=10)
    assert ids(first) == [*of_alice[:2], *of_bob[:2]]
    assert claim(worker, flow, slots=10) == []
    finish(worker, of_bob[0], next(one["fence"] for one in first if one["execution_id"] == of_bob[0]))
    assert ids(claim(worker, flow, slots=10)) == [of_bob[2]]


def test_a_flows_limit_holds_over_the_limits_of_its_users(alice, bob, worker, flow):
    set_controls(worker, flow, concurrency=3, concurrency_per_user=2)
    of_alice, of_bob = [born(alice, flow) for _ in range(3)], [born(bob, flow) for _ in range(3)]
    assert ids(claim(worker, flow, slots=10)) == [*of_alice[:2], of_bob[0]]


def test_a_flow_at_its_limit_holds_up_no_other(alice, worker, flow):
    other = _another_flow(worker)
    set_controls(worker, flow, concurrency=1)
    first = born(alice, flow)
    for _ in range(5):
        born(alice, flow)
    later = [born(alice, other) for _ in range(3)]
    assert ids(claim(worker, flow, other, slots=3)) == [first, *later[:2]]


def test_a_freed_place_wakes_a_worker_that_waits(alice, connect, worker, flow):
    set_controls(worker, flow, concurrency=1)
    worker.execute("select flowledger.enlist_worker(%s, 'host', 1, '0', 4, %s)", [OTHER_WORKER, [flow]])
    held_id, _ = born(alice, flow), born(alice, flow)
    (held,) = claim(worker, flow, slots=4, as_worker=OTHER_WORKER)
    listener = connect("flowledger_worker")
    listener.execute("listen flowledger_queue")
    finish(worker, held_id, held["fence"])
    assert len(list(listener.notifies(timeout=5, stop_after=1))) == 1


def test_a_limit_below_one_is_refused(worker, flow):
    with pytest.raises(psycopg.errors.CheckViolation):
        set_controls(worker, flow, concurrency=0)


# -- Priorities and deadlines -----------------------------------------------------------------------------------------


def test_a_priority_in_the_metadata_decides_who_starts_first(alice, worker, flow):
    last, first, middle = (born(alice, flow, metadata={"priority": number}) for number in (-5, 7, 0))
    assert ids(claim(worker, flow)) == [first, middle, last]


@pytest.mark.parametrize("metadata", [
    {"priority": 101}, {"priority": 1.5}, {"priority": "high"}, {"priority": None}, {"priority": 1e400},
    {"queue_seconds": 0}, {"queue_seconds": -1}, {"queue_seconds": "5m"}, {"queue_seconds": 2147484},
    {"rerun_of": None}, {"rerun_of": 5}, {"rerun_of": "not-an-id"},
])  # fmt: skip
def test_a_birth_that_asks_for_nonsense_is_refused(alice, flow, metadata):
    text = str(metadata).replace("None", "null").replace("inf", "1e400").replace("'", '"')
    with pytest.raises(psycopg.DatabaseError) as refusal:
        alice.execute(
            "insert into crewai_flow_executions (flow_id, execution_key, executed_by, metadata) "
            "values (%s, 'FLOW-X', auth.uid(), %s::jsonb)",
            [flow, text],
        )
    assert refusal.value.sqlstate == "FL001"


def test_an_execution_that_waited_too_long_ends_as_timeout_and_never_starts(owner, alice, worker, flow):
    patient, late = born(alice, flow), born(alice, flow, metadata={"queue_seconds": 60})
    assert _expire(worker) == []
    _let_deadlines_pass(owner)
    assert _expire(worker) == [late]
    told = row(owner, late)
    assert (told["status"], told["error_type"], told["duration_ms"]) == ("timeout", "QueueTimeout", None)
    assert steps(owner, late)[-1] == ("pending", "timeout", "reaper")
    assert ids(claim(worker, flow)) == [patient]


def test_a_flows_queue_deadline_counts_where_the_execution_has_none_of_its_own(owner, alice, worker, flow):
    set_controls(worker, flow, queue_seconds=3600)
    ordinary, hurried = born(alice, flow), born(alice, flow, metadata={"queue_seconds": 1})
    waits = {
        one["execution_id"]: one["left"]
        for one in owner.execute("select execution_id, expires_at - clock_timestamp() as left from flowledger.queue")
    }
    assert timedelta(minutes=59) < waits[ordinary] <= timedelta(hours=1)
    assert waits[hurried] <= timedelta(seconds=1)


def test_what_is_being_claimed_does_not_expire_and_what_expires_is_not_claimed(owner, alice, connect, flow):
    execution = born(alice, flow, metadata={"queue_seconds": 60})
    _let_deadlines_pass(owner)
    first, second = connect("flowledger_worker"), connect("flowledger_worker")
    with first.transaction():
        assert ids(claim(first, flow)) == [execution]
        assert _expire(second) == []
        raise psycopg.Rollback
    with first.transaction():
        assert _expire(first) == [execution]
        assert claim(second, flow) == []
    assert row(owner, execution)["status"] == "timeout"


def test_a_cancel_during_the_expiry_comes_too_late(owner, alice, worker, flow):
    execution = born(alice, flow, metadata={"queue_seconds": 60})
    _let_deadlines_pass(owner)
    answers = []
    cancelling = threading.Thread(target=lambda: answers.append(cancel(alice, execution)))
    with worker.transaction():
        assert _expire(worker) == [execution]
        cancelling.start()
        _until_somebody_waits_for_a_lock(owner)
    cancelling.join(10)
    assert answers == ["ended"]


# -- Pauses -----------------------------------------------------------------------------------------------------------


def test_a_paused_flow_accepts_births_and_starts_nothing_until_it_is_resumed(alice, worker, flow):
    assert _pause(worker, flow, "prices") is True
    assert _pause(worker, flow, "again") is False
    waiting, other = born(alice, flow), born(alice, _another_flow(worker))
    both = [flow, _another_flow(worker)]
    assert ids(claim(worker, *both)) == [other]
    assert _resume(worker, flow) is True
    assert _resume(worker, flow) is False
    assert ids(claim(worker, flow)) == [waiting]


def test_a_paused_flow_with_a_limit_starts_nothing_either(alice, worker, flow):
    set_controls(worker, flow, concurrency=5)
    _pause(worker, flow)
    born(alice, flow)
    assert claim(worker, flow) == []


def test_what_runs_when_its_flow_is_paused_runs_on(owner, alice, worker, flow):
    execution = born(alice, flow)
    (held,) = claim(worker, flow)
    _pause(worker, flow)
    assert finish(worker, execution, held["fence"]) == "ok"


def test_a_pause_says_who_and_why_and_outlives_new_controls_and_versions(owner, worker, flow):
    _pause(worker, flow, "prices")
    set_controls(worker, flow, concurrency=1)
    _new_version(worker, "2")
    told = controls_of(owner, flow)
    assert (told["paused_by"], told["paused_reason"], told["concurrency"]) == ("flowledger_worker", "prices", 1)


def test_resuming_wakes_workers(connect, worker, flow):
    _pause(worker, flow)
    listener = connect("flowledger_worker")
    listener.execute("listen flowledger_queue")
    _resume(worker, flow)
    assert len(list(listener.notifies(timeout=5, stop_after=1))) == 1


# -- Crash loops ------------------------------------------------------------------------------------------------------


def test_a_crash_loop_pauses_its_flow_and_says_so(owner, alice, worker, flow):
    set_controls(worker, flow, crash_limit=3)
    for _ in range(3):
        assert controls_of(owner, flow)["paused_at"] is None
        born(alice, flow)
        end(worker, flow, error_type="ProcessKilled")
    told = controls_of(owner, flow)
    assert (told["paused_by"], told["crashes"]) == ("flowledger", 3)
    assert told["paused_reason"] == "its process died by a signal 3 times in a row"
    born(alice, flow)
    assert claim(worker, flow) == []


def test_a_flow_without_controls_is_paused_after_five_deaths(owner, alice, worker, flow):
    for _ in range(5):
        born(alice, flow)
        end(worker, flow, error_type="ProcessKilled")
    assert controls_of(owner, flow)["paused_by"] == "flowledger"


def test_a_run_that_lives_to_its_end_breaks_the_row_of_deaths(owner, alice, worker, flow):
    set_controls(worker, flow, crash_limit=2)
    for status, error_type in [
        ("failed", "ProcessKilled"), ("completed", None), ("failed", "ProcessKilled"), ("failed", "ValueError"),
        ("failed", "ProcessKilled"),
    ]:  # fmt: skip
        born(alice, flow)
        end(worker, flow, status, error_type)
    assert (controls_of(owner, flow)["crashes"], controls_of(owner, flow)["paused_at"]) == (1, None)


@pytest.mark.parametrize(("status", "error_type"), [("cancelled", "Cancelled"), ("timeout", "Timeout"),
                                                    ("failed", "WorkerStopped")])  # fmt: skip
def test_an_end_that_says_nothing_of_the_flow_does_not_break_the_row(owner, alice, worker, flow, status, error_type):
    set_controls(worker, flow, crash_limit=2)
    for one in [("failed", "ProcessKilled"), (status, error_type), ("failed", "ProcessKilled")]:
        born(alice, flow)
        end(worker, flow, *one)
    assert controls_of(owner, flow)["paused_by"] == "flowledger"


def test_a_new_version_resumes_what_flowledger_paused(owner, alice, worker, flow):
    set_controls(worker, flow, crash_limit=1)
    born(alice, flow), born(alice, flow)
    end(worker, flow, error_type="ProcessKilled")
    assert claim(worker, flow) == []
    worker.execute("select flowledger.remember_flow('FLOW', 'Flow', '', '{}', '')")
    assert claim(worker, flow) == [], "the same version again changes nothing"
    _new_version(worker, "2")
    assert controls_of(owner, flow)["crashes"] == 0
    assert len(claim(worker, flow)) == 1


def test_resuming_forgets_the_deaths(owner, alice, worker, flow):
    set_controls(worker, flow, crash_limit=2)
    for _ in range(2):
        born(alice, flow)
        end(worker, flow, error_type="ProcessKilled")
    _resume(worker, flow)
    born(alice, flow)
    end(worker, flow, error_type="ProcessKilled")
    assert controls_of(owner, flow)["paused_at"] is None


# -- Retries ----------------------------------------------------------------------------------------------------------


def test_a_failed_execution_is_followed_by_a_new_one_with_its_own_inputs(owner, alice, worker, flow):
    set_controls(worker, flow, retries=1, retry_seconds=30)
    meeting = uuid4()
    asked = {"priority": 3, "timeout_seconds": 90, "customer": "c1"}
    execution = born(alice, flow, input_state={"topic": "t"}, metadata=asked, board_meeting_id=meeting)
    (held,) = claim(worker, flow)
    finish(worker, execution, held["fence"], "failed", error_type="ValueError", cost="0.5", metadata={"host": "h"})
    (retry,) = retries_of(owner, execution)
    told = row(owner, retry)
    assert (told["status"], told["input_state"], told["executed_by"]) == ("pending", {"topic": "t"}, ALICE)
    assert (told["board_meeting_id"], told["execution_mode"], told["cost_usd"]) == (meeting, "manual", None)
    assert told["metadata"] == {**asked, "rerun_of": str(execution)}, "what the worker added is not taken over"
    assert row(owner, execution)["status"] == "failed"
    assert claim(worker, flow) == [], "it pauses first"
    let_retries_run(owner)
    assert ids(claim(worker, flow)) == [retry]


def test_retries_end_after_as_many_as_the_policy_says_and_their_pauses_double(owner, alice, worker, flow):
    set_controls(worker, flow, retries=3, retry_seconds=10)
    born(alice, flow)
    pauses = []
    for _ in range(4):
        end(worker, flow)
        if left := owner.execute("select run_after - clock_timestamp() as left from flowledger.queue").fetchone():
            pauses.append(left["left"].total_seconds())
        let_retries_run(owner)
    assert claim(worker, flow) == []
    assert owner.execute("select count(*) as n from crewai_flow_executions").fetchone()["n"] == 4
    assert [5 < pause / 2**number <= 12.5 for number, pause in enumerate(pauses)] == [True, True, True]


@pytest.mark.parametrize(("controls", "error_type", "retried"), [
    ({}, "ValueError", True),
    ({"retry_on": ["httpx.ReadTimeout"]}, "httpx.ReadTimeout", True),
    ({"retry_on": ["ReadTimeout"]}, "httpx.ReadTimeout", True),
    ({"retry_on": ["ReadTimeout"]}, "ValueError", False),
    ({}, "InvalidInput", False),
    ({"retry_on": ["InvalidInput"]}, "InvalidInput", False),
    ({}, "FlowGone", False),
    ({}, "OutputNotStorable", False),
    ({}, "ProcessNotStarted", True),
    ({}, "ProcessKilled", False),
    ({"retry_on": ["ProcessKilled"]}, "ProcessKilled", True),
    ({}, "WorkerStopped", False),
    ({"retry_on": ["WorkerStopped"]}, "WorkerStopped", False),
    ({"idempotent": True}, "WorkerStopped", True),
    ({"idempotent": True, "retry_on": ["ReadTimeout"]}, "WorkerStopped", True),
    ({}, None, True),
    ({"retry_on": ["ReadTimeout"]}, None, False),
])  # fmt: skip
def test_which_errors_are_tried_again(owner, alice, worker, flow, controls, error_type, retried):
    set_controls(worker, flow, retries=2, **controls)
    born(alice, flow)
    assert bool(retries_of(owner, end(worker, flow, error_type=error_type))) is retried


@pytest.mark.parametrize(("controls", "status", "error_type", "retried"), [
    ({}, "completed", None, False),
    ({}, "cancelled", "Cancelled", False),
    ({}, "timeout", "Timeout", False),
    ({"retry_on": ["Timeout"]}, "timeout", "Timeout", True),
    ({"retry_on": ["Cancelled"]}, "cancelled", "Cancelled", False),
])  # fmt: skip
def test_which_statuses_are_tried_again(owner, alice, worker, flow, controls, status, error_type, retried):
    set_controls(worker, flow, retries=2, **controls)
    born(alice, flow)
    assert bool(retries_of(owner, end(worker, flow, status, error_type))) is retried


@pytest.mark.parametrize(("controls", "retried"), [
    ({}, False), ({"retry_on": ["WorkerLost"]}, False), ({"idempotent": True}, True),
])  # fmt: skip
def test_a_lost_worker_is_followed_by_a_retry_only_if_the_flow_is_idempotent(
    owner, alice, worker, flow, controls, retried
):
    set_controls(worker, flow, retries=2, **controls)
    execution = born(alice, flow)
    claim(worker, flow)
    expire(owner, execution)
    assert reap(worker) == {execution: "failed"}
    assert bool(retries_of(owner, execution)) is retried


def test_a_timeout_that_a_reaper_found_is_no_known_end(owner, alice, worker, flow):
    set_controls(worker, flow, retries=2, retry_on=["Timeout"])
    execution = born(alice, flow, metadata={"timeout_seconds": 0.001})
    claim(worker, flow)
    expire(owner, execution)
    assert reap(worker) == {execution: "timeout"}
    assert retries_of(owner, execution) == []


def test_a_repeated_finish_makes_no_second_retry(owner, alice, worker, flow):
    set_controls(worker, flow, retries=2)
    execution = born(alice, flow)
    (held,) = claim(worker, flow)
    assert finish(worker, execution, held["fence"], "failed", error_type="ValueError") == "ok"
    assert finish(worker, execution, held["fence"], "failed", error_type="ValueError") == "dup"
    assert len(retries_of(owner, execution)) == 1


def test_a_full_queue_takes_no_retry_and_the_outcome_stays(owner, alice, worker, flow):
    set_controls(worker, flow, retries=2)
    execution = born(alice, flow)
    (held,) = claim(worker, flow)
    owner.execute("update flowledger.settings set value = '0' where name = 'queue_limit'")
    assert finish(worker, execution, held["fence"], "failed", error_type="ValueError") == "ok"
    assert (row(owner, execution)["status"], retries_of(owner, execution)) == ("failed", [])


def test_the_pause_before_a_retry_is_not_part_of_its_time_to_wait(owner, alice, worker, flow):
    set_controls(worker, flow, retries=1, retry_seconds=3600, queue_seconds=60)
    born(alice, flow)
    end(worker, flow)
    told = owner.execute("select expires_at - run_after as left from flowledger.queue").fetchone()
    assert abs(told["left"] - MINUTE) < timedelta(seconds=1)


def test_a_rerun_that_somebody_asked_for_has_all_its_retries_again(owner, alice, worker, flow):
    set_controls(worker, flow, retries=1)
    born(alice, flow)
    end(worker, flow)
    let_retries_run(owner)
    second = end(worker, flow)
    assert retries_of(owner, second) == []
    third = born(alice, flow, metadata={"rerun_of": str(second)})
    end(worker, flow)
    (fourth,) = retries_of(owner, third)
    told = owner.execute("select attempt, retries from flowledger.reruns where execution_id = %s", [fourth]).fetchone()
    assert told == {"attempt": 4, "retries": 1}


# -- Reruns -----------------------------------------------------------------------------------------------------------


def test_a_rerun_is_linked_both_ways_for_its_owner_only(owner, alice, bob, worker, flow):
    execution = born(alice, flow)
    end(worker, flow, "completed", None)
    again = born(alice, flow, metadata={"rerun_of": str(execution)})
    links = "select execution_id, of_execution, kind, attempt, retries from flowledger.reruns"
    expected = {"execution_id": again, "of_execution": execution, "kind": "rerun", "attempt": 2, "retries": 0}
    assert alice.execute(links).fetchall() == worker.execute(links).fetchall() == [expected]
    assert bob.execute(links).fetchall() == []


def test_a_forged_rerun_is_answered_as_one_of_an_unknown_execution(alice, bob, worker, flow):
    other = _another_flow(worker)
    of_alice, of_other = born(alice, flow), born(bob, other)
    refusals = []
    for named in (of_alice, of_other, uuid4()):
        with pytest.raises(psycopg.DatabaseError) as refusal:
            born(bob, flow, metadata={"rerun_of": str(named)})
        refusals.append((refusal.value.sqlstate, refusal.value.diag.message_primary))
    assert refusals == [("FL001", "metadata.rerun_of names no execution of this flow that you may repeat")] * 3


def test_a_user_who_calls_themselves_a_worker_makes_a_rerun_and_no_retry(owner, alice, flow):
    execution = born(alice, flow)
    alice.execute("select set_config('flowledger.actor', 'worker', false)")
    born(alice, flow, metadata={"rerun_of": str(execution)})
    assert owner.execute("select kind, retries from flowledger.reruns").fetchone() == {"kind": "rerun", "retries": 0}


# -- Retention --------------------------------------------------------------------------------------------------------


def test_a_prune_deletes_what_its_note_says_and_nothing_else(owner, alice, worker, flow):
    completed, failed, running, pending = (born(alice, flow) for _ in range(4))
    for execution, (status, error_type) in ((completed, ("completed", None)), (failed, ("failed", "ValueError"))):
        assert end(worker, flow, status, error_type) == execution
    claim(worker, flow, slots=1)
    worker.execute("select flowledger.fold_execution_counts()")
    opened = _open_prune(worker, ["completed"], datetime.now(UTC))
    everything = [completed, failed, running, pending]
    assert _prune(worker, opened, everything) == 1
    left = [one["id"] for one in owner.execute("select id from crewai_flow_executions")]
    assert sorted(left) == sorted([failed, running, pending])
    assert owner.execute("select execution_count from crewai_flows").fetchone()["execution_count"] == 3
    assert owner.execute("select 1 from flowledger.transitions where execution_id = %s", [completed]).fetchall() == []
    note = worker.execute("select pruned_by, statuses, executions, archive from flowledger.prunes").fetchone()
    assert note == {"pruned_by": "flowledger_worker", "statuses": ["completed"], "executions": 1, "archive": None}


def test_what_ended_after_the_given_time_is_not_pruned(alice, worker, flow):
    execution = born(alice, flow)
    end(worker, flow, "completed", None)
    opened = _open_prune(worker, ["completed"], datetime.now(UTC) - MINUTE)
    assert _prune(worker, opened, [execution]) == 0


def test_nothing_is_pruned_without_a_note(alice, worker, flow):
    execution = born(alice, flow)
    end(worker, flow, "completed", None)
    assert _prune(worker, 10**9, [execution]) == 0


@pytest.mark.parametrize("statuses", [["running"], ["completed", "pending"]])
def test_a_prune_of_what_has_not_ended_cannot_be_opened(worker, statuses):
    with pytest.raises(psycopg.errors.CheckViolation):
        _open_prune(worker, statuses, datetime.now(UTC))


def test_a_pruned_execution_leaves_the_one_that_repeats_it(owner, alice, worker, flow):
    execution = born(alice, flow)
    end(worker, flow, "completed", None)
    again = born(alice, flow, metadata={"rerun_of": str(execution)})
    _prune(worker, _open_prune(worker, ["completed"], datetime.now(UTC)), [execution])
    assert row(owner, again)["metadata"] == {"rerun_of": str(execution)}
    assert owner.execute("select 1 from flowledger.reruns").fetchall() == []


# -- Rights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [
    "flowledger.set_controls(%s, '{}')", "flowledger.pause_flow(%s)", "flowledger.resume_flow(%s)",
    "flowledger.expire(1 + length(%s::text))", "flowledger.open_prune(array[%s::text], now(), null)",
    "flowledger.prune(1, array[%s]::uuid[])", "flowledger.retry_if_due(%s, '{}', true)",
    "flowledger.heed_crash(%s, 'ProcessKilled')", "flowledger.startable(%s, 1, null)",
])  # fmt: skip
@pytest.mark.parametrize("role", ["authenticated", "anon"])
def test_users_decide_nothing_about_flows(as_user, flow, call, role):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        as_user(ALICE, role).execute(f"select {call}", [flow])


@pytest.mark.parametrize("table", ["flow_controls", "prunes"])
def test_users_do_not_read_what_operators_decide(alice, table):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        alice.execute(f"select * from flowledger.{table}")


@pytest.mark.parametrize("call", [
    "flowledger.retry_if_due(%s, '{}', true)", "flowledger.heed_crash(%s, 'x')", "flowledger.startable(%s, 1, null)",
])  # fmt: skip
def test_not_even_a_worker_calls_what_is_inside_the_law(worker, flow, call):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        worker.execute(f"select {call}", [flow])


# -- Locks ------------------------------------------------------------------------------------------------------------


def test_a_claim_a_renewal_and_a_crash_of_one_worker_do_not_deadlock(owner, alice, connect, worker, flow):
    """The claim holds the controls and wants its worker's row; the renewal wants the lease that the finish deletes; the
    finish wants the controls."""
    set_controls(worker, flow, concurrency=4, crash_limit=1000)
    worker.execute("select flowledger.enlist_worker(%s, 'host', 1, '0', 4, %s)", [OTHER_WORKER, [flow]])
    for _ in range(60):
        born(alice, flow)
    stop = threading.Event()
    held: dict[UUID, int] = {}

    def renewing(conn: psycopg.Connection) -> None:
        while not stop.is_set():
            mine = dict(held)
            conn.execute(
                "select * from flowledger.renew(%s, %s, %s, '30 s')", [OTHER_WORKER, list(mine), list(mine.values())]
            )

    def working(conn: psycopg.Connection) -> int:
        done = 0
        while claims := claim(conn, flow, slots=2, as_worker=OTHER_WORKER):
            held.update({one["execution_id"]: one["fence"] for one in claims})
            for one in claims:
                done += finish(conn, one["execution_id"], one["fence"], "failed", error_type="ProcessKilled") == "ok"
                held.pop(one["execution_id"], None)
        return done

    before = _deadlocks(owner)
    with ThreadPoolExecutor(4) as pool:
        renewals = [pool.submit(renewing, connect("flowledger_worker")) for _ in range(2)]
        done = sum(pool.map(working, [connect("flowledger_worker") for _ in range(2)]))
        stop.set()
        for one in renewals:
            one.result(30)
    assert done == 60
    assert _deadlocks(owner) == before


# -- In one line each -------------------------------------------------------------------------------------------------


def _another_flow(worker) -> UUID:
    return worker.execute("select id from flowledger.remember_flow('OTHER', 'Other', '', '{}', '')").fetchone()["id"]


def _new_version(worker, fingerprint: str) -> None:
    worker.execute(
        "select flowledger.remember_flow('FLOW', 'Flow', '', jsonb_build_object('fingerprint', %s::text), '')",
        [fingerprint],
    )


def _pause(worker, flow: UUID, reason: str | None = None) -> bool:
    return worker.execute("select flowledger.pause_flow(%s, %s) as changed", [flow, reason]).fetchone()["changed"]


def _resume(worker, flow: UUID) -> bool:
    return worker.execute("select flowledger.resume_flow(%s) as changed", [flow]).fetchone()["changed"]


def _expire(worker) -> list[UUID]:
    return [one["expire"] for one in worker.execute("select * from flowledger.expire()")]


def _let_deadlines_pass(owner) -> None:
    owner.execute(
        "update flowledger.queue set expires_at = clock_timestamp() - interval '1 ms' where expires_at > now()"
    )


def _open_prune(worker, statuses: list[str], before: datetime) -> int:
    row = worker.execute("select flowledger.open_prune(%s, %s, null) as opened", [statuses, before]).fetchone()
    return row["opened"]


def _prune(worker, opened: int, executions: list[UUID]) -> int:
    return worker.execute("select flowledger.prune(%s, %s) as gone", [opened, executions]).fetchone()["gone"]


def _deadlocks(owner) -> int:
    return owner.execute("select deadlocks from pg_stat_database where datname = current_database()").fetchone()[
        "deadlocks"
    ]


def _until_somebody_waits_for_a_lock(owner) -> None:
    """Waits for the fact that another connection is held up, at most 10 s."""
    for _ in range(1000):
        if owner.execute("select count(*) as n from pg_locks where not granted").fetchone()["n"]:
            return
        owner.execute("select pg_sleep(0.01)")
    raise AssertionError("nobody waited for a lock")
