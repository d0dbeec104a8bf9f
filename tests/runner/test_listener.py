"""Events become small facts, calls count once, and a fault of the listener stays its own."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from flowledger.runner.gate import Gate
from flowledger.runner.listener import Listener, Terms

LLM = SimpleNamespace(provider="openai")


@dataclass
class Heard:
    gate: Gate
    messages: list[dict[str, Any]] = field(default_factory=list)

    def listener(self, **options: Any) -> Listener:
        return Listener(self.messages.append, lambda state: state, self.gate, **options)

    def told(self) -> list[str]:
        return [message["event"] for message in self.messages]


@pytest.fixture
def heard() -> Iterator[Heard]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Heard(Gate(ours, lambda _: None, asks=False))


def event(kind: str, id_: str = "e", **fields: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{"type": kind, "event_id": id_, "parent_event_id": None, "started_event_id": None, **fields}
    )


def call(kind: str, id_: str, **fields: Any) -> SimpleNamespace:
    return event(f"llm_call_{kind}", id_, call_id=f"call of {id_}", model="m", **fields)


def test_failed_call_that_crewai_reports_twice_is_told_once(heard: Heard) -> None:
    listener = heard.listener()
    listener.hear(LLM, call("started", "c"))
    for _ in range(2):
        listener.hear(LLM, call("failed", "c", error="no\nmore"))
    assert heard.told() == ["llm_started", "llm_failed"]
    assert heard.messages[1]["fields"]["error"] == "no"


def test_attempts_at_one_request_are_counted_and_another_request_begins_anew(heard: Heard) -> None:
    listener = heard.listener()
    for attempt in ("first", "second", "third"):
        listener.hear(LLM, call("started", attempt, messages="hello"))
        listener.hear(LLM, call("failed", attempt, error="429"))
    listener.hear(LLM, call("started", "other", messages="goodbye"))
    begun = [message["fields"].get("retries", 0) for message in heard.messages if message["event"] == "llm_started"]
    assert begun == [0, 1, 2, 0]


def test_crewais_own_flows_are_left_out_and_their_calls_kept(heard: Heard) -> None:
    listener = heard.listener()
    internal = SimpleNamespace(is_crewai_internal=True, provider="openai")
    listener.hear(object(), event("agent_execution_started", "agent", agent_role="Editor"))
    listener.hear(internal, event("flow_started", "inner", flow_name="AgentExecutor", parent_event_id="agent"))
    listener.hear(internal, event("method_execution_started", "think", method_name="think", parent_event_id="inner"))
    listener.hear(internal, call("started", "c", parent_event_id="think"))
    listener.hear(internal, call("completed", "c", usage={"prompt_tokens": 1}))
    assert heard.told() == ["agent_started", "llm_started", "llm_completed"]
    assert [message.get("parent") for message in heard.messages] == [None, 1, 1]
    assert heard.messages[1]["fields"]["agent_role"] == "Editor"
    assert heard.messages[2]["began"] == 2


def test_an_end_finds_its_beginning_when_crewai_names_another(heard: Heard) -> None:
    listener = heard.listener()
    listener.hear(object(), event("method_execution_started", "a", method_name="step", state={}))
    listener.hear(object(), event("tool_usage_started", "b", tool_name="hammer", parent_event_id="a"))
    listener.hear(object(), event("tool_usage_finished", "c", tool_name="hammer", started_event_id="a"))
    assert [message.get("began") for message in heard.messages] == [None, None, 2]


def test_an_end_without_a_beginning_names_none(heard: Heard) -> None:
    heard.listener().hear(object(), event("tool_usage_finished", "c", tool_name="hammer", started_event_id="x"))
    assert "began" not in heard.messages[0]


def test_what_a_method_changed_is_told_at_its_end(heard: Heard) -> None:
    listener, flow = heard.listener(), SimpleNamespace()
    listener._root = flow
    listener.hear(flow, event("method_execution_started", "a", method_name="m", state={"count": 1, "same": "x"}))
    listener.hear(flow, event("method_execution_finished", "b", method_name="m", state={"count": 2, "same": "x"}))
    assert heard.messages[1]["fields"]["changes"] == [{"op": "replace", "path": "/count", "value": 2, "was": 1}]


def test_previews_are_cut_and_their_size_is_told(heard: Heard) -> None:
    listener = heard.listener(terms=Terms(preview_characters=5))
    listener.hear(LLM, call("started", "c", messages=[{"role": "user", "content": "a long question"}]))
    listener.hear(LLM, call("completed", "c", response="a long answer"))
    asked, answered = (message["fields"] for message in heard.messages)
    assert (asked["prompt"], asked["prompt_characters"], asked["messages"]) == ("a lon", 15, 1)
    assert (answered["response"], answered["response_characters"]) == ("a lon", 13)


def test_previews_can_be_turned_off(heard: Heard) -> None:
    listener = heard.listener(terms=Terms(preview_characters=0))
    listener.hear(LLM, call("started", "c", messages="secret plans"))
    assert "secret" not in str(heard.messages)


def test_a_warning_of_pythons_logging_is_an_event_and_an_information_is_none(heard: Heard) -> None:
    listener = heard.listener()
    for level in (logging.INFO, logging.WARNING):
        listener.hear_log(logging.LogRecord("library", level, __file__, 1, "%s of it", ("much",), None))
    assert [(message["name"], message["fields"]) for message in heard.messages] == [
        ("library", {"level": "warning", "message": "much of it"})
    ]


def test_fault_in_the_listener_never_reaches_the_flow(heard: Heard) -> None:
    def broken(message: dict[str, Any]) -> None:
        raise OSError("the pipe is gone")

    listener = Listener(broken, lambda _: None, heard.gate)
    listener.hear(object(), event("flow_started", flow_name="F"))
    listener.hear(object(), event("tool_usage_started"))
