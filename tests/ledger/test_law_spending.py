"""What calls add up to: usage under the lease, sums by day, what a lost run leaves, failures, and who sees them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from decimal import Decimal
from functools import reduce
from operator import add
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from flowledger.domain.usage import CallStatus, LlmCall, Price, PricedCall, Total, Usage
from flowledger.ledger.usage import _stored
from tests.ledger.invariants import broken
from tests.ledger.law import (
    ALICE,
    Row,
    append_usage,
    expire,
    finish,
    reap,
    reserve,
    row,
    running,
    steps,
    used,
)

DENIED = "42501"


def spent(owner: psycopg.Connection, dimension: str = "flow") -> list[Row]:
    """What operators read, folded or not."""
    return owner.execute(
        """select key, sum(executions)::int as executions, sum(failed)::int as failed, sum(calls)::int as calls,
                  sum(failed_calls)::int as failed_calls, sum(unknown_calls)::int as unknown_calls,
                  sum(unpriced_calls)::int as unpriced_calls, sum(input_tokens + output_tokens)::int as tokens,
                  sum(cost_usd) as cost_usd, sum(estimated_usd) as estimated_usd,
                  sum(estimated_tokens)::int as estimated_tokens
           from flowledger.spending_now where dimension = %s group by key order by key""",
        [dimension],
    ).fetchall()


def lost(owner: psycopg.Connection, worker: psycopg.Connection, held: Row) -> Row:
    """The row that a reaper writes after the worker's death."""
    expire(owner, held["execution_id"])
    assert held["execution_id"] in reap(worker)
    # A retry is born by whoever writes the outcome.
    assert broken(owner, operators=["flowledger_worker"]) == []
    return row(owner, held["execution_id"])


# -- Usage ------------------------------------------------------------------------------------------------------------


def test_calls_are_counted_along_every_dimension_on_the_day_they_began(owner, alice, worker, flow):
    meeting = uuid4()
    held = running(alice, worker, flow, board_meeting_id=meeting)
    assert append_usage(worker, held, used(1, started_at="2026-03-01T23:59:59Z"), used(2, model="claude")) == 2
    keys = {"flow": flow, "user": ALICE, "mode": "manual", "meeting": meeting}
    for dimension, key in keys.items():
        (told,) = spent(owner, dimension)
        assert (told["key"], told["calls"], told["tokens"], told["cost_usd"]) == (str(key), 2, 220, Decimal("0.02"))
    assert [(one["key"], one["calls"]) for one in spent(owner, "model")] == [("claude", 1), ("gpt", 1)]
    days = owner.execute("select day::text from flowledger.spending_now where dimension = 'model' order by day")
    assert days.fetchone()["day"] == "2026-03-01"
    assert broken(owner) == []


def test_repeating_an_append_adds_nothing(owner, worker, held):
    assert append_usage(worker, held, used(1)) == 1
    before = spent(owner)
    assert append_usage(worker, held, used(1)) == 0
    assert append_usage(worker, held, used(1, cost_usd="9"), used(2), used(2)) == 1
    (told,) = spent(owner)
    assert (told["calls"], told["cost_usd"]) == (2, 2 * before[0]["cost_usd"])
    assert broken(owner) == []


def test_another_fence_and_an_ended_execution_get_nothing(owner, worker, held):
    assert append_usage(worker, {**held, "fence": held["fence"] + 1}, used(1)) == 0
    finish(worker, held["execution_id"], held["fence"])
    assert append_usage(worker, held, used(1)) == 0
    assert [(one["calls"], one["executions"]) for one in spent(owner)] == [(0, 1)]


def test_a_call_that_comes_while_the_reaper_ends_its_run_is_left_out_and_one_that_came_before_is_in_the_sum(
    owner, connect, worker, held
):
    late, early = connect("flowledger_worker"), connect("flowledger_worker")
    expire(owner, held["execution_id"])
    with ThreadPoolExecutor(1) as pool:
        with early.transaction():
            append_usage(early, held, used(1))
            # The reaper does not wait; it comes again.
            assert reap(worker) == {}
        with worker.transaction():
            assert len(reap(worker)) == 1
            going = pool.submit(append_usage, late, held, used(2))
            _until_it_waits(owner, late)
        assert going.result(20) == 0
    assert row(owner, held["execution_id"])["token_count"] == 110
    assert broken(owner) == []


@pytest.mark.parametrize("unfit", [{"input_tokens": 10**12}, {"output_tokens": -1}, {"cost_usd": "-1"},
                                   {"cost_usd": "NaN"}, {"price": None}, {"input_tokens": None}], ids=str)  # fmt: skip
def test_what_no_call_can_have_used_is_refused(owner, worker, held, unfit):
    with pytest.raises(psycopg.IntegrityError):
        append_usage(worker, held, used(1, **unfit))
    assert spent(owner) == []


# -- Sums -------------------------------------------------------------------------------------------------------------


def test_several_who_fold_at_once_add_each_amount_once(owner, alice, connect, worker, flow):
    for _ in range(40):
        held = running(alice, worker, flow)
        for number in range(1, 6):
            append_usage(worker, held, used(number, model=f"model-{number}"))
        finish(worker, held["execution_id"], held["fence"])
    before = {dimension: spent(owner, dimension) for dimension in ("flow", "user", "model", "mode", "meeting")}
    workers = [connect("flowledger_worker") for _ in range(4)]

    def fold(conn: psycopg.Connection) -> int:
        folded = 0
        while some := conn.execute("select flowledger.fold_spending(7) as folded").fetchone()["folded"]:
            folded += some
        return folded

    with ThreadPoolExecutor(4) as pool:
        folded = list(pool.map(fold, workers))
    assert sum(folded) == 40 * 6
    assert owner.execute("select from flowledger.unfolded_spending").fetchall() == []
    assert {dimension: spent(owner, dimension) for dimension in before} == before
    assert broken(owner) == []


def test_a_fold_that_is_undone_leaves_its_amounts_to_the_next(owner, connect, worker, held):
    append_usage(worker, held, used(1))
    dying = connect("flowledger_worker")
    dying.execute("begin; select flowledger.fold_spending()")
    assert worker.execute("select flowledger.fold_spending() as folded").fetchone()["folded"] == 0
    dying.close()
    _until(owner, "select from flowledger.unfolded_spending for update skip locked")
    assert worker.execute("select flowledger.fold_spending() as folded").fetchone()["folded"] == 1
    assert broken(owner) == []


def test_pruning_executions_keeps_what_they_spent(owner, worker, held):
    append_usage(worker, held, used(1))
    finish(worker, held["execution_id"], held["fence"], "failed", error_type="ValueError")
    before = spent(owner)
    owner.execute("select flowledger.fold_spending()")
    opened = worker.execute("select flowledger.open_prune('{failed}', now(), null) as opened").fetchone()["opened"]
    gone = worker.execute("select flowledger.prune(%s, %s) as gone", [opened, [held["execution_id"]]]).fetchone()
    assert gone["gone"] == 1
    for table in ("usage", "failures", "transitions"):
        assert owner.execute(f"select from flowledger.{table}".encode()).fetchall() == [], table
    assert spent(owner) == before


# -- The sum of an execution ------------------------------------------------------------------------------------------

_words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
_counts = st.integers(0, 2**39)
_amounts = st.decimals(0, 10**6, places=9)
_prices = st.builds(
    Price,
    input=_amounts,
    output=_amounts,
    source=_words,
    version=_words,
    cached_input=st.none() | _amounts,
    reasoning=st.none() | _amounts,
    call=_amounts,
)
_calls = st.builds(
    PricedCall,
    st.builds(
        LlmCall,
        number=st.just(1),
        call_id=_words,
        model=_words,
        provider=_words,
        started_at=st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31)),  # noqa: DTZ001 - of any zone
        status=st.sampled_from(CallStatus),
        usage=st.none() | st.builds(Usage, _counts, _counts, _counts, _counts, _counts),
    ),
    st.none() | _prices,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_calls, min_size=1, max_size=6))
def test_the_database_sums_calls_by_the_rule_of_the_domain(worker, held, calls):
    total = reduce(add, (Total.of(call.call, call.price) for call in calls))
    with worker.transaction(force_rollback=True):
        stored = [{**_stored(call), "number": number} for number, call in enumerate(calls, 1)]
        assert append_usage(worker, held, *stored) == len(calls)
        told = worker.execute("select * from flowledger.usage_total(%s)", [held["execution_id"]]).fetchone()
    assert told == {"token_count": total.tokens, "cost_usd": total.cost_usd, "metadata": total.as_metadata()}


def test_nobody_knows_that_a_lost_run_without_calls_made_none(worker, held):
    told = worker.execute("select * from flowledger.usage_total(%s)", [held["execution_id"]]).fetchone()
    assert told == {"token_count": None, "cost_usd": None, "metadata": {}}


# -- What a lost run leaves -------------------------------------------------------------------------------------------


def begun(worker: psycopg.Connection, held: Row, *events: Any) -> None:
    """The timeline saw calls begin."""
    for sequence, fields in enumerate(events, 1):
        worker.execute(
            "select flowledger.append_events("
            "%s, %s, %s, '{null}', '{null}', array[now()], '{llm_started}', '{gpt}', %s)",
            [[held["execution_id"]], [held["fence"]], [sequence], [Jsonb(fields)]],
        )


def test_a_lost_run_without_calls_has_no_sum(owner, worker, held):
    told = lost(owner, worker, held)
    assert (told["status"], told["token_count"], told["cost_usd"]) == ("failed", None, None)


def test_a_lost_run_keeps_the_sum_of_what_had_arrived(owner, worker, held):
    append_usage(worker, held, used(1), used(2, cost_usd="0.00004"))
    told = lost(owner, worker, held)
    assert (told["token_count"], told["cost_usd"]) == (220, Decimal("0.0100"))
    assert told["metadata"]["exact_cost_usd"] == "0.01004"
    assert told["metadata"]["usage"]["calls"] == 2


def test_a_sum_beyond_the_rows_columns_is_held_at_their_bounds(owner, worker, held):
    append_usage(worker, held, used(1, input_tokens=2**33, cost_usd="12345678.9"))
    expire(owner, held["execution_id"])
    reap(worker)
    told = row(owner, held["execution_id"])
    assert (told["token_count"], told["cost_usd"]) == (2**31 - 1, Decimal("999999.9999"))
    assert told["metadata"]["exact_cost_usd"] == "12345678.9"


def test_calls_that_nobody_saw_end_are_calls_of_a_lost_run(owner, worker, held):
    append_usage(worker, held, used(1))
    begun(worker, held, {"call": 1}, {"call": 2, "provider": "openai", "method": "draft", "retries": 1})
    told = lost(owner, worker, held)
    # What it did cost is a lower bound then.
    assert (told["token_count"], told["cost_usd"]) == (110, Decimal("0.0100"))
    usage = told["metadata"]["usage"]
    assert (usage["calls"], usage["calls_without_end"]) == (2, 1)
    (call,) = owner.execute("select * from flowledger.usage where status = 'unknown'").fetchall()
    assert (call["number"], call["model"], call["provider"], call["step"]) == (2, "gpt", "openai", "draft")
    assert (call["sequence"], call["retries"], call["input_tokens"]) == (2, 1, None)
    assert spent(owner)[0]["unknown_calls"] == 1


@pytest.mark.parametrize("call", ["x", None, -1, 1.5, 10**12, 1e300, [], {}, True], ids=str)
def test_nonsense_in_a_timeline_does_not_stop_the_reaper(owner, worker, held, call):
    begun(worker, held, {"call": call, "retries": call, "provider": call}, {"call": 2, "retries": call})
    told = lost(owner, worker, held)
    assert told["metadata"]["usage"]["calls"] == 1


def test_room_that_a_lost_run_had_set_aside_counts_as_estimated_and_is_free(owner, worker, held):
    budget(worker, usd=1)
    begun(worker, held, {"call": 1})
    # The second had not yet come to the timeline.
    for number in (1, 2):
        assert reserve(worker, held, number, "0.25", tokens=100) == []
    told = lost(owner, worker, held)
    assert (told["token_count"], told["cost_usd"]) == (None, None)
    assert told["metadata"]["unreported_models"] == ["gpt", "unknown"]
    (sums,) = spent(owner)
    assert (sums["calls"], sums["unknown_calls"], sums["cost_usd"]) == (2, 2, 0)
    assert (sums["estimated_usd"], sums["estimated_tokens"]) == (Decimal("0.50"), 200)
    assert owner.execute("select from flowledger.reservations").fetchall() == []


def test_a_retry_of_a_lost_run_is_not_born_with_its_sums(owner, alice, worker, flow):
    worker.execute("select flowledger.set_controls(%s, %s)", [flow, Jsonb({"retries": 1, "idempotent": True})])
    held = running(alice, worker, flow, metadata={"timeout_seconds": 9})
    append_usage(worker, held, used(1))
    lost(owner, worker, held)
    (retry,) = owner.execute("select metadata from crewai_flow_executions where status = 'pending'").fetchall()
    assert retry["metadata"] == {"timeout_seconds": 9, "rerun_of": str(held["execution_id"])}


# -- Failures ---------------------------------------------------------------------------------------------------------


def test_a_failure_is_listed_with_what_it_wasted_exactly(owner, worker, held):
    append_usage(worker, held, used(1, cost_usd="0.00001"), used(2, price=None, cost_usd=None))
    told = {"error_fingerprint": "abc", "error_place": "main.py:draft", "flow_version": 3}
    finish(worker, held["execution_id"], held["fence"], "failed", error_type="ValueError", tokens=220, metadata=told)
    (failure,) = owner.execute("select * from flowledger.failures").fetchall()
    assert (failure["fingerprint"], failure["place"], failure["flow_version"]) == ("abc", "main.py:draft", 3)
    # The row's cost is unknown; what is known of it was wasted.
    assert (failure["token_count"], failure["cost_usd"]) == (220, Decimal("0.00001"))


def test_a_failure_without_a_fingerprint_has_that_of_its_flow_and_type(owner, alice, worker, flow):
    for error_type in ("ValueError", "ValueError", "KeyError"):
        held = running(alice, worker, flow)
        finish(worker, held["execution_id"], held["fence"], "failed", error_type=error_type)
    counts = owner.execute("select count(*) as n from flowledger.failures group by fingerprint order by n")
    assert [one["n"] for one in counts] == [1, 2]


@pytest.mark.parametrize("version", [1e300, -1, "x", None, [], 2**31], ids=str)
def test_nonsense_in_a_users_metadata_does_not_keep_an_execution_from_failing(owner, alice, worker, flow, version):
    given = {"flow_version": version, "error_fingerprint": "f" * 5000, "error_place": ["x"] * 1000}
    held = running(alice, worker, flow, metadata=given)
    lost(owner, worker, held)
    (failure,) = owner.execute("select * from flowledger.failures").fetchall()
    assert (failure["flow_version"], len(failure["fingerprint"])) == (None, 64)


def test_what_completed_or_was_cancelled_is_no_failure(owner, alice, worker, flow):
    for status in ("completed", "cancelled", "timeout"):
        held = running(alice, worker, flow)
        finish(worker, held["execution_id"], held["fence"], status)
    assert len(owner.execute("select from flowledger.failures").fetchall()) == 1
    (told,) = spent(owner)
    assert (told["executions"], told["failed"]) == (3, 1)
    assert broken(owner) == []


# -- Windows that are used up -----------------------------------------------------------------------------------------


def budget(worker: psycopg.Connection, **given: Any) -> int:
    facts = {"scope": "everything", "flow": None, "user": None, "period": "day", "usd": None, "tokens": None,
             "on_reach": "stop", **given}  # fmt: skip
    return worker.execute(
        "select flowledger.set_budget(%(scope)s, %(flow)s, %(user)s, %(period)s, %(usd)s, %(tokens)s, %(on_reach)s) "
        "as id",
        facts,
    ).fetchone()["id"]


@pytest.mark.parametrize("mode", ["scheduled", "triggered"])
def test_a_start_that_nobody_watches_leaves_a_failed_row_that_says_why(owner, worker, flow, mode):
    budget(worker, scope="flow", flow=flow, usd=0)
    execution = owner.execute(
        "insert into crewai_flow_executions (flow_id, execution_key, executed_by, execution_mode) "
        "values (%s, 'FLOW-1', %s, %s) returning id",
        [flow, ALICE, mode],
    ).fetchone()["id"]
    told = row(owner, execution)
    assert (told["status"], told["error_type"], told["duration_ms"]) == ("failed", "BudgetExceeded", None)
    assert told["error_message"] == "It did not start: the day's budget of this flow is used up."
    assert steps(owner, execution) == [(None, "pending", "flowledger"), ("pending", "failed", "reaper")]
    assert owner.execute("select from flowledger.queue").fetchall() == []
    assert [(one["executions"], one["failed"]) for one in spent(owner)] == [(1, 1)]
    assert broken(owner, operators=["flowledger"]) == []
    # Whoever acts next in the same session is not taken for the reaper.
    assert owner.execute("select coalesce(current_setting('flowledger.actor', true), '') as a").fetchone()["a"] == ""


# -- Who sees it ------------------------------------------------------------------------------------------------------


def test_a_user_sees_the_usage_repricings_and_failures_of_their_own_executions_only(alice, bob, owner, worker, flow):
    for user in (alice, bob):
        held = running(user, worker, flow)
        append_usage(worker, held, used(1))
        finish(worker, held["execution_id"], held["fence"], "failed", error_type="ValueError")
        owner.execute(
            "insert into flowledger.repricings (execution_id, repriced_by, new_usd, prices) values (%s, 'me', 1, '{}')",
            [held["execution_id"]],
        )
    for table in ("usage", "repricings", "failures"):
        for user in (alice, bob):
            seen = user.execute(f"select execution_id from flowledger.{table}".encode()).fetchall()
            own = user.execute("select id from crewai_flow_executions").fetchall()
            assert [one["execution_id"] for one in seen] == [one["id"] for one in own], table
        assert worker.execute(f"select count(*) as n from flowledger.{table}".encode()).fetchone()["n"] == 2


@pytest.mark.parametrize(
    "statement",
    [
        "select * from flowledger.spending",
        "select * from flowledger.unfolded_spending",
        "select * from flowledger.spending_now",
        "select * from flowledger.budgets",
        "select * from flowledger.reservations",
        "select * from flowledger.windows(gen_random_uuid(), auth.uid())",
        "select flowledger.used_up(gen_random_uuid(), auth.uid())",
        "select flowledger.usage_total(gen_random_uuid())",
        "select flowledger.append_usage('{}', '{}', '{}')",
        "select flowledger.reserve(gen_random_uuid(), 1, 1, 1, 1)",
        "select flowledger.fold_spending()",
        "select flowledger.note_lost_calls(gen_random_uuid())",
        "select flowledger.set_budget('everything', null, null, 'day', 1, null, 'stop')",
        "select flowledger.remove_budget(1)",
        "select flowledger.count_ended(executions) from crewai_flow_executions as executions",
        "select flowledger.note_failure(executions) from crewai_flow_executions as executions",
        "insert into flowledger.usage (execution_id) values (gen_random_uuid())",
        "delete from flowledger.failures",
        "update flowledger.prices set input_usd = 0",
    ],
)
def test_users_and_strangers_meet_no_sum_no_window_and_no_function_of_theirs(alice, as_user, statement):
    for caller in (alice, as_user(role="anon")):
        with pytest.raises(psycopg.DatabaseError) as refusal:
            caller.execute(statement.encode())
        assert refusal.value.sqlstate == DENIED


def _until_it_waits(owner: psycopg.Connection, other: psycopg.Connection) -> None:
    _until(owner, f"select where cardinality(pg_blocking_pids({other.info.backend_pid})) > 0")


def _until(owner: psycopg.Connection, question: str) -> None:
    while owner.execute(question.encode()).fetchone() is None:
        pass
