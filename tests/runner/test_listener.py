"""Events become small facts, calls count once, and a fault of the listener stays its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flowledger.runner.listener import Listener, normalise

SHAPES: dict[str, tuple[dict[str, Any], tuple[int, int, int, int, int]]] = {
    "openai": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 10,
            "total_tokens": 110,
            "cached_prompt_tokens": 60,
            "reasoning_tokens": 4,
        },
        (100, 60, 0, 10, 4),
    ),
    "anthropic": (
        {"input_tokens": 100, "output_tokens": 10, "cached_prompt_tokens": 60, "cache_creation_tokens": 20},
        (100, 60, 20, 10, 0),
    ),
    "gemini": (
        {"prompt_token_count": 7, "candidates_token_count": 3, "completion_tokens": 9, "reasoning_tokens": 6},
        (7, 0, 0, 9, 6),
    ),
    "gemini, thoughts apart": (
        {"prompt_token_count": 7, "candidates_token_count": 3, "thoughts_token_count": 6},
        (7, 0, 0, 9, 6),
    ),
    "bedrock": (
        {
            "inputTokens": 40,
            "outputTokens": 10,
            "totalTokens": 50,
            "cacheReadInputTokens": 60,
            "cacheWriteInputTokens": 5,
        },
        (105, 60, 5, 10, 0),
    ),
}
CLASSES = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")


@pytest.mark.parametrize("provider", SHAPES)
def test_each_providers_tokens_count_once(provider: str) -> None:
    usage, expected = SHAPES[provider]
    assert normalise(usage) == dict(zip(CLASSES, expected, strict=True))


@pytest.mark.parametrize("usage", [None, {}, {"total_tokens": 0}, "words", {"prompt_tokens": "many"}])
def test_call_without_usage_is_unknown_and_not_zero(usage: Any) -> None:
    assert normalise(usage) is None


@pytest.fixture
def heard() -> tuple[Listener, list[dict[str, Any]]]:
    messages: list[dict[str, Any]] = []
    return Listener(messages.append, lambda _: None), messages


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


def test_fault_in_the_listener_never_reaches_the_flow() -> None:
    def broken(message: dict[str, Any]) -> None:
        raise OSError("the pipe is gone")

    listener = Listener(broken, lambda _: None)
    listener.hear(object(), event("flow_started", flow_name="F"))
    listener.hear(object(), object())
