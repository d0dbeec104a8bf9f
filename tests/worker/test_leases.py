"""A worker keeps its leases, learns of wishes, and gives up in time what it cannot keep."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.session import Claims, Database
from flowledger.domain.execution import Claim, NewExecution
from flowledger.domain.flow import Flow
from flowledger.ledger import executions, flows
from flowledger.runner.limits import Limits, Stop
from flowledger.worker.leases import LeaseKeeper, boottime

ALICE = Claims(uuid4())
LEASE_SECONDS = 2.0


class Held:
    """One claimed execution of a worker."""

    def __init__(self, service: Database, api: Database, worker: UUID, claim: Claim) -> None:
        self.service, self.api, self.worker, self.claim = service, api, worker, claim

    @asynccontextmanager
    async def kept(self, database: Database | None = None) -> AsyncIterator[tuple[LeaseKeeper, Limits]]:
        keeper = LeaseKeeper(database or self.service, self.worker, lease_seconds=LEASE_SECONDS)
        limits = Limits()
        with keeper.holding(self.claim, limits, boottime()):
            task = asyncio.create_task(keeper.keep())
            try:
                yield keeper, limits
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def reaped(self) -> int:
        async with self.service.service() as connection:
            return len(await executions.reap(connection, timedelta(0)))


@pytest.fixture
async def held(database: EmbeddedPostgres) -> AsyncIterator[Held]:
    worker = uuid4()
    async with (
        Database(database.url("flowledger_worker"), most_connections=3) as service,
        Database(database.url("flowledger_api"), most_connections=2) as api,
    ):
        async with service.service() as connection:
            (known,) = await flows.remember(connection, [Flow("good", "Good", "", "m:Good", None, {}, "", "1")])
        async with api.session(ALICE) as session:
            await executions.record(session, NewExecution("good"))
        async with service.service() as connection:
            (claim,) = await executions.claim(connection, worker, {known.id: 60.0}, 1, timedelta(seconds=LEASE_SECONDS))
        yield Held(service, api, worker, claim)


async def test_kept_lease_outlives_its_length(held: Held) -> None:
    async with held.kept() as (_, limits):
        await asyncio.sleep(LEASE_SECONDS * 1.5)
        assert await held.reaped() == 0
        assert limits.decision is None


async def test_worker_halted_for_longer_than_its_lease_starts_nothing_with_it(held: Held) -> None:
    keeper = LeaseKeeper(held.service, held.worker, lease_seconds=LEASE_SECONDS)
    for claimed_ago, may_start in ((0.0, True), (LEASE_SECONDS, False)):
        limits = Limits()
        with keeper.holding(held.claim, limits, boottime() - claimed_ago):
            assert limits.may_start() is may_start


async def test_lease_that_nobody_keeps_is_reaped(held: Held) -> None:
    await asyncio.sleep(LEASE_SECONDS + 0.1)
    assert await held.reaped() == 1


async def test_wish_comes_with_the_next_renewal_and_at_once_when_called(held: Held) -> None:
    async with held.kept() as (keeper, limits):
        async with held.api.session(ALICE) as session:
            await executions.cancel(session, held.claim.execution_id, "enough")
        keeper.wake()
        async with asyncio.timeout(LEASE_SECONDS / 4):
            decision = await limits.decided()
    assert (decision.stop, decision.reason) == (Stop.CANCEL, "enough")


async def test_lease_that_somebody_took_is_given_up(held: Held) -> None:
    async with held.kept() as (_, limits):
        async with held.service.service() as connection:
            await executions.renew(connection, held.worker, {held.claim.execution_id: held.claim.fence}, timedelta(0))
            await executions.reap(connection, timedelta(0))
        async with asyncio.timeout(LEASE_SECONDS):
            assert (await limits.decided()).stop is Stop.LOST


async def test_worker_that_hears_nothing_gives_up_before_its_lease_can_have_ended(held: Held) -> None:
    """Every renewal waits for the only connection, which somebody else has."""
    began = time.monotonic()
    async with (
        Database(held.service.conninfo, most_connections=1) as narrow,
        narrow.service(),
        held.kept(narrow) as (_, limits),
        asyncio.timeout(LEASE_SECONDS * 2),
    ):
        assert (await limits.decided()).stop is Stop.LOST
    assert time.monotonic() - began < LEASE_SECONDS
