"""What any engine owes its worker: each execution once, soon, and none after it is closed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.session import Claims, Database
from flowledger.domain.execution import NewExecution
from flowledger.domain.flow import Flow
from flowledger.engines.postgres import PostgresEngine
from flowledger.ledger import executions, flows

ALICE = Claims(uuid4())
POLL_SECONDS = 0.3


class Queue:
    def __init__(self, service: Database, api: Database, flow: UUID) -> None:
        self.service, self.api, self.flow = service, api, flow

    def engine(self, *, among: list[UUID] | None = None, poll_seconds: float = POLL_SECONDS) -> PostgresEngine:
        return PostgresEngine(
            self.service, uuid4(), lease_seconds=30, poll_seconds=poll_seconds, clock=time.monotonic, among=among
        )

    def timeouts(self) -> dict[UUID, float]:
        return {self.flow: 60.0}

    async def put(self) -> UUID:
        async with self.api.session(ALICE) as session:
            return (await executions.record(session, NewExecution("good"))).id


@pytest.fixture
async def queue(database: EmbeddedPostgres) -> AsyncIterator[Queue]:
    async with (
        Database(database.url("flowledger_worker"), most_connections=6) as service,
        Database(database.url("flowledger_api"), most_connections=2) as api,
    ):
        async with service.service() as connection:
            (known,) = await flows.remember(connection, [Flow("good", "Good", "", "m:Good", None, {}, "", "1")])
        yield Queue(service, api, known.id)


async def test_engines_side_by_side_share_the_queue_without_overlap(queue: Queue) -> None:
    put = [await queue.put() for _ in range(9)]
    answers = await asyncio.gather(*(queue.engine().next(queue.timeouts, 3) for _ in range(3)))
    taken = [claim.execution_id for claims in answers for claim in claims]
    assert sorted(taken) == sorted(put)


async def test_empty_queue_is_waited_for_and_a_poll_finds_what_nobody_called_out(queue: Queue) -> None:
    waiting = asyncio.create_task(queue.engine().next(queue.timeouts, 2))
    await asyncio.sleep(POLL_SECONDS)
    assert not waiting.done()
    put = await queue.put()
    async with asyncio.timeout(POLL_SECONDS + 1):
        assert [claim.execution_id for claim in await waiting] == [put]


async def test_call_makes_it_look_at_once(queue: Queue) -> None:
    engine = queue.engine(poll_seconds=300)
    waiting = asyncio.create_task(engine.next(queue.timeouts, 1))
    await asyncio.sleep(0.5)
    put = await queue.put()
    engine.wake()
    async with asyncio.timeout(5):
        assert [claim.execution_id for claim in await waiting] == [put]


async def test_closed_engine_answers_with_nothing_and_leaves_the_queue_alone(queue: Queue) -> None:
    engine = queue.engine(poll_seconds=300)
    waiting = asyncio.create_task(engine.next(queue.timeouts, 1))
    await asyncio.sleep(0.2)
    engine.close()
    async with asyncio.timeout(5):
        assert await waiting == []
    put = await queue.put()
    assert await engine.next(queue.timeouts, 1) == []
    assert [claim.execution_id for claim in await queue.engine().next(queue.timeouts, 1)] == [put]


async def test_narrowed_engine_takes_only_what_it_was_told_of(queue: Queue) -> None:
    mine, others = await queue.put(), await queue.put()
    engine = queue.engine(among=[])
    waiting = asyncio.create_task(engine.next(queue.timeouts, 5))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    engine.admit(mine)
    async with asyncio.timeout(5):
        assert [claim.execution_id for claim in await waiting] == [mine]
    assert [claim.execution_id for claim in await queue.engine().next(queue.timeouts, 5)] == [others]


async def test_flow_that_comes_while_it_waits_is_claimed_from_then_on(queue: Queue) -> None:
    known: dict[UUID, float] = {}
    put = await queue.put()
    waiting = asyncio.create_task(queue.engine().next(lambda: known, 1))
    await asyncio.sleep(POLL_SECONDS)
    assert not waiting.done()
    known[queue.flow] = 60.0
    async with asyncio.timeout(5):
        assert [claim.execution_id for claim in await waiting] == [put]


async def test_lease_is_reckoned_from_its_claim_and_not_from_the_wait_before(queue: Queue) -> None:
    """A worker that waited longer than a lease would else believe its fresh lease dead."""
    engine = queue.engine()
    waiting = asyncio.create_task(engine.next(queue.timeouts, 1))
    await asyncio.sleep(1)
    put_at = time.monotonic()
    await queue.put()
    async with asyncio.timeout(5):
        await waiting
    assert put_at - POLL_SECONDS < engine.asked_at <= time.monotonic()
    async with queue.service.service() as connection:
        held = await executions.reap(connection, timedelta(0))
    assert held == []
