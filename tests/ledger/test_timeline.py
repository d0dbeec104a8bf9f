"""What happened inside executions, and what they printed: appended under the lease, read by whoever may see them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.session import Claims, Connection, Database
from flowledger.domain.execution import NewExecution, Outcome
from flowledger.domain.flow import Flow
from flowledger.domain.status import Status
from flowledger.domain.timeline import Event, EventKind, LogLine
from flowledger.ledger import executions, flows, timeline
from flowledger.ledger.timeline import Held
from flowledger.worker.records import Records

ALICE, BOB = Claims(uuid4()), Claims(uuid4())
NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)


@pytest.fixture
async def service(database: EmbeddedPostgres) -> AsyncIterator[Database]:
    async with Database(database.url("flowledger_worker"), most_connections=4) as service:
        yield service


@pytest.fixture
async def api(database: EmbeddedPostgres) -> AsyncIterator[Database]:
    async with Database(database.url("flowledger_api"), most_connections=2) as api:
        yield api


@pytest.fixture
async def held(service: Database, api: Database) -> Held:
    """A running execution of Alice's, and its fence."""
    async with service.service() as connection:
        (known,) = await flows.remember(connection, [Flow("good", "Good", "", "m:Good", None, {}, "", "1")])
    async with api.session(ALICE) as session:
        await executions.record(session, NewExecution("good"))
    async with service.service() as connection:
        (claim,) = await executions.claim(connection, uuid4(), {known.id: 60.0}, 1, timedelta(seconds=30))
    return claim.execution_id, claim.fence


def _event(sequence: int, name: str = "step", **fields: object) -> Event:
    return Event(sequence, NOW, EventKind.METHOD_STARTED, name, dict(fields))


def _line(sequence: int, text: str = "words\n") -> LogLine:
    return LogLine(sequence, NOW, "stdout", text)


async def _read(api: Database, execution: UUID, claims: Claims = ALICE) -> tuple[list[Event], list[LogLine]]:
    async with api.session(claims) as session:
        return await timeline.read(session, execution), await timeline.read_logs(session, execution)


async def test_events_and_lines_come_back_as_they_were_in_order(service: Database, api: Database, held: Held) -> None:
    events, lines = [_event(1, n=1), _event(2, "é", deep={"a": [None]})], [_line(1), _line(2, "ä\t\n")]
    async with service.service() as connection:
        await timeline.append(connection, [(held, event) for event in reversed(events)])
        await timeline.append_logs(connection, [(held, line) for line in lines])
    assert await _read(api, held[0]) == (events, lines)
    async with api.session(ALICE) as session:
        assert await timeline.read(session, held[0], after=1) == events[1:]
        assert await timeline.read_logs(session, held[0], after=2) == []


async def test_repeating_an_append_adds_nothing(service: Database, api: Database, held: Held) -> None:
    async with service.service() as connection:
        for _ in range(2):
            await timeline.append(connection, [(held, _event(1))])
            await timeline.append_logs(connection, [(held, _line(1))])
    assert await _read(api, held[0]) == ([_event(1)], [_line(1)])


async def test_holder_of_a_stale_fence_appends_nothing(service: Database, api: Database, held: Held) -> None:
    stale = (held[0], held[1] + 1)
    async with service.service() as connection:
        await timeline.append(connection, [(stale, _event(1)), (held, _event(2))])
        await timeline.append_logs(connection, [(stale, _line(1))])
    assert await _read(api, held[0]) == ([_event(2)], [])


async def test_somebody_else_reads_nothing(service: Database, api: Database, held: Held) -> None:
    async with service.service() as connection:
        await timeline.append(connection, [(held, _event(1))])
        await timeline.append_logs(connection, [(held, _line(1))])
    assert await _read(api, held[0], BOB) == ([], [])
    assert await _read(api, held[0], Claims.of_operator()) == ([_event(1)], [_line(1)])


@pytest.mark.parametrize("unfit", ["a\x00b", "\ud800"], ids=["nul", "surrogate"])
async def test_record_that_cannot_be_stored_is_dropped_and_none_beside_it(
    service: Database, api: Database, held: Held, unfit: str
) -> None:
    records = Records(service)
    run = records.of(held)
    for sequence in range(1, 8):
        run.event(_event(sequence, unfit) if sequence == 3 else _event(sequence))
        run.log(_line(sequence, unfit) if sequence == 5 else _line(sequence))
    run.event(_event(2**40))
    await records.flush()
    events, lines = await _read(api, held[0])
    assert [event.sequence for event in events] == [1, 2, 4, 5, 6, 7]
    assert [line.sequence for line in lines] == [1, 2, 3, 4, 6, 7]


async def test_what_a_flood_fills_is_not_the_room_of_another_run(service: Database, api: Database, held: Held) -> None:
    records = Records(service)
    flood, calm = records.of((uuid4(), 1)), records.of(held)
    for sequence in range(1, 300_001):
        flood.event(_event(sequence))
        if sequence % 500 == 0:
            calm.event(_event(sequence // 500))
            calm.log(_line(sequence // 500))
    ended = Outcome(Status.COMPLETED, metadata={"events_dropped": 7})
    assert flood.told_in(ended).metadata["events_dropped"] >= 200_000 + 7, "the flood itself is bounded"
    assert calm.told_in(ended) == ended
    await records.flush(held)
    events, lines = await _read(api, held[0])
    assert [event.sequence for event in events] == list(range(1, 601))
    assert [line.sequence for line in lines] == list(range(1, 601))


async def test_of_two_runs_that_wait_each_has_its_share_of_a_batch(
    service: Database, api: Database, held: Held
) -> None:
    appended: list[int] = []

    class Watched(Database):
        @asynccontextmanager
        async def service(self, patience: float | None = None) -> AsyncIterator[Connection]:
            async with service.service() as connection:
                appended.append(len((await _read(api, held[0]))[0]))
                yield connection

    records = Records(Watched("", most_connections=1))
    flood, calm = records.of((uuid4(), 1)), records.of(held)
    for sequence in range(1, 5_001):
        flood.event(_event(sequence))
    calm.event(_event(1))
    await records.flush()
    assert appended[:2] == [0, 1], "it came with the first batch, although 5,000 were before it"
    assert len(appended) == 3, "and the batches of the flood are whole again after it"
