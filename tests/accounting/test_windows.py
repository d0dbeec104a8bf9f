"""Two workers, each with its own connections, spend from one month's budget, and cannot pass it together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.rows import dict_row

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.session import Claims, Database
from flowledger.domain.execution import NewExecution
from flowledger.domain.flow import Flow
from flowledger.domain.status import Status
from flowledger.ledger import executions, flows
from flowledger.ledger.timeline import Held
from flowledger.runner.limits import ErrorType
from flowledger.worker.accounts import Windows
from flowledger.worker.records import Records, RunRecords
from tests.accounting.spender import Recording, Spender, Spent

pytestmark = pytest.mark.timeout(120)

ALICE = Claims(uuid4())


class Worker:
    """What a worker is to one run's money: the windows before each call, and the records after it."""

    def __init__(self, database: Database, held: Held) -> None:
        self.database = database
        self.records = Records(database)
        self.recording = Written(self.records.of(held))
        self.purse = Windows(database, held)

    async def run(self, spend: Spender, flow: str, inputs: dict[str, Any] | None = None) -> Spent:
        writing = asyncio.create_task(self.records.keep_writing())
        try:
            return await spend(flow, inputs, purse=self.purse, recording=self.recording)
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await self.records.flush()


class Written(Recording):
    """Keeps what it hears, and hands it on to the ledger."""

    def __init__(self, ledger: RunRecords) -> None:
        super().__init__()
        self._ledger = ledger

    def event(self, event: Any) -> None:
        super().event(event)
        self._ledger.event(event)

    def call(self, call: Any) -> None:
        super().call(call)
        self._ledger.call(call)


@pytest.fixture
async def two_workers(database: EmbeddedPostgres) -> AsyncIterator[list[Worker]]:
    async with AsyncExitStack() as stack:
        pools = [
            await stack.enter_async_context(Database(database.url("flowledger_worker"), most_connections=4))
            for _ in range(2)
        ]
        api = await stack.enter_async_context(Database(database.url("flowledger_api"), most_connections=1))
        async with pools[0].service() as connection:
            (known,) = await flows.remember(connection, [Flow("spends", "Spends", "", "m:F", None, {}, "", "1")])
        workers = []
        for pool in pools:
            async with api.session(ALICE) as session:
                await executions.record(session, NewExecution("spends"))
            async with pool.service() as connection:
                (claim,) = await executions.claim(connection, uuid4(), {known.id: 60.0}, 1, timedelta(seconds=90))
            workers.append(Worker(pool, (claim.execution_id, claim.fence)))
        yield workers


def _owner(database: EmbeddedPostgres, text: str, *values: object) -> list[dict[str, Any]]:
    with psycopg.connect(database.url("flowledger"), autocommit=True, row_factory=dict_row) as owner:
        cursor = owner.execute(text.encode(), values)
        return cursor.fetchall() if cursor.description else []


def _limit(
    database: EmbeddedPostgres, usd: Decimal | None = None, tokens: int | None = None, on_reach: str = "stop"
) -> None:
    _owner(
        database,
        "insert into flowledger.budgets (scope, period, usd, tokens, on_reach, set_by) "
        "values ('everything', 'month', %s, %s, %s, 'somebody')",
        usd,
        tokens,
        on_reach,
    )


def _spent(database: EmbeddedPostgres) -> tuple[Decimal, int]:
    """What the ledger says was spent, and how many reservations are left."""
    (row,) = _owner(
        database,
        "select (select coalesce(sum(cost_usd + estimated_usd), 0) from flowledger.spending_now "
        "where dimension = 'mode') as usd, (select count(*) from flowledger.reservations) as reserved",
    )
    return row["usd"], row["reserved"]


async def test_two_workers_cannot_pass_a_months_budget_together(
    spend: Spender, database: EmbeddedPostgres, two_workers: list[Worker]
) -> None:
    limit = Decimal("0.13")
    _limit(database, usd=limit)
    inputs = {"model": "gpt-4o-mini", "calls": 20, "options": {"max_tokens": 20}}
    both = await asyncio.gather(*(worker.run(spend, "direct:Inputs", inputs) for worker in two_workers))
    for spent in both:
        assert (spent.outcome.status, spent.outcome.error_type) == (Status.FAILED, ErrorType.BUDGET_EXCEEDED)
        assert "the month's budget of everything has no room for it" in str(spent.outcome.error_message)
    # On a busy machine one of them may begin when nothing is left.
    assert any(spent.calls for spent in both)
    total = sum((spent.outcome.cost_usd or Decimal(0) for spent in both), Decimal(0))
    # No further call fits, and what was spent stays within the limit.
    worst = Decimal("0.025730")
    assert limit - worst < total <= limit
    assert _spent(database) == (total, 0)


async def test_calls_that_only_have_to_wait_for_another_worker_do(
    spend: Spender, database: EmbeddedPostgres, two_workers: list[Worker]
) -> None:
    _limit(database, tokens=16 * 36 + 97)
    both = await asyncio.gather(*(worker.run(spend, "stubborn:EightThreads") for worker in two_workers))
    assert [spent.outcome.status for spent in both] == [Status.COMPLETED] * 2
    assert [len(spent.calls) for spent in both] == [8, 8]
    assert _spent(database)[1] == 0


async def test_a_window_that_warns_stops_nobody(
    spend: Spender, database: EmbeddedPostgres, two_workers: list[Worker]
) -> None:
    _limit(database, tokens=1, on_reach="warn")
    spent = await two_workers[0].run(spend, "direct:TwoModels")
    assert (spent.outcome.status, len(spent.calls)) == (Status.COMPLETED, 2)
    assert "the month's budget of everything has no room for it" in spent.metadata["budget_warnings"][0]


async def test_a_call_of_unknown_cost_counts_in_a_window_as_what_was_set_aside(
    spend: Spender, database: EmbeddedPostgres, two_workers: list[Worker]
) -> None:
    _limit(database, usd=Decimal(100))
    inputs = {"model": "gpt-4o-mini-stub-no-usage", "calls": 1, "options": {"max_tokens": 20}}
    spent = await two_workers[0].run(spend, "direct:Inputs", inputs)
    estimated = spent.calls[0].estimated_usd
    assert spent.outcome.cost_usd is None
    assert estimated
    assert _spent(database) == (estimated, 0)


async def test_a_database_that_does_not_answer_lets_no_call_through(spend: Spender, two_workers: list[Worker]) -> None:
    """A window that nobody can look at may be used up."""
    first = two_workers[0]
    await first.database._pool.close()
    spent = await spend("direct:Call", purse=first.purse)
    assert (spent.outcome.status, spent.calls, spent.served) == (Status.FAILED, [], {})
    assert "cannot be found out" in str(spent.outcome.error_message)
