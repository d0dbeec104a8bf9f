"""The ledger's verbs as Python has them: recorded, claimed, finished, found and listed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.session import UNREADABLE, Claims, Database
from flowledger.domain.execution import Claim, Execution, Finish, NewExecution, Outcome
from flowledger.domain.flow import Flow
from flowledger.domain.mode import Mode
from flowledger.domain.status import Status
from flowledger.errors import (
    ExecutionNotFound,
    FlowNotFound,
    InvalidInput,
    PermissionRefused,
    QueueFull,
)
from flowledger.ledger import executions, flows, workers
from flowledger.ledger.executions import Filters, Place

ALICE, BOB, OPERATOR = Claims(uuid4()), Claims(uuid4()), Claims.of_operator()
LEASE = timedelta(seconds=30)


@dataclass
class Ledger:
    """The API's login and a worker's, over one flow."""

    api: Database
    service: Database
    flow: UUID
    worker: UUID

    async def record(self, claims: Claims = ALICE, **asked: object) -> Execution:
        async with self.api.session(claims) as session:
            return await executions.record(session, NewExecution("good", **asked))  # type: ignore[arg-type]

    async def claim(self, slots: int = 10, among: list[UUID] | None = None) -> list[Claim]:
        async with self.service.service() as connection:
            return await executions.claim(connection, self.worker, {self.flow: 60.0}, slots, LEASE, among)

    async def finish(self, claim: Claim, outcome: Outcome, fence: int | None = None) -> Finish:
        async with self.service.service() as connection:
            return await executions.finish(connection, claim.execution_id, fence or claim.fence, outcome)

    async def find(self, reference: object, claims: Claims = ALICE) -> Execution:
        async with self.api.session(claims) as session:
            return await executions.find(session, claims, str(reference))

    async def claimed(self, **asked: object) -> Claim:
        born = await self.record(**asked)  # type: ignore[arg-type]
        (claim,) = await self.claim(among=[born.id])
        return claim


@pytest.fixture
async def ledger(database: EmbeddedPostgres) -> AsyncIterator[Ledger]:
    async with (
        Database(database.url("flowledger_api"), most_connections=4) as api,
        Database(database.url("flowledger_worker"), most_connections=4) as service,
    ):
        async with service.service() as connection:
            (known,) = await flows.remember(connection, [Flow("good", "Good", "", "m:Good", None, {}, "", "1")])
        yield Ledger(api, service, known.id, uuid4())


async def test_recorded_execution_is_pending_and_its_users(ledger: Ledger) -> None:
    meeting = uuid4()
    born = await ledger.record(inputs={"a": 1}, board_meeting_id=meeting, timeout_seconds=5)
    assert (born.status, born.execution_mode, born.executed_by) == (Status.PENDING, Mode.MANUAL, ALICE.user)
    assert (born.input_state, born.board_meeting_id, born.metadata) == ({"a": 1}, meeting, {"timeout_seconds": 5})
    assert born.flow_key == "good"
    assert await ledger.find(born.id) == born


async def test_unknown_flow_taken_key_and_unstorable_input_are_told_apart(ledger: Ledger) -> None:
    async with ledger.api.session(ALICE) as session:
        with pytest.raises(FlowNotFound):
            await executions.record(session, NewExecution("nowhere"))
    await ledger.record(execution_key="mine")
    with pytest.raises(InvalidInput, match="execution_key: mine is taken"):
        await ledger.record(execution_key="mine")
    for unfit in ("a\x00b", "\ud800", float("nan")):
        with pytest.raises(InvalidInput, match="inputs: cannot be stored"):
            await ledger.record(inputs={"a": unfit})


async def test_full_queue_says_its_limit(ledger: Ledger) -> None:
    async with ledger.service.service() as connection:
        await connection.execute("update flowledger.settings set value = '1' where name = 'queue_limit'")
    await ledger.record()
    with pytest.raises(QueueFull) as told:
        await ledger.record()
    assert told.value.limit == 1


async def test_nobody_records_for_somebody_else_or_without_a_name(ledger: Ledger) -> None:
    with pytest.raises(PermissionRefused):
        await ledger.record(Claims(None))
    with pytest.raises(PermissionRefused):
        await ledger.record(OPERATOR)


async def test_claim_takes_the_oldest_first_up_to_its_slots_and_each_once(ledger: Ledger) -> None:
    born = [(await ledger.record(inputs={"n": n})).id for n in range(5)]
    first, second = await ledger.claim(3), await ledger.claim(3)
    assert [claim.execution_id for claim in first + second] == born
    assert [claim.inputs["n"] for claim in first + second] == [0, 1, 2, 3, 4]
    fences = [claim.fence for claim in first + second]
    assert fences == sorted(set(fences))
    assert await ledger.claim() == []


async def test_own_timeout_comes_before_the_workers(ledger: Ledger) -> None:
    assert (await ledger.claimed(timeout_seconds=1.5)).timeout_seconds == 1.5
    assert (await ledger.claimed()).timeout_seconds == 60


async def test_finish_is_ok_once_a_duplicate_after_and_lost_under_another_fence(ledger: Ledger) -> None:
    claim = await ledger.claimed()
    done = Outcome(Status.COMPLETED, {"result": 1}, token_count=7, began_after_ms=3, metadata={"m": 1})
    assert await ledger.finish(claim, done, fence=claim.fence + 1) is Finish.LOST
    assert await ledger.finish(claim, done) is Finish.OK
    assert await ledger.finish(claim, done) is Finish.DUP
    assert await ledger.finish(claim, Outcome(Status.FAILED)) is Finish.LOST
    row = await ledger.find(claim.execution_id)
    assert (row.status, row.output_state, row.token_count) == (Status.COMPLETED, {"result": 1}, 7)
    assert (row.metadata or {})["m"] == 1


@pytest.mark.parametrize("counted", [2**31, 2**70, -1])
async def test_count_beyond_the_column_is_clamped_and_its_true_value_kept(ledger: Ledger, counted: int) -> None:
    claim = await ledger.claimed()
    assert await ledger.finish(claim, Outcome(Status.COMPLETED, {"result": 1}, token_count=counted)) is Finish.OK
    row = await ledger.find(claim.execution_id)
    assert (row.status, row.token_count) == (Status.COMPLETED, 0 if counted < 0 else 2**31 - 1)
    assert (row.metadata or {})["clamped"] == {"token_count": str(counted)}


@pytest.mark.parametrize(("cost", "stored"), [("-1", "0"), ("NaN", None), ("1000000", "999999.9999")])
async def test_cost_beyond_the_column_is_clamped_and_its_true_value_kept(
    ledger: Ledger, cost: str, stored: str | None
) -> None:
    claim = await ledger.claimed()
    assert await ledger.finish(claim, Outcome(Status.COMPLETED, {}, cost_usd=Decimal(cost))) is Finish.OK
    row = await ledger.find(claim.execution_id)
    assert (row.status, row.cost_usd) == (Status.COMPLETED, stored and Decimal(stored))
    assert (row.metadata or {})["clamped"] == {"cost_usd": cost}


@pytest.mark.parametrize("unfit", ["a\x00b", "\ud800", float("nan")], ids=["nul", "surrogate", "nan"])
async def test_outcome_that_postgres_refuses_is_failed_and_says_so(ledger: Ledger, unfit: object) -> None:
    claim = await ledger.claimed()
    assert await ledger.finish(claim, Outcome(Status.COMPLETED, {"result": unfit}, token_count=1)) is Finish.OK
    row = await ledger.find(claim.execution_id)
    assert (row.status, row.error_type, row.output_state) == (Status.FAILED, "OutputNotStorable", None)


async def test_message_that_postgres_refuses_keeps_the_status(ledger: Ledger) -> None:
    claim = await ledger.claimed()
    assert await ledger.finish(claim, Outcome(Status.TIMEOUT, error_message="a\x00b")) is Finish.OK
    assert (await ledger.find(claim.execution_id)).status is Status.TIMEOUT


async def test_renewal_answers_what_is_held_and_brings_the_wish(ledger: Ledger) -> None:
    held, lost = await ledger.claimed(), await ledger.claimed()
    async with ledger.api.session(ALICE) as session:
        assert await executions.cancel(session, held.execution_id, "enough") == "wished"
    async with ledger.service.service() as connection:
        fences = {held.execution_id: held.fence, lost.execution_id: lost.fence + 1_000}
        (renewed,) = await executions.renew(connection, ledger.worker, fences, LEASE)
    assert (renewed.execution_id, renewed.cancel_wished, renewed.cancel_reason) == (held.execution_id, True, "enough")


async def test_somebody_elses_execution_is_neither_found_nor_cancelled(ledger: Ledger) -> None:
    born = await ledger.record()
    with pytest.raises(ExecutionNotFound):
        await ledger.find(born.id, BOB)
    async with ledger.api.session(BOB) as session:
        with pytest.raises(ExecutionNotFound):
            await executions.cancel(session, born.id, None)
        assert await executions.list_(session, BOB, Filters(), limit=10) == []
        assert await executions.transitions(session, born.id) == []
    assert (await ledger.find(born.id, OPERATOR)).id == born.id


async def test_pages_walk_the_whole_list_once_though_new_ones_come(ledger: Ledger) -> None:
    born = [(await ledger.record()).id for _ in range(7)]
    seen: list[UUID] = []
    place: Place | None = None
    while True:
        async with ledger.api.session(ALICE) as session:
            page = await executions.list_(session, ALICE, Filters(), limit=3, after=place)
        seen += [row.id for row in page]
        await ledger.record()
        if len(page) < 3:
            break
        assert page[-1].started_at is not None
        place = Place.parse(str(Place(page[-1].started_at, page[-1].id)))
    assert seen == born[::-1]


@pytest.mark.parametrize(
    "hostile",
    ["repeat('[', 3000) || repeat(']', 3000)", "repeat('[', 400) || repeat(']', 400)", "repeat('9', 6000)"],
    ids=["very deep", "deep", "long number"],
)
async def test_json_that_python_cannot_read_is_marked_and_stops_no_reader(ledger: Ledger, hostile: str) -> None:
    good = await ledger.record()
    async with ledger.api.session(ALICE) as session:
        text = f"select id from flowledger.kickoff('good', ('{{\"a\": ' || {hostile} || '}}')::jsonb)"
        row = await (await session.execute(text.encode())).fetchone()
    assert row is not None
    claims = {claim.execution_id: claim for claim in await ledger.claim()}
    assert claims[good.id].inputs == {}
    assert list(claims[row["id"]].inputs) == [UNREADABLE]
    async with ledger.api.session(ALICE) as session:
        assert len(await executions.list_(session, ALICE, Filters(), limit=10)) == 2


async def test_worker_counts_as_serving_while_it_is_heard_of(ledger: Ledger) -> None:
    async with ledger.service.service() as connection:
        await workers.enlist(connection, ledger.worker, 2, [ledger.flow])
    async with ledger.api.session(OPERATOR) as session:
        assert await workers.serving(session, ledger.flow, heard_within=LEASE) == 1
        assert await workers.serving(session, uuid4(), heard_within=LEASE) == 0
        assert await workers.serving(session, ledger.flow, heard_within=timedelta(0)) == 0
    async with ledger.service.service() as connection:
        await workers.discharge(connection, ledger.worker)
    async with ledger.api.session(OPERATOR) as session:
        assert await workers.serving(session, ledger.flow, heard_within=LEASE) == 0


async def test_changed_flow_keeps_its_row_and_counts_its_version_up(ledger: Ledger) -> None:
    async with ledger.service.service() as connection:
        (again,) = await flows.remember(connection, [Flow("good", "Good", "", "m:Good", None, {}, "", "1")])
        (changed,) = await flows.remember(connection, [Flow("good", "Good!", "", "m:Good", None, {}, "", "2")])
        (known,) = await flows.list_(connection)
    assert (again.id, again.version) == (ledger.flow, 1)
    assert (changed.id, changed.version) == (ledger.flow, 2)
    assert (known.flow_name, known.version) == ("Good!", 2)
