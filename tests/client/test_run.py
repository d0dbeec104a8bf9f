"""Whoever runs a flow gets its end, its events once each, and an error for every end but the good one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from flowledger.domain.change import ChangeKind
from flowledger.domain.status import Status
from flowledger.domain.timeline import Event
from flowledger.errors import (
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionNotFound,
    ExecutionTimedOut,
    FlowNotFound,
    ServerUnreachable,
    StoppedWaiting,
)
from tests.client.proxy import answering, cut_after, lost, passed, refused
from tests.client.telling import told
from tests.ledger.law import BOB, Row, cancel, claim, finish, running


@contextmanager
def beside(work: Callable[[], Any]) -> Iterator[None]:
    """Does the work in another thread, and tells of its failure."""
    with ThreadPoolExecutor(1) as pool:
        doing = pool.submit(work)
        yield
        doing.result(30)


def until(fact: Callable[[], Any], seconds: float = 20) -> Any:
    """What the fact is once it is one."""
    ends_at = time.monotonic() + seconds
    while not (found := fact()):
        assert time.monotonic() < ends_at, "it did not come to be"
        time.sleep(0.01)
    return found


@pytest.fixture
def worked(worker, flow) -> Callable[..., Any]:
    """Claims the next execution and brings it to an end."""

    def worked(status: str = "completed", *events: int, **outcome: Any) -> None:
        (held,) = until(lambda: claim(worker, flow, slots=1))
        for number in events:
            told(worker, held, number)
        finish(worker, held["execution_id"], held["fence"], status, **outcome)

    return worked


# -- Run --------------------------------------------------------------------------------------------------------------


def test_a_run_answers_with_what_became_of_it(client, worked):
    events = []
    with beside(lambda: worked("completed", 1, 2, 3, output={"result": "done"}, tokens=110)):
        execution = client.run("FLOW", {"topic": "x"}, timeout=60, budget_usd="0.50", on_event=events.append)
    assert (execution.status, execution.output_state) == (Status.COMPLETED, {"result": "done"})
    assert execution.metadata["timeout_seconds"] == 60
    assert execution.metadata["budget_usd"] == "0.5"
    assert [event.sequence for event in events] == [1, 2, 3]


@pytest.mark.parametrize(("status", "kind"), [("failed", ExecutionFailed), ("timeout", ExecutionTimedOut)])
def test_a_run_that_does_not_complete_raises_its_end(client, worked, status, kind):
    with beside(lambda: worked(status, error_type="LookupError")), pytest.raises(kind) as end:
        client.run("FLOW", metadata={"title": "mine"})
    assert end.value.execution.status == status
    assert end.value.execution.metadata["title"] == "mine"
    assert "FLOW" in str(end.value)
    assert end.value.execution.execution_key in str(end.value)
    assert "LookupError" in str(end.value)


def test_a_run_that_is_cancelled_says_so(client, alice, owner, flow):
    def cancel_it() -> None:
        execution = until(lambda: owner.execute("select id from crewai_flow_executions").fetchone())
        cancel(alice, execution["id"], "not needed")

    with beside(cancel_it), pytest.raises(ExecutionCancelled):
        client.run("FLOW")


def test_waiting_does_not_raise_the_end(client, worked):
    execution = client.executions.create("FLOW")
    with beside(lambda: worked("failed")):
        assert client.wait(execution).status is Status.FAILED
    assert client.wait(execution.id).status is Status.FAILED


def test_the_same_key_takes_up_waiting_for_the_same_execution(client, worked, owner):
    with pytest.raises(StoppedWaiting) as stopped:
        client.run("FLOW", {"n": 1}, idempotency_key="order-17", patience=0.3)
    assert stopped.value.execution.status is Status.PENDING
    with beside(lambda: worked("completed", output={"result": 1})):
        execution = client.run("FLOW", {"n": 1}, idempotency_key="order-17")
    assert execution.id == stopped.value.execution.id


def test_patience_ends_when_it_is_said_to(client, flow):
    began = time.monotonic()
    with pytest.raises(StoppedWaiting, match="has not ended"):
        client.run("FLOW", patience=0.5, on_event=print)
    assert 0.5 <= time.monotonic() - began < 3


def test_a_flow_that_is_not_there_is_not_waited_for(client, flow):
    with pytest.raises(FlowNotFound):
        client.run("FLOWS")


# -- Events -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def busy(worker, held) -> Callable[..., Any]:
    """The held execution tells event after event, and ends when it is told to."""

    def busy(count: int, each: Callable[[int], None] = lambda _: None) -> None:
        for number in range(1, count + 1):
            told(worker, held, number)
            each(number)
        finish(worker, held["execution_id"], held["fence"])

    return busy


def test_events_come_as_they_happen_and_end_with_the_execution(client, busy, held):
    seen: dict[int, Event] = {}
    with beside(lambda: busy(5, each=lambda number: until(lambda: number in seen))):
        for event in client.events(held["execution_id"]):
            assert event.sequence not in seen
            seen[event.sequence] = event
    assert list(seen) == [1, 2, 3, 4, 5]


def test_events_of_what_has_ended_are_told_once_and_for_all(client, busy, held):
    busy(3)
    execution = client.executions.get(str(held["execution_id"]))
    assert [event.sequence for event in client.events(execution)] == [1, 2, 3]
    assert [event.sequence for event in client.events(execution, after=2)] == [3]


def test_events_are_neither_lost_nor_doubled_when_the_stream_is_cut_again_and_again(shaky, network, busy, held):
    seen: dict[int, Event] = {}

    def disturb(number: int) -> None:
        if number % 10 == 0:
            until(lambda: number in seen)
            until(lambda: network.cut("/live"))

    with beside(lambda: busy(40, each=disturb)):
        for event in shaky.events(held["execution_id"]):
            assert event.sequence not in seen
            seen[event.sequence] = event
    assert list(seen) == list(range(1, 41))
    assert len(network.asked("/live")) > 3
    assert any("last-event-id" in one.headers for one in network.asked("/live"))


def test_events_are_neither_lost_nor_doubled_when_pages_of_them_break(shaky, network, worker, held):
    network.next(refused, passed, lost, passed, cut_after(300), path="/timeline")
    told(worker, held, *range(1, 2101))
    with beside(lambda: finish(worker, held["execution_id"], held["fence"])):
        seen = [event.sequence for event in shaky.events(held["execution_id"])]
    assert seen == list(range(1, 2101))
    assert len(network.asked("/timeline")) >= 6


@pytest.mark.parametrize("fate", [refused, answering(404), answering(429), answering(503), answering(200, "no stream")])
def test_where_no_stream_is_to_be_had_the_end_is_looked_for(shaky, network, worked, fate):
    network.next(*[fate] * 1000, path="/live")
    seen: list[int] = []
    with beside(lambda: worked("completed", 1, 2)):
        execution = shaky.run("FLOW", on_event=lambda event: seen.append(event.sequence))
    assert (execution.status, seen) == (Status.COMPLETED, [1, 2])
    assert network.asked("/live")


def test_a_server_that_stays_away_is_told(connected, network, flow):
    client = connected(url=network.url, retry_seconds=0.3)
    execution = client.executions.create("FLOW")
    network.next(*[refused] * 1000)
    with pytest.raises(ServerUnreachable):
        client.wait(execution)


def test_whoever_may_not_see_an_execution_waits_for_nothing(connected, held):
    with pytest.raises(ExecutionNotFound):
        list(connected(BOB).events(held["execution_id"]))


def test_whoever_stops_listening_leaves_no_stream_behind(client, server, worker, held):
    told(worker, held, 1)
    events = client.events(held["execution_id"])
    assert next(events).sequence == 1
    assert server.streams == 1
    events.close()
    until(lambda: server.streams == 0)


# -- Watch ------------------------------------------------------------------------------------------------------------


def test_a_watcher_is_told_of_what_begins_and_ends(client, alice, worker, flow):
    changes = client.watch(all_executions=True)
    assert next(changes).kind is ChangeKind.READY
    held = running(alice, worker, flow)
    finish(worker, held["execution_id"], held["fence"])
    assert kinds(changes, held) == {ChangeKind.CREATED, ChangeKind.STARTED, ChangeKind.ENDED}
    changes.close()


def test_a_watcher_misses_nothing_of_what_happens_while_the_connection_is_down(shaky, network, alice, worker, flow):
    changes = shaky.watch(all_executions=True)
    assert next(changes).kind is ChangeKind.READY
    first = running(alice, worker, flow)
    finish(worker, first["execution_id"], first["fence"])
    kinds(changes, first)
    network.next(refused, answering(503), path="/live")
    network.cut("/live")
    second = running(alice, worker, flow)
    finish(worker, second["execution_id"], second["fence"])
    assert ChangeKind.ENDED in kinds(changes, second)
    assert len(network.asked("/live")) == 4
    changes.close()


def test_a_watcher_of_one_execution_is_told_of_its_inside(client, worker, held):
    changes = client.watch(held["execution_id"])
    assert next(changes).kind is ChangeKind.READY
    told(worker, held, 1)
    assert next(changes).kind is ChangeKind.TIMELINE
    changes.close()


def kinds(changes: Iterator[Any], held: Row) -> set[ChangeKind]:
    """What a watcher is told of an execution up to its end."""
    seen = set()
    for change in changes:
        if change.execution == held["execution_id"]:
            seen.add(change.kind)
        if ChangeKind.ENDED in seen:
            return seen
    raise AssertionError("the stream ended")
