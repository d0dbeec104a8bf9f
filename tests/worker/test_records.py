"""What runs report reaches the ledger, whatever one of them reports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
import structlog

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.session import Claims, Database
from flowledger.domain.execution import NewExecution
from flowledger.domain.flow import Flow
from flowledger.domain.usage import CallStatus, LlmCall, PricedCall, Usage
from flowledger.ledger import executions, flows, usage
from flowledger.ledger.timeline import Held
from flowledger.worker.records import Records


@pytest.fixture
async def service(database: EmbeddedPostgres) -> AsyncIterator[Database]:
    async with Database(database.url("flowledger_worker"), most_connections=3) as service:
        yield service


@pytest.fixture
async def held(database: EmbeddedPostgres, service: Database) -> list[Held]:
    """Two executions that run."""
    async with service.service() as connection:
        (known,) = await flows.remember(connection, [Flow("tells", "Tells", "", "m:Tells", None, {}, "", "1")])
    async with Database(database.url("flowledger_api"), most_connections=1) as users:
        for _ in range(2):
            async with users.session(Claims(UUID(int=7))) as session:
                await executions.record(session, NewExecution("tells"))
    async with service.service() as connection:
        claims = await executions.claim(connection, uuid4(), {known.id: 60.0}, 2, timedelta(minutes=1))
    return [(claim.execution_id, claim.fence) for claim in claims]


def _call(number: int, *, model: str = "gpt-4o", tokens: int = 10) -> PricedCall:
    call = LlmCall(
        number, f"call-{number}", model, "openai", datetime.now(UTC), CallStatus.COMPLETED, Usage(input_tokens=tokens)
    )
    return PricedCall(call)


async def _written(service: Database, held: Held) -> list[int]:
    async with service.service() as connection:
        return [one.call.number for one in await usage.read(connection, held[0])]


@pytest.mark.parametrize(
    "unfit",
    [_call(2, model="gpt\x00"), _call(2, tokens=2**60), _call(2, tokens=-1)],
    ids=["NUL", "too many", "below 0"],
)
async def test_a_call_that_cannot_be_stored_is_dropped_and_told_and_costs_nothing_beside_it(
    service: Database, held: list[Held], unfit: PricedCall
) -> None:
    records, (hostile, calm) = Records(service), held
    for call in (_call(1), unfit, _call(3)):
        records.add_call(hostile, call)
    records.add_call(calm, _call(1))
    with structlog.testing.capture_logs() as facts:
        await records.flush()
    assert (await _written(service, hostile), await _written(service, calm)) == ([1, 3], [1])
    assert [fact["event"] for fact in facts] == ["record_dropped"]
    assert not records.held_up


async def test_calls_that_wait_are_written_before_their_run_ends(service: Database, held: list[Held]) -> None:
    records, (one, other) = Records(service), held
    for number in range(1, 4):
        records.add_call(one, _call(number))
    records.add_call(other, _call(1))
    await records.write_calls(one)
    assert await _written(service, one) == [1, 2, 3]
    assert await _written(service, other) == [], "another run's may wait for their batch"
