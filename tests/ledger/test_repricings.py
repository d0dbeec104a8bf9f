"""A repricing stands beside what was known: frozen rows stay, a difference counts once, unknown stays unknown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.session import Claims, Database
from flowledger.domain.usage import CallStatus, Price, Repricing, cost
from flowledger.errors import PermissionRefused
from flowledger.ledger import repricings, usage
from flowledger.ledger.repricings import PastCall, RepricedCall, Which
from tests.ledger.past import call, ended, price

OPERATOR, ALICE, BOB = Claims.of_operator(), Claims(uuid4()), Claims(uuid4())
ALL = Which(datetime(2020, 1, 1, tzinfo=UTC))
OLD, NEW = price("1", "2"), price("2", "3", version="0.2")


@pytest.fixture
async def api(database: EmbeddedPostgres) -> AsyncIterator[Database]:
    async with Database(database.url("flowledger_api"), most_connections=4) as api:
        yield api


async def _calls(api: Database, which: Which = ALL, limit: int = 100) -> list[PastCall]:
    found, place, first = [], None, True
    while place or first:
        async with api.session(OPERATOR) as session:
            calls, place = await repricings.page(session, which, limit=limit, after=place)
        found += calls
        first = False
    return found


async def _reprice(api: Database, at: Price, which: Which = ALL, claims: Claims = OPERATOR) -> int:
    calls = [RepricedCall(one, at, cost(one.usage, at)) for one in await _calls(api, which)]
    async with api.session(claims) as session:
        return await repricings.record(session, calls)


async def _told(api: Database, execution: UUID, claims: Claims = OPERATOR) -> list[Repricing]:
    async with api.session(claims) as session:
        return await usage.repricings(session, execution)


def _rows(database: EmbeddedPostgres, text: str) -> list[Any]:
    with psycopg.connect(database.url("flowledger"), autocommit=True) as owner:
        return owner.execute(text.encode()).fetchall()


def _spent(database: EmbeddedPostgres) -> tuple[Any, ...]:
    """What was spent on all models, folded or not: then, what repricing adds, calls without a price."""
    return tuple(
        _rows(
            database,
            "select sum(cost_usd), sum(repriced_usd), sum(unpriced_calls) from flowledger.spending_now "
            "where dimension = 'model'",
        )[0]
    )


def _past(database: EmbeddedPostgres, *calls: Any, **facts: Any) -> UUID:
    assert ALICE.user is not None
    return ended(database, ALICE.user, *calls, **facts)


async def test_a_repricing_says_both_figures_by_whom_and_at_which_price(
    api: Database, database: EmbeddedPostgres
) -> None:
    execution = _past(database, call(priced=OLD), call("other", priced=OLD))
    assert await _reprice(api, NEW) == 1
    (told,) = await _told(api, execution)
    assert (told.old_usd, told.new_usd, told.repriced_by) == (6, 10, "flowledger_api")
    assert {model: Price.from_json(used) for model, used in told.prices.items()} == {"gpt-4o": NEW, "other": NEW}
    assert _spent(database) == (6, 4, 0)


async def test_rows_of_the_past_are_the_same_to_the_last_byte(api: Database, database: EmbeddedPostgres) -> None:
    _past(database, call(priced=OLD), call())
    before = [
        _rows(database, f"select xmin, one::text from {table} as one order by 2")
        for table in ("crewai_flow_executions", "flowledger.usage")
    ]
    assert await _reprice(api, NEW) == 1
    assert before == [
        _rows(database, f"select xmin, one::text from {table} as one order by 2")
        for table in ("crewai_flow_executions", "flowledger.usage")
    ]


async def test_repricing_twice_counts_once(api: Database, database: EmbeddedPostgres) -> None:
    execution = _past(database, call(priced=OLD))
    assert [await _reprice(api, NEW), await _reprice(api, NEW)] == [1, 0]
    assert (len(await _told(api, execution)), _spent(database)) == (1, (3, 2, 0))


async def test_two_repricings_at_one_time_count_once(api: Database, database: EmbeddedPostgres) -> None:
    _past(database, call(priced=OLD))
    calls = [RepricedCall(one, NEW, cost(one.usage, NEW)) for one in await _calls(api)]

    async def record() -> int:
        async with api.session(OPERATOR) as session:
            return await repricings.record(session, calls)

    assert sorted(await asyncio.gather(*(record() for _ in range(4)))) == [0, 0, 0, 1]
    assert _spent(database) == (3, 2, 0)


async def test_the_last_repricing_counts_and_the_first_figure_stays(api: Database, database: EmbeddedPostgres) -> None:
    execution = _past(database, call(priced=OLD))
    await _reprice(api, NEW)
    with psycopg.connect(database.url("flowledger_worker"), autocommit=True) as service:
        service.execute("select flowledger.fold_spending()")
    await _reprice(api, price("10", "0"))
    assert _spent(database) == (3, 7, 0)
    await _reprice(api, OLD)
    assert _spent(database) == (3, 0, 0)
    told = await _told(api, execution)
    assert [(one.old_usd, one.new_usd) for one in told] == [(3, 3), (3, 10), (3, 5)], "the latest first"
    assert [one.prices for one in told[:1]] == [{"gpt-4o": OLD.as_json()}]


async def test_what_had_no_price_is_known_from_then_on(api: Database, database: EmbeddedPostgres) -> None:
    execution = _past(database, call(priced=OLD), call("new"))
    assert _spent(database) == (3, 0, 1)
    await _reprice(api, OLD)
    (told,) = await _told(api, execution)
    assert (told.old_usd, told.new_usd, told.prices) == (None, 6, {"new": OLD.as_json()})
    assert _spent(database) == (3, 3, 0)
    assert [one.cost_usd for one in await _calls(api)] == [3, 3]


@pytest.mark.parametrize(
    "unknown",
    [call("silent", usage=None), call("unpriced")],
    ids=["a call without tokens", "another model without a price"],
)
async def test_unknown_stays_unknown_and_the_known_part_is_counted(
    api: Database, database: EmbeddedPostgres, unknown: Any
) -> None:
    execution = _past(database, call("gpt-4o"), unknown)
    before = _spent(database)[2]
    assert await _reprice(api, OLD, Which(ALL.since, model="gpt-4o")) == 1
    (told,) = await _told(api, execution)
    assert (told.old_usd, told.new_usd) == (None, None)
    assert _spent(database) == (0, 3, before - 1)


async def test_calls_without_tokens_that_cost_nothing_or_were_cut_off_leave_the_sum_known(
    api: Database, database: EmbeddedPostgres
) -> None:
    refused = call("x", usage=None, status=CallStatus.FAILED)
    cut_off = call("x", usage=None, status=CallStatus.UNKNOWN)
    execution = _past(database, call(), refused, cut_off, status="failed")
    await _reprice(api, OLD)
    (told,) = await _told(api, execution)
    assert told.new_usd == 3


async def test_what_still_runs_or_made_no_calls_is_left_alone(api: Database, database: EmbeddedPostgres) -> None:
    _past(database, call(priced=OLD), status=None)
    _past(database)
    assert await _calls(api) == []
    (row,) = _rows(database, "select execution_id, number from flowledger.usage")
    with psycopg.connect(database.url("flowledger_worker"), autocommit=True) as service:
        forced = service.execute(
            "select flowledger.reprice(%s, %s, %s::text[]::jsonb[], %s)", [[row[0]], [row[1]], ["{}"], [Decimal(9)]]
        ).fetchone()
    assert forced == (0,)


async def test_pages_hold_each_execution_once_and_only_what_was_asked_for(
    api: Database, database: EmbeddedPostgres
) -> None:
    mine = [_past(database, call("a", number=1), call("b")) for _ in range(5)]
    other = _past(database, call("a"), flow="beta")
    flow = _rows(database, "select id from crewai_flows where flow_key = 'beta'")[0][0]
    found = await _calls(api, limit=2)
    assert [(one.execution, one.number) for one in found] == [
        *((execution, number) for execution in mine for number in (1, 2)),
        (other, 1),
    ]
    assert [one.execution for one in await _calls(api, Which(ALL.since, flow=flow))] == [other]
    assert {one.model for one in await _calls(api, Which(ALL.since, model="b"), limit=1)} == {"b"}
    assert await _calls(api, Which(datetime(2090, 1, 1, tzinfo=UTC))) == []


async def test_a_user_sees_the_repricings_of_their_own_and_cannot_reprice(
    api: Database, database: EmbeddedPostgres
) -> None:
    execution = _past(database, call(priced=OLD))
    with pytest.raises(PermissionRefused):
        await _reprice(api, NEW, claims=ALICE)
    await _reprice(api, NEW)
    assert len(await _told(api, execution, ALICE)) == 1
    assert await _told(api, execution, BOB) == []
    for claims, seen in ((ALICE, 1), (BOB, 0)):
        async with api.session(claims) as session:
            rows = await (await session.execute("select * from flowledger.repriced_calls")).fetchall()
        assert len(rows) == seen


async def test_an_execution_that_is_being_pruned_is_left_out_and_nobody_waits(
    api: Database, database: EmbeddedPostgres
) -> None:
    gone, stays = _past(database, call(priced=OLD)), _past(database, call(priced=OLD))
    async with await psycopg.AsyncConnection.connect(database.url("flowledger")) as pruning:
        await pruning.execute("delete from crewai_flow_executions where id = %s", [gone])
        assert await _reprice(api, NEW) == 1
        assert (len(await _told(api, stays)), len(await _told(api, gone))) == (1, 0)
