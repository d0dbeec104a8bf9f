"""Windows: what may be spent in a day or a month holds for all workers together, and a used-up one starts nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from threading import Barrier

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.ledger.invariants import broken
from tests.ledger.law import (
    ALICE,
    BOB,
    UNREPORTED,
    Row,
    append_usage,
    born,
    expire,
    finish,
    reap,
    reserve,
    row,
    running,
    used,
)
from tests.ledger.test_law_spending import _until_it_waits, budget

USED_UP = "FL007"


@pytest.fixture
def other(worker):
    return worker.execute("select id from flowledger.remember_flow('OTHER', 'Other', '', '{}', '')").fetchone()["id"]


def reserved(owner: psycopg.Connection) -> list[tuple[int, Decimal | None, int]]:
    rows = owner.execute("select number, usd, tokens from flowledger.reservations order by number").fetchall()
    return [(one["number"], one["usd"], one["tokens"]) for one in rows]


def refused(user: psycopg.Connection, flow: object) -> psycopg.errors.Diagnostic:
    with pytest.raises(psycopg.DatabaseError) as refusal:
        born(user, flow)
    assert refusal.value.sqlstate == USED_UP
    return refusal.value.diag


# -- Room for a call --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scopes", [("everything",), ("flow",), ("user",), ("user", "flow", "everything")], ids=str)
def test_calls_that_are_made_at_once_cannot_pass_together_through_the_last_dollar(
    owner, alice, connect, worker, flow, scopes
):
    for scope in scopes:
        budget(worker, scope=scope, flow=flow if scope == "flow" else None, usd=1)
    runs = [running(alice, worker, flow) for _ in range(8)]
    workers = [connect("flowledger_worker") for _ in runs]
    for round_ in range(1, 4):
        together = Barrier(len(runs))

        def ask(one: tuple[psycopg.Connection, Row], number: int = round_, together: Barrier = together) -> list[Row]:
            together.wait()
            return reserve(*one, number, "0.30")

        with ThreadPoolExecutor(len(runs)) as pool:
            answers = list(pool.map(ask, zip(workers, runs, strict=True)))
        assert sorted(map(bool, answers)) == [False] * 3 + [True] * 5
        full = next(answer for answer in answers if answer)[0]
        assert (full["unit"], full["spent"], full["limit_"]) == ("usd", 0, 1)
        assert not full["is_final"], "there is room again if one of the others turns out cheaper"
        owner.execute("delete from flowledger.reservations")


def test_what_was_spent_never_passes_the_limit_whatever_the_calls_cost(owner, alice, connect, worker, flow):
    budget(worker, usd=2)
    runs = [running(alice, worker, flow) for _ in range(4)]

    def spend(one: tuple[psycopg.Connection, Row]) -> int:
        made = 0
        for number in range(1, 30):
            if not reserve(*one, number, "0.10"):
                made += append_usage(*one, used(number, cost_usd=str(Decimal(number % 10 + 1) / 100)))
        return made

    with ThreadPoolExecutor(len(runs)) as pool:
        made = sum(pool.map(spend, zip([connect("flowledger_worker") for _ in runs], runs, strict=True)))
    (window,) = worker.execute("select * from flowledger.windows(%s, null)", [flow]).fetchall()
    assert window["spent_usd"] <= 2
    # It ends only where not even one more of the dearest would fit.
    assert window["spent_usd"] > Decimal("1.9")
    assert made > 20
    assert (window["reserved_usd"], reserved(owner)) == (0, [])


def test_a_model_without_a_price_is_refused_where_dollars_are_limited(worker, held):
    budget(worker, usd=100)
    (full,) = reserve(worker, held, 1, None)
    assert (full["unit"], full["is_final"], full["is_warning"]) == ("usd", True, False)


def test_a_model_without_a_price_is_let_through_where_tokens_are_limited(owner, worker, held):
    budget(worker, tokens=1000)
    assert reserve(worker, held, 1, None, tokens=600) == []
    (full,) = reserve(worker, held, 2, None, tokens=600)
    assert (full["unit"], full["reserved"], full["limit_"], full["is_final"]) == ("tokens", 600, 1000, False)
    assert reserved(owner) == [(1, None, 600)]


def test_a_call_that_can_never_fit_is_told_so(worker, held):
    budget(worker, usd=1)
    (full,) = reserve(worker, held, 1, "1.01")
    assert full["is_final"]


def test_a_window_that_warns_says_so_and_lets_the_call_through(owner, worker, held):
    budget(worker, usd="0.5", on_reach="warn")
    assert reserve(worker, held, 1, "0.4") == []
    (full,) = reserve(worker, held, 2, "0.4")
    assert (full["is_warning"], full["is_final"], full["reserved"]) == (True, False, Decimal("0.4"))
    (unpriced,) = reserve(worker, held, 3, None)
    assert unpriced["is_warning"]
    assert [number for number, *_ in reserved(owner)] == [1, 2, 3]


def test_where_one_window_warns_and_another_stops_nothing_is_set_aside(owner, worker, held):
    budget(worker, usd=1, on_reach="warn")
    budget(worker, usd=1, period="month")
    assert [full["is_warning"] for full in reserve(worker, held, 1, "2")] == [False, True]
    assert reserved(owner) == []


def test_a_failed_call_and_a_cheaper_one_make_room(worker, held):
    budget(worker, usd=1)
    assert reserve(worker, held, 1, "0.8") == []
    assert reserve(worker, held, 2, "0.8") != []
    append_usage(worker, held, used(1, status="failed", price=None, **UNREPORTED))
    assert reserve(worker, held, 2, "0.8") == []
    append_usage(worker, held, used(2, cost_usd="0.1"))
    assert reserve(worker, held, 3, "0.9") == []


def test_asking_again_for_the_same_call_sets_its_room_aside_once(owner, worker, held):
    budget(worker, usd=1)
    for usd in ("0.8", "0.8", "0.9"):
        assert reserve(worker, held, 1, usd) == []
    assert reserved(owner) == [(1, Decimal("0.9"), 100)]


@pytest.mark.parametrize("status", ["completed", "unknown"])
def test_what_nobody_knows_the_cost_of_counts_as_what_was_set_aside_and_never_as_a_cost(owner, worker, held, status):
    budget(worker, usd=1, tokens=1000)
    reserve(worker, held, 1, "0.6", tokens=700)
    append_usage(worker, held, used(1, status=status, price=None, **UNREPORTED))
    assert reserved(owner) == []
    assert [full["unit"] for full in reserve(worker, held, 2, "0.6", tokens=700)] == ["usd", "tokens"]
    (window,) = worker.execute("select * from flowledger.windows(null, null)").fetchall()
    assert (window["spent_usd"], window["spent_tokens"]) == (Decimal("0.6"), 700)
    (told,) = owner.execute("select cost_usd, estimated_usd from flowledger.unfolded_spending").fetchall()
    assert told == {"cost_usd": 0, "estimated_usd": Decimal("0.6")}
    assert broken(owner) == []


def test_tokens_that_were_reported_without_a_price_count_by_what_was_set_aside_in_dollars_alone(worker, held):
    budget(worker, usd=1, tokens=1000)
    reserve(worker, held, 1, "0.6", tokens=700)
    append_usage(worker, held, used(1, price=None, cost_usd=None))
    (window,) = worker.execute("select * from flowledger.windows(null, null)").fetchall()
    assert (window["spent_usd"], window["spent_tokens"]) == (Decimal("0.6"), 110)


def test_a_call_that_failed_without_a_word_of_tokens_took_nothing(worker, held):
    budget(worker, usd=1, tokens=1000)
    reserve(worker, held, 1, "0.6", tokens=700)
    append_usage(worker, held, used(1, status="failed", price=None, **UNREPORTED))
    (window,) = worker.execute("select * from flowledger.windows(null, null)").fetchall()
    assert (window["spent_usd"], window["spent_tokens"], window["reserved_usd"]) == (0, 0, 0)


def test_without_a_window_nothing_is_set_aside(owner, worker, held, other):
    budget(worker, scope="flow", flow=other, usd=0)
    budget(worker, scope="user", user=BOB, usd=0)
    assert reserve(worker, held, 1, "5") == []
    assert reserved(owner) == []


def test_another_fence_sets_nothing_aside(owner, worker, held):
    budget(worker, usd=1)
    assert reserve(worker, {**held, "fence": held["fence"] + 1}, 1, "0.5") == []
    assert reserved(owner) == []


@pytest.mark.parametrize("is_bare", [False, True])
def test_the_end_of_an_execution_frees_its_room(owner, worker, held, is_bare):
    budget(worker, usd=1)
    reserve(worker, held, 1, "0.5")
    if is_bare:
        owner.execute("delete from flowledger.leases")
        reap(worker)
    else:
        finish(worker, held["execution_id"], held["fence"])
    assert reserved(owner) == []


def test_a_call_that_asks_while_its_run_is_ended_leaves_nothing_set_aside(owner, connect, worker, held):
    budget(worker, usd=1)
    asking = connect("flowledger_worker")
    with ThreadPoolExecutor(1) as pool:
        with worker.transaction():
            finish(worker, held["execution_id"], held["fence"], "timeout")
            going = pool.submit(reserve, asking, held, 1, "0.5")
            _until_it_waits(owner, asking)
        assert going.result(20) == []
    assert reserved(owner) == []


def test_a_run_that_is_ended_while_its_call_asks_takes_the_room_with_it(owner, connect, worker, held):
    budget(worker, usd=1)
    ending = connect("flowledger_worker")
    with ThreadPoolExecutor(1) as pool:
        with worker.transaction():
            assert reserve(worker, held, 1, "0.5") == []
            going = pool.submit(finish, ending, held["execution_id"], held["fence"])
            _until_it_waits(owner, ending)
        assert going.result(20) == "ok"
    assert reserved(owner) == []


# -- Days, months and whose -------------------------------------------------------------------------------------------


def test_yesterday_is_not_in_the_day_and_last_month_not_in_the_month(owner, worker, flow):
    days, months = budget(worker, usd=1), budget(worker, usd=1, period="month")
    spent_on = "(now() at time zone 'UTC')::date - 1", "date_trunc('month', now() at time zone 'UTC')::date"
    for day, usd in zip((*spent_on, f"{spent_on[1]} - 1"), (2, 4, 8), strict=True):
        owner.execute(
            "insert into flowledger.unfolded_spending (day, flow_id, execution_mode, cost_usd) "
            f"values ({day}, %s, 'manual', %s)".encode(),
            [flow, usd],
        )
    first_of_month = owner.execute("select extract(day from now() at time zone 'UTC')::integer as day").fetchone()[
        "day"
    ]
    told = {one["id"]: one["spent_usd"] for one in worker.execute("select * from flowledger.windows(%s, null)", [flow])}
    assert told[days] == (4 if first_of_month == 1 else 0)
    assert told[months] == (4 if first_of_month == 1 else 6)


def test_a_user_has_the_window_of_each_and_their_own_and_a_flow_only_its_own(worker, flow, other):
    each = budget(worker, scope="user", usd=1)
    of_bob = budget(worker, scope="user", user=BOB, usd=1)
    of_flow = budget(worker, scope="flow", flow=flow, usd=1)
    everything = budget(worker, usd=1)

    def windows(flow_id: object, user: object) -> set[int]:
        return {one["id"] for one in worker.execute("select id from flowledger.windows(%s, %s)", [flow_id, user])}

    assert windows(flow, ALICE) == {each, of_flow, everything}
    assert windows(other, BOB) == {each, of_bob, everything}
    assert windows(flow, None) == {of_flow, everything}


def test_of_a_window_of_each_user_nobody_takes_anothers_room(alice, bob, worker, flow):
    budget(worker, scope="user", usd=1)
    hers, his = running(alice, worker, flow), running(bob, worker, flow)
    assert reserve(worker, hers, 1, "0.9") == []
    assert reserve(worker, his, 1, "0.9") == []
    assert reserve(worker, hers, 2, "0.9") != []


def test_folding_changes_nothing_of_a_window(worker, held, flow):
    for given in ({}, {"scope": "flow", "flow": flow}, {"scope": "user"}):
        budget(worker, usd=1, **given)
    append_usage(worker, held, used(1, cost_usd="0.25"))
    told = []
    for _ in range(2):
        told.append(worker.execute("select * from flowledger.windows(%s, %s)", [flow, ALICE]).fetchall())
        worker.execute("select flowledger.fold_spending()")
    assert told[0] == told[1]
    assert [window["spent_usd"] for window in told[0]] == [Decimal("0.25")] * 3


# -- Starts -----------------------------------------------------------------------------------------------------------


def test_a_window_that_is_used_up_refuses_a_start_and_nothing_is_left_behind(owner, alice, worker, held, flow):
    budget(worker, scope="user", usd="0.01")
    append_usage(worker, held, used(1))
    facts = refused(alice, flow)
    assert facts.message_primary == "the day's budget of this user is used up: $0.01 of $0.01"
    assert facts.message_hint
    assert owner.execute("select from flowledger.queue").fetchall() == []
    counts = owner.execute("select count(*) as n from crewai_flow_executions").fetchone()
    assert counts["n"] == 1
    assert broken(owner) == []
    finish(worker, held["execution_id"], held["fence"])


def test_what_everybody_spends_is_not_told_to_a_user(alice, bob, worker, flow):
    held = running(bob, worker, flow)
    append_usage(worker, held, used(1))
    window = budget(worker, tokens=110)
    assert refused(alice, flow).message_primary == "the day's budget of everything is used up"
    worker.execute("select flowledger.remove_budget(%s)", [window])
    budget(worker, scope="flow", flow=flow, usd="0.01", period="month")
    assert refused(alice, flow).message_primary == "the month's budget of this flow is used up"


def test_a_window_with_room_another_users_and_one_that_warns_refuse_nothing(alice, worker, held, flow, other):
    append_usage(worker, held, used(1))
    budget(worker, usd="0.0101", tokens=111)
    budget(worker, usd=0, period="month", on_reach="warn")
    budget(worker, scope="user", user=BOB, usd=0)
    budget(worker, scope="flow", flow=other, usd=0)
    born(alice, flow)


def test_a_window_of_tokens_is_used_up_by_tokens(alice, worker, held, flow):
    append_usage(worker, held, used(1))
    budget(worker, scope="user", user=ALICE, tokens=110)
    assert refused(alice, flow).message_primary == "the day's budget of this user is used up: 110 of 110 tokens"


def test_a_retry_that_a_window_refuses_does_not_undo_the_outcome_that_it_follows(owner, alice, worker, flow):
    worker.execute("select flowledger.set_controls(%s, %s)", [flow, Jsonb({"retries": 1})])
    held = running(alice, worker, flow)
    budget(worker, usd=0)
    assert finish(worker, held["execution_id"], held["fence"], "failed", error_type="ValueError") == "ok"
    assert row(owner, held["execution_id"])["status"] == "failed"
    assert owner.execute("select from flowledger.reruns").fetchall() == []


def test_a_retry_that_nobody_watches_leaves_a_row_that_says_why(owner, worker, flow):
    worker.execute("select flowledger.set_controls(%s, %s)", [flow, Jsonb({"retries": 1})])
    owner.execute(
        "insert into crewai_flow_executions (flow_id, execution_key, execution_mode) values (%s, 'K', 'scheduled')",
        [flow],
    )
    (held,) = worker.execute(
        "select * from flowledger.claim(gen_random_uuid(), %s, '{60}', 1, '1 min')", [[flow]]
    ).fetchall()
    budget(worker, usd=0)
    assert finish(worker, held["execution_id"], held["fence"], "failed", error_type="ValueError") == "ok"
    (link,) = owner.execute("select execution_id, kind from flowledger.reruns").fetchall()
    told = row(owner, link["execution_id"])
    assert (link["kind"], told["status"], told["error_type"]) == ("retry", "failed", "BudgetExceeded")
    # The retry is born by whoever wrote the outcome.
    assert broken(owner, operators=["flowledger", "flowledger_worker"]) == []


def test_a_run_that_is_lost_frees_its_room_for_starts_too(owner, alice, worker, held, flow):
    budget(worker, usd=1)
    reserve(worker, held, 1, "0.5")
    expire(owner, held["execution_id"])
    reap(worker)
    (window,) = worker.execute("select * from flowledger.windows(null, null)").fetchall()
    assert (window["spent_usd"], window["reserved_usd"]) == (Decimal("0.5"), 0)
    born(alice, flow)


# -- Setting them -----------------------------------------------------------------------------------------------------


def test_setting_a_window_again_changes_it_and_removing_it_twice_says_so(owner, worker, flow):
    first = budget(worker, scope="flow", flow=flow, usd=1)
    again = budget(worker, scope="flow", flow=flow, tokens=5, on_reach="warn")
    monthly = budget(worker, scope="flow", flow=flow, usd=1, period="month")
    assert first == again != monthly
    told = owner.execute("select usd, tokens, on_reach, set_by from flowledger.budgets where id = %s", [first])
    assert told.fetchone() == {"usd": None, "tokens": 5, "on_reach": "warn", "set_by": "flowledger_worker"}
    removed = [worker.execute("select flowledger.remove_budget(%s) as gone", [first]).fetchone() for _ in range(2)]
    assert [one["gone"] for one in removed] == [True, False]


@pytest.mark.parametrize("given", [
    {"usd": None}, {"usd": -1}, {"usd": "NaN"}, {"tokens": -1}, {"usd": 1, "scope": "planet"},
    {"usd": 1, "period": "year"}, {"usd": 1, "on_reach": "shout"}, {"usd": 1, "scope": "flow"},
    {"usd": 1, "user": ALICE},
], ids=str)  # fmt: skip
def test_a_window_that_makes_no_sense_is_refused(worker, given):
    with pytest.raises(psycopg.errors.CheckViolation):
        budget(worker, **given)
