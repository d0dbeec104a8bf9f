"""The exporter beside a worker: what it reads from the ledger reaches a receiver, or is dropped, counted and told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import structlog

from flowledger.database.session import Claims
from flowledger.domain.status import Status
from flowledger.errors import InvalidInput
from flowledger.ledger import executions
from flowledger.telemetry import exporter
from flowledger.telemetry.destination import Destination, header_values
from flowledger.telemetry.ended import EndedExecutions
from flowledger.telemetry.exporter import TraceExporter
from flowledger.telemetry.receiver import Receiver
from flowledger.telemetry.traces import trace_id
from tests.acceptance.product import wait_for
from tests.telemetry.otlp import OtlpReceiver, Received
from tests.telemetry.stage import Stage


class Exporting:
    def __init__(self, stage: Stage, url: str, ended: EndedExecutions) -> None:
        self.ended = ended
        self.failures: list[Exception] = []
        self.worked = 0
        self.exporter = TraceExporter(
            stage.service,
            Receiver(Destination.of(url, None)),
            ended,
            previews=False,
            failed=self.failures.append,
            worked=self._count,
        )

    def _count(self) -> None:
        self.worked += 1

    def end(self, execution: UUID) -> None:
        self.ended.hear(None, "info", {"event": "execution_ended", "execution": str(execution), "answer": "ok"})


@asynccontextmanager
async def exporting(stage: Stage, url: str, ended: EndedExecutions | None = None) -> AsyncIterator[Exporting]:
    beside = Exporting(stage, url, ended or EndedExecutions())
    task = asyncio.create_task(beside.exporter.keep_exporting())
    try:
        yield beside
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(fact: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(wait_for, fact)


def by_name(spans: list[Received]) -> dict[str, Received]:
    return {span.name: span for span in spans}


async def test_trace_arrives_with_true_parents_and_the_tokens_of_its_calls(stage: Stage) -> None:
    execution = await stage.finished()
    with OtlpReceiver() as receiver:
        async with exporting(stage, receiver.url) as beside:
            beside.end(execution)
            spans = by_name(await until(lambda: receiver.spans_of(execution)))
    root, method, call = spans["invoke_workflow good"], spans["method write"], spans["chat gpt-x"]
    assert (root.parent, method.parent, call.parent) == (None, root.id, method.id)
    assert (call.kind, call.attributes["gen_ai.usage.output_tokens"]) == ("SPAN_KIND_CLIENT", 7)
    assert root.execution.int == trace_id(execution)
    assert root.service == "flowledger"
    assert beside.failures == []


async def test_reaped_execution_is_exported_by_whoever_reaped_it_and_its_open_spans_have_failed(stage: Stage) -> None:
    claim = await stage.claimed(timedelta(milliseconds=1))
    async with stage.service.service() as connection:
        reaped: list[tuple[UUID, Status]] = []
        async with asyncio.timeout(10):
            while not reaped:
                reaped = await executions.reap(connection, timedelta(0))
    with OtlpReceiver() as receiver:
        async with exporting(stage, receiver.url) as beside:
            beside.ended.hear(None, "warning", {"event": "execution_reaped", "execution": str(reaped[0][0])})
            spans = by_name(await until(lambda: receiver.spans_of(claim.execution_id)))
    assert spans["invoke_workflow good"].attributes["error.type"] == "WorkerLost"
    assert spans["method write"].failure == "no end was seen: the execution ended as failed"
    assert spans["method write"].ended == spans["invoke_workflow good"].ended


@pytest.mark.parametrize(("page", "most", "told"), [(1, 20, 3), (2, 20, 3), (3, 20, 3), (1, 2, 2), (2, 2, 2)])
async def test_timeline_is_read_page_by_page_and_no_further_than_a_trace_may_hold(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, page: int, most: int, told: int
) -> None:
    monkeypatch.setattr(exporter, "_EVENTS_OF_A_PAGE", page)
    monkeypatch.setattr(exporter, "_MOST_EVENTS", most)
    execution = await stage.finished()
    async with stage.service.session(Claims.of_operator()) as session:
        events = await exporter._first_events(session, execution)
    assert [event.sequence for event in events] == [1, 2, 3][:told]


async def test_receiver_that_comes_back_gets_what_it_missed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "_PAUSES", (0.01,) * 1000)
    execution = await stage.finished()
    with OtlpReceiver("refuses") as receiver:
        async with exporting(stage, receiver.url) as beside:
            beside.end(execution)
            await until(lambda: beside.failures)
            receiver.mood = "takes"
            await until(lambda: receiver.spans_of(execution))
            await until(lambda: beside.worked)
    assert "500" in str(beside.failures[0])


async def test_trace_that_nobody_takes_is_dropped_counted_and_told_at_the_next_success(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "_PAUSES", (0.01,))
    first, second = await stage.finished(), await stage.finished()
    with OtlpReceiver("refuses") as receiver, structlog.testing.capture_logs() as facts:
        async with exporting(stage, receiver.url) as beside:
            beside.end(first)
            await beside.ended.all_settled()
            receiver.mood = "takes"
            beside.end(second)
            await until(lambda: beside.worked)
    assert len(beside.failures) == 2
    assert not receiver.spans_of(first)
    assert [(fact["event"], fact["number"]) for fact in facts] == [("traces_dropped", 1), ("traces_lost", 1)]


async def test_farewell_to_a_silent_receiver_is_short_and_tells_what_is_lost(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "_FAREWELL_SECONDS", 0.2)
    ids = [await stage.finished() for _ in range(2)]
    with OtlpReceiver("hangs") as receiver, structlog.testing.capture_logs() as facts:
        async with exporting(stage, receiver.url) as beside:
            for execution in ids:
                beside.end(execution)
            await until(lambda: receiver.asked)
            async with asyncio.timeout(5):
                await beside.exporter.finish()
    assert facts[-1] == {"event": "traces_lost", "number": 2, "log_level": "warning"}


async def test_pruned_execution_costs_no_attempt(stage: Stage) -> None:
    execution = await stage.finished()
    with OtlpReceiver() as receiver:
        async with exporting(stage, receiver.url) as beside:
            beside.end(uuid4())
            beside.end(execution)
            await until(lambda: receiver.spans_of(execution))
    assert beside.failures == []


async def test_reader_that_lags_behind_forgets_the_oldest_and_counts_them() -> None:
    ended = EndedExecutions(most_waiting=2)
    ids = [uuid4() for _ in range(5)]
    for execution in ids:
        ended.hear(None, "info", {"event": "execution_ended", "execution": str(execution), "answer": "ok"})
    assert (await ended.next(10), ended.forgotten, ended.unsettled) == (ids[3:], 3, 2)


@pytest.mark.parametrize(
    "fact",
    [
        {"event": "execution_ended", "answer": "lost"},
        {"event": "execution_claimed"},
        {"event": "leases_renewed", "number": 1},
    ],
)
async def test_what_is_no_end_of_ours_is_not_waited_for(fact: dict[str, Any]) -> None:
    ended = EndedExecutions()
    assert ended.hear(None, "info", {**fact, "execution": str(uuid4())}) is not None
    assert ended.unsettled == 0


class TestDestination:
    @pytest.mark.parametrize("endpoint", ["http://h:4318", "http://h:4318/", "http://h:4318/v1/traces"])
    def test_the_path_is_added_where_it_is_missing(self, endpoint: str) -> None:
        assert Destination.of(endpoint, None).url == "http://h:4318/v1/traces"

    @pytest.mark.parametrize("endpoint", ["h:4318", "grpc://h:4317", "http://", "http://me:secret@h:4318", ""])
    def test_what_is_no_address_is_refused_by_its_setting(self, endpoint: str) -> None:
        with pytest.raises(InvalidInput, match="otlp_endpoint") as told:
            Destination.of(endpoint, None)
        assert "secret" not in str(told.value)

    def test_headers_are_pairs_with_encoded_values(self) -> None:
        assert header_values("authorization=Bearer%20x%2Cy, x-team = a=b,") == {
            "authorization": "Bearer x,y",
            "x-team": "a=b",
        }
        assert header_values(None) == {}

    @pytest.mark.parametrize("headers", ["hunter22", "a b=hunter22", "a=hunter22%0d%0aX: y", "=hunter22"])
    def test_headers_that_cannot_be_sent_are_refused_and_not_shown(self, headers: str) -> None:
        with pytest.raises(InvalidInput, match="otlp_headers") as told:
            header_values(headers)
        assert "hunter22" not in str(told.value)
        assert "hunter22" not in repr(Destination.of("http://h", "a=hunter22"))
