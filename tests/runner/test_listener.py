"""Events become small facts, calls count once, and a fault of the listener stays its own."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from flowledger.runner.gate import Gate
from flowledger.runner.listener import Listener

MakeListener = Callable[[Callable[[dict[str, Any]], None]], Listener]


@pytest.fixture
def listener() -> Iterator[MakeListener]:
    """Of a run without a budget."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield lambda emit: Listener(emit, lambda _: None, Gate(ours, emit, asks=False))


@pytest.fixture
def heard(listener: MakeListener) -> tuple[Listener, list[dict[str, Any]]]:
    messages: list[dict[str, Any]] = []
    return listener(messages.append), messages


def event(kind: str, **fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"type": kind, "event_id": "e", "started_event_id": None, **fields})


def test_failed_call_that_crewai_reports_twice_is_told_once(heard: tuple[Listener, list[dict[str, Any]]]) -> None:
    listener, messages = heard
    for _ in range(2):
        listener.hear(
            SimpleNamespace(provider="openai"), event("llm_call_failed", call_id="c", model="m", error="no\nmore")
        )
    assert [(m["event"], m["name"], m["fields"]["error"]) for m in messages] == [("llm_failed", "m", "no")]


def test_crewais_own_flows_are_left_out_and_their_calls_kept(heard: tuple[Listener, list[dict[str, Any]]]) -> None:
    listener, messages = heard
    internal = SimpleNamespace(is_crewai_internal=True, provider="openai")
    listener.hear(internal, event("flow_started", flow_name="AgentExecutor"))
    listener.hear(internal, event("method_execution_started", method_name="think"))
    listener.hear(internal, event("llm_call_completed", call_id="c", model="m", usage={"prompt_tokens": 1}))
    assert [m["event"] for m in messages] == ["llm_completed"]
    assert messages[0]["n"] == 1


def test_fault_in_the_listener_never_reaches_the_flow(listener: MakeListener) -> None:
    def broken(message: dict[str, Any]) -> None:
        raise OSError("the pipe is gone")

    faulty = listener(broken)
    faulty.hear(object(), event("flow_started", flow_name="F"))
    faulty.hear(object(), event("unheard_of"))
