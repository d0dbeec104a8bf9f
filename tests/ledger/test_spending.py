"""What is told of spending, and to whom: sums along each dimension, estimates, failures in groups, windows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.session import Claims, Database
from flowledger.domain.budget import Budget
from flowledger.domain.dimension import Dimension
from flowledger.domain.execution import NewExecution
from flowledger.domain.reach import OnReach
from flowledger.domain.usage import Usage
from flowledger.domain.window import Period, Scope
from flowledger.errors import BudgetUsedUp, FlowNotFound, InvalidInput, PermissionRefused
from flowledger.ledger import budgets, executions, failures, flows, spending, usage
from flowledger.ledger.budgets import Whose
from flowledger.ledger.spending import Days, Estimate, Of, Spent
from tests.ledger import law
from tests.ledger.law import ALICE, BOB, UNREPORTED, Row, append_usage, running, used

Ask = Callable[..., Awaitable[Any]]
OPERATOR = Claims.of_operator()
TODAY = datetime.now(UTC).date()
MEETING = uuid4()
KEYS = {Dimension.FLOW: "FLOW", Dimension.USER: str(ALICE), Dimension.MODE: "manual", Dimension.MEETING: str(MEETING)}


@pytest.fixture
async def asked(database: EmbeddedPostgres) -> AsyncIterator[Ask]:
    """What one of the ledger's functions answers to these claims."""
    async with Database(database.url("flowledger_api"), most_connections=2) as api:

        async def asked(claims: Claims, function: Callable[..., Awaitable[Any]], *given: Any, **more: Any) -> Any:
            async with api.session(claims) as session:
                return await function(session, *given, **more)

        yield asked


def ran(
    user: psycopg.Connection[Row],
    worker: psycopg.Connection[Row],
    flow: UUID,
    *calls: Row,
    status: str = "completed",
    **outcome: Any,
) -> UUID:
    """An execution of the meeting that made these calls and ended."""
    return law.ran(user, worker, flow, *calls, status=status, columns={"board_meeting_id": MEETING}, **outcome)


@pytest.fixture
def spent(alice, worker, flow) -> None:
    """Alice's: one completed execution, with a call of each kind, and one that failed."""
    ran(
        alice,
        worker,
        flow,
        used(1),
        used(2, model="claude", cost_usd="0.00000001"),
        used(3, price=None, cost_usd=None),
        used(4, price=None, **UNREPORTED),
        used(5, status="failed", price=None, **UNREPORTED),
    )
    ran(alice, worker, flow, status="failed", error_type="ValueError")


WHOLE = Spent(
    day=None,
    key=None,
    executions=2,
    failed=1,
    calls=5,
    failed_calls=1,
    unknown_calls=1,
    unpriced_calls=1,
    usage=Usage(300, 120, 15, 30, 9),
    cost_usd=Decimal("0.01000001"),
    repriced_usd=Decimal("0.01000001"),
)


# -- Sums -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_folded", [False, True])
@pytest.mark.parametrize("dimension", Dimension)
async def test_operator_and_user_are_told_the_same_sums_along_every_dimension(
    asked, worker, spent, dimension, is_folded
):
    if is_folded:
        worker.execute("select flowledger.fold_spending()")
    told = await asked(OPERATOR, spending.by, OPERATOR, dimension)
    assert told == await asked(Claims(ALICE), spending.by, Claims(ALICE), dimension)
    assert told
    whole = spending.total(told)
    if dimension is Dimension.MODEL:
        assert [(one.key, one.calls, one.executions) for one in told] == [("gpt", 4, None), ("claude", 1, None)]
        assert (whole.executions, whole.cost_usd, whole.usage) == (None, WHOLE.cost_usd, WHOLE.usage)
    else:
        assert whole == WHOLE
        assert [one.key for one in told] == [KEYS.get(dimension)]
        assert told[0].day == (TODAY if dimension is Dimension.DAY else None)
    assert whole.is_lower_bound


@pytest.mark.parametrize("dimension", Dimension)
async def test_a_user_is_told_nothing_of_what_others_spend(asked, spent, dimension):
    assert await asked(Claims(BOB), spending.by, Claims(BOB), dimension) == []
    assert await asked(Claims(BOB), spending.by_day_and_flow, Claims(BOB)) == []


async def test_nothing_spent_is_a_sum_too():
    assert spending.total([]).cost_usd == 0
    assert not spending.total([]).is_lower_bound


async def test_the_dearest_comes_first_and_days_come_in_their_order(asked, alice, bob, worker, flow):
    ran(alice, worker, flow, used(1, cost_usd="1", started_at="2026-02-03T00:00:00Z"))
    ran(bob, worker, flow, used(1, cost_usd="2", started_at="2026-02-02T23:59:59Z"))
    by_user = await asked(OPERATOR, spending.by, OPERATOR, Dimension.USER)
    assert [(one.key, one.cost_usd) for one in by_user] == [(str(BOB), 2), (str(ALICE), 1)]
    days = await asked(OPERATOR, spending.by, OPERATOR, Dimension.DAY)
    assert [(one.day, one.cost_usd) for one in days] == [(date(2026, 2, 2), 2), (date(2026, 2, 3), 1), (TODAY, 0)]


@pytest.mark.parametrize("claims", [OPERATOR, Claims(ALICE)], ids=["operator", "user"])
async def test_days_bound_what_is_told(asked, alice, worker, flow, claims):
    ran(alice, worker, flow, *(used(day, started_at=f"2026-02-0{day}T12:00:00Z") for day in range(1, 6)))

    async def calls(days: Days) -> int:
        return spending.total(await asked(claims, spending.by, claims, Dimension.FLOW, days)).calls

    assert await calls(Days(date(2026, 2, 2), date(2026, 2, 4))) == 3
    assert await calls(Days(last=date(2026, 2, 4))) == 4
    assert await calls(Days(first=date(2026, 2, 5))) == 1


def test_days_between_two_moments_are_all_that_have_a_part_in_it():
    noon = datetime(2026, 2, 3, 12, tzinfo=UTC)
    midnight = datetime(2026, 2, 5, tzinfo=UTC)
    assert Days.between(noon, midnight) == Days(date(2026, 2, 3), date(2026, 2, 4))
    assert Days.between(noon, noon + timedelta(hours=1)) == Days(date(2026, 2, 3), date(2026, 2, 3))
    assert Days.between(None, None) == Days()


@pytest.mark.parametrize("claims", [OPERATOR, Claims(ALICE)], ids=["operator", "user"])
@pytest.mark.parametrize("dimension", Dimension)
async def test_sums_of_one_flow_leave_out_the_others(asked, alice, worker, flow, claims, dimension):
    other = _flow(worker, "OTHER")
    ran(alice, worker, flow, used(1))
    ran(alice, worker, other, used(1, cost_usd="5"))
    (told,) = await asked(claims, spending.by, claims, dimension, of=Of(flow=flow))
    assert (told.calls, told.cost_usd) == (1, Decimal("0.01"))


@pytest.mark.parametrize("claims", [OPERATOR, Claims(ALICE)], ids=["operator", "user"])
@pytest.mark.parametrize("dimension", Dimension)
async def test_sums_of_one_meeting_leave_out_the_others_whether_of_one_flow_or_of_all(
    asked, alice, worker, flow, claims, dimension
):
    other = _flow(worker, "OTHER")
    ran(alice, worker, flow, used(1))
    ran(alice, worker, other, used(1, cost_usd="5"))
    law.ran(alice, worker, flow, used(1, cost_usd="7"))
    of_meeting = await asked(claims, spending.by, claims, dimension, of=Of(meeting=MEETING))
    assert spending.total(of_meeting).cost_usd == Decimal("5.01")
    (of_both,) = await asked(claims, spending.by, claims, dimension, of=Of(flow, MEETING))
    assert of_both.cost_usd == Decimal("0.01")


async def test_an_operator_who_is_somebody_is_told_the_same_as_one_who_is_nobody(asked, alice, worker, flow):
    somebody = Claims(BOB, "service_role")
    ran(alice, worker, flow, used(1))
    for dimension in Dimension:
        (told,) = await asked(somebody, spending.by, somebody, dimension, of=Of(flow))
        assert told.calls == 1
    assert (await asked(somebody, spending.estimate, somebody, flow)).runs == 1


def test_days_at_the_ends_of_the_calendar_are_days_and_none_is_no_span():
    first, last = datetime.fromisoformat("0001-01-01T00:00+14:00"), datetime.fromisoformat("9999-12-31T23:00-12:00")
    assert Days.between(first, last) == Days(date.min, date.max)
    with pytest.raises(InvalidInput, match="until"):
        Days.between(last, last)


@pytest.mark.parametrize("claims", [OPERATOR, Claims(ALICE)], ids=["operator", "user"])
async def test_each_flow_is_told_on_each_day(asked, alice, worker, flow, claims):
    other = _flow(worker, "OTHER")
    ran(alice, worker, flow, used(1, started_at="2026-02-01T00:00:00Z"), used(2, started_at="2026-02-02T00:00:00Z"))
    ran(alice, worker, other, used(1, started_at="2026-02-02T00:00:00Z"))
    told = await asked(claims, spending.by_day_and_flow, claims, Days(last=date(2026, 2, 28)))
    assert [(one.day, one.key, one.calls) for one in told] == [
        (date(2026, 2, 1), "FLOW", 1), (date(2026, 2, 2), "FLOW", 1), (date(2026, 2, 2), "OTHER", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("dimension", Dimension)
async def test_what_later_prices_add_is_told_beside_the_cost(asked, alice, worker, flow, dimension):
    execution = ran(alice, worker, flow, used(1), used(2, price=None, cost_usd=None), used(3))
    worker.execute(
        "select flowledger.reprice(%s, %s, %s, %s)",
        [[execution] * 2, [1, 2], [Jsonb({})] * 2, [Decimal("0.03"), Decimal("0.5")]],
    )
    for claims in (OPERATOR, Claims(ALICE)):
        (told,) = await asked(claims, spending.by, claims, dimension)
        assert (told.cost_usd, told.repriced_usd) == (Decimal("0.02"), Decimal("0.54"))
        assert (told.unpriced_calls, told.is_lower_bound) == (0, False)


async def test_folding_leaves_every_sum_as_it_was(asked, database, spent):
    before = await asked(OPERATOR, spending.by_day_and_flow, OPERATOR)
    async with Database(database.url("flowledger_worker"), most_connections=1) as service, service.service() as worker:
        await usage.fold(worker)
    assert await asked(OPERATOR, spending.by_day_and_flow, OPERATOR) == before


# -- Estimates --------------------------------------------------------------------------------------------------------


async def test_an_estimate_is_the_median_of_the_last_twenty_completed_runs(asked, alice, bob, worker, flow):
    for cents in (900, *range(1, 21)):
        ran(alice, worker, flow, used(1, cost_usd=f"0.{cents:06}"), tokens=cents, cost=Decimal(f"0.{cents:06}"))
    ran(alice, worker, flow, used(1), status="failed", error_type="ValueError", tokens=10**6)
    for claims in (OPERATOR, Claims(ALICE)):
        told = await asked(claims, spending.estimate, claims, flow)
        # The first is too long ago. The row's cost has four digits; this one has all.
        assert (told.runs, told.cost_usd, told.tokens) == (20, Decimal("0.000010"), 10)
        assert told.duration_ms is not None
    assert await asked(Claims(BOB), spending.estimate, Claims(BOB), flow) == Estimate(0, None, None, None)


async def test_what_is_not_known_of_a_run_is_in_no_median(asked, alice, worker, flow):
    ran(alice, worker, flow, used(1, price=None, cost_usd=None), tokens=100)
    assert (await asked(OPERATOR, spending.estimate, OPERATOR, flow)).cost_usd is None
    ran(alice, worker, flow, used(1, cost_usd="0.5"), tokens=300, cost=Decimal("0.5"))
    told = await asked(OPERATOR, spending.estimate, OPERATOR, flow)
    assert (told.runs, told.cost_usd, told.tokens) == (2, Decimal("0.5"), 100)


# -- Failures ---------------------------------------------------------------------------------------------------------


async def test_failures_of_one_fingerprint_are_a_group_across_flows_and_versions(asked, owner, alice, worker, flow):
    other = _flow(worker, "OTHER")
    for of_flow, version, message in ((flow, 1, "first"), (flow, 2, "second"), (other, None, "third")):
        told = {"error_fingerprint": "same", "error_place": "main.py:draft", "flow_version": version}
        held = running(alice, worker, of_flow)
        append_usage(worker, held, used(1))
        worker.execute(
            "select flowledger.finish(%s, %s, 'failed', null, 'shop.NoStock', %s, null, 110, 0.01, 0, %s)",
            [held["execution_id"], held["fence"], f"{message}\nand more", Jsonb(told)],
        )
    ran(alice, worker, flow, status="timeout", error_type="Timeout")
    latest, earlier = await asked(Claims(ALICE), failures.groups, Claims(ALICE))
    assert latest.error_type == "Timeout"
    assert (earlier.fingerprint, earlier.count, earlier.error_type) == ("same", 3, "shop.NoStock")
    assert earlier.flows == {"FLOW": [1, 2], "OTHER": []}
    assert (earlier.place, earlier.message, earlier.example) == ("main.py:draft", "third", held["execution_id"])
    assert (earlier.tokens, earlier.cost_usd, earlier.unpriced) == (330, Decimal("0.03"), 0)
    assert earlier.first_seen < earlier.last_seen
    assert (latest.tokens, latest.cost_usd, latest.unpriced) == (None, None, 1)
    (of_other,) = await asked(OPERATOR, failures.groups, OPERATOR, flow=other)
    assert (of_other.count, of_other.flows) == (1, {"OTHER": []})
    assert await asked(Claims(BOB), failures.groups, Claims(BOB)) == []


async def test_a_group_was_first_seen_when_it_was_first_seen_whatever_is_asked_for(asked, owner, alice, worker, flow):
    for days in (40, 0):
        execution = ran(alice, worker, flow, status="failed", error_type="ValueError")
        owner.execute(
            "update flowledger.failures set failed_at = failed_at - make_interval(days => %s) where execution_id = %s",
            [days, execution],
        )
    month_ago = datetime.now(UTC) - timedelta(days=30)
    for claims in (OPERATOR, Claims(ALICE)):
        (group,) = await asked(claims, failures.groups, claims, since=month_ago)
        assert group.count == 1
        assert group.last_seen - group.first_seen > timedelta(days=39)
        (group,) = await asked(claims, failures.groups, claims, until=month_ago)
        assert group.last_seen == group.first_seen < month_ago
        assert group.example != execution


# -- Windows ----------------------------------------------------------------------------------------------------------


async def test_a_window_is_told_with_what_is_spent_set_aside_and_left(asked, alice, worker, flow):
    of_flow = Whose(Scope.FLOW, flow=flow)
    await asked(OPERATOR, budgets.set_, of_flow, Period.DAY, Budget(usd=Decimal(1), tokens=1000))
    held = running(alice, worker, flow)
    append_usage(worker, held, used(1, cost_usd="0.25"))
    law.reserve(worker, held, 2, "0.5", tokens=300)
    (window,) = await asked(OPERATOR, budgets.list_)
    assert (window.scope, window.flow_key, window.period) == (Scope.FLOW, "FLOW", Period.DAY)
    assert (window.spent_usd, window.reserved_usd, window.left_usd) == (
        Decimal("0.25"),
        Decimal("0.5"),
        Decimal("0.25"),
    )
    assert (window.spent_tokens, window.reserved_tokens, window.left_tokens) == (110, 300, 590)
    assert (window.on_reach, window.set_by, window.told_of) == (OnReach.STOP, "flowledger_api", None)


async def test_a_window_of_each_user_tells_of_who_has_spent_the_most(asked, alice, bob, worker, flow):
    await asked(OPERATOR, budgets.set_, Whose(Scope.USER), Period.MONTH, Budget(usd=Decimal(1)))
    (window,) = await asked(OPERATOR, budgets.list_)
    assert (window.told_of, window.spent_usd, window.left_usd) == (None, 0, 1)
    for user, usd in ((alice, "0.1"), (bob, "3")):
        ran(user, worker, flow, used(1, cost_usd=usd))
    (window,) = await asked(OPERATOR, budgets.list_)
    assert (window.user_id, window.told_of, window.spent_usd, window.left_usd) == (None, BOB, 3, 0)


async def test_only_operators_meet_windows(asked, flow):
    whose = Whose(Scope.EVERYTHING)
    id_ = await asked(OPERATOR, budgets.set_, whose, Period.DAY, Budget(tokens=5))
    for function, *given in (
        (budgets.list_,), (budgets.set_, whose, Period.DAY, Budget(tokens=9)), (budgets.remove, id_),
    ):  # fmt: skip
        with pytest.raises(PermissionRefused):
            await asked(Claims(ALICE), function, *given)
    assert await asked(OPERATOR, budgets.remove, id_) is True
    assert await asked(OPERATOR, budgets.remove, id_) is False


async def test_a_window_without_a_limit_is_refused(asked):
    with pytest.raises(InvalidInput):
        await asked(OPERATOR, budgets.set_, Whose(Scope.EVERYTHING), Period.DAY, Budget())


async def test_a_start_that_a_window_refuses_is_told_in_words(asked, flow):
    await asked(OPERATOR, budgets.set_, Whose(Scope.EVERYTHING), Period.DAY, Budget(usd=Decimal(0)))
    with pytest.raises(BudgetUsedUp) as refusal:
        await asked(Claims(ALICE), executions.record, NewExecution("FLOW"))
    assert refusal.value.title == "the day's budget of everything is used up"


async def test_a_flow_is_found_by_its_key(asked, flow):
    assert await asked(OPERATOR, flows.find, "FLOW") == flow
    with pytest.raises(FlowNotFound):
        await asked(OPERATOR, flows.find, "NONE")


def _flow(worker: psycopg.Connection[Row], key: str) -> UUID:
    row = worker.execute("select id from flowledger.remember_flow(%s, 'x', '', '{}', '')", [key]).fetchone()
    assert row is not None
    return UUID(str(row["id"]))
