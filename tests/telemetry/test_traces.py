"""What a trace is made of: hand-made timelines and calls in, spans out."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from flowledger.domain.execution import Execution
from flowledger.domain.mode import Mode
from flowledger.domain.status import Status
from flowledger.domain.timeline import Event, EventKind
from flowledger.domain.usage import CallStatus, LlmCall, Price, PricedCall, Usage
from flowledger.telemetry.traces import TraceSpan, trace, trace_id

BEGAN = datetime(2026, 11, 26, 12, tzinfo=UTC)
EXECUTION = Execution(
    id=UUID("0192f0c1-0000-7000-8000-00000000002a"),
    flow_id=UUID(int=7),
    execution_key="brief-20261126T120000000Z-0123456789ABCDEF",
    input_state={},
    output_state=None,
    status=Status.COMPLETED,
    error_message=None,
    error_stack=None,
    error_type=None,
    started_at=BEGAN,
    completed_at=BEGAN + timedelta(seconds=60),
    duration_ms=60_000,
    token_count=300,
    cost_usd=Decimal("0.0012"),
    board_meeting_id=None,
    executed_by=UUID(int=9),
    execution_mode=Mode.MANUAL,
    metadata={"flow_version": 3},
    flow_key="brief",
)
KILLED = replace(EXECUTION, status=Status.FAILED, error_type="WorkerLost", error_message="It stopped renewing.\nMore.")
USAGE = Usage(200, 50, 10, 100, 20)
CANARY = "canary-4711"


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def event(
    sequence: int, kind: str, name: str = "", *, parent: int | None = None, began: int | None = None, **fields: Any
) -> Event:
    return Event(sequence, at(sequence), EventKind(kind), name, fields, parent, began)


def call(sequence: int | None, number: int = 1, **facts: Any) -> PricedCall:
    known = {"status": CallStatus.COMPLETED, "usage": USAGE, "latency_ms": 500.0, "finish_reason": "stop", **facts}
    price = Price(input=Decimal(1), output=Decimal(2), source="test", version="1")
    return PricedCall(LlmCall(number, "c", "gpt-x", "openai", at(4), sequence=sequence, **known), price)


TIMELINE = [
    event(1, "flow_started", "Brief"),
    event(2, "method_started", "write", parent=1),
    event(3, "agent_started", "Secretary of the Board", parent=2),
    event(4, "llm_started", "gpt-x", parent=3, provider="gemini"),
    event(5, "llm_completed", "gpt-x", parent=3, began=4, provider="gemini"),
    event(6, "tool_started", "figures", parent=3),
    event(7, "tool_failed", "figures", parent=3, began=6, error="no such quarter", error_type="KeyError"),
    event(8, "agent_finished", "Secretary of the Board", parent=2, began=3),
    event(9, "method_finished", "write", parent=1, began=2),
    event(10, "flow_finished", "Brief", began=1),
]


def told(
    events: list[Event],
    calls: list[PricedCall] | None = None,
    execution: Execution = EXECUTION,
    *,
    previews: bool = False,
) -> dict[str, TraceSpan]:
    """The spans by their names."""
    return {span.name: span for span in trace(execution, events, calls or [], previews=previews)}


def test_each_span_hangs_below_the_one_that_encloses_it_and_the_root_stands_for_the_flow() -> None:
    spans = told(TIMELINE)
    parents = {name: next((n for n, s in spans.items() if s.id == span.parent), None) for name, span in spans.items()}
    assert parents == {
        "invoke_workflow brief": None,
        "method write": "invoke_workflow brief",
        "invoke_agent Secretary of the Board": "method write",
        "chat gpt-x": "invoke_agent Secretary of the Board",
        "execute_tool figures": "invoke_agent Secretary of the Board",
    }


def test_spans_begin_and_end_when_it_happened() -> None:
    spans = told(TIMELINE)
    assert (spans["chat gpt-x"].started_at, spans["chat gpt-x"].ended_at) == (at(4), at(5))
    root = spans["invoke_workflow brief"]
    assert (root.started_at, root.ended_at) == (EXECUTION.started_at, EXECUTION.completed_at)


def test_cost_of_the_root_is_exact_where_the_row_is_rounded() -> None:
    for told_in_row, cost in (({"exact_cost_usd": "0.00123456"}, 0.00123456), ({"exact_cost_usd": ["mine"]}, 0.0012)):
        (root,) = trace(replace(EXECUTION, metadata=told_in_row), [], [], previews=False)
        assert root.attributes["flowledger.cost_usd"] == cost


def test_root_tells_what_the_row_tells() -> None:
    about = told(TIMELINE, execution=KILLED)["invoke_workflow brief"].attributes
    assert about == {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.workflow.name": "brief",
        "flowledger.execution.id": str(EXECUTION.id),
        "flowledger.execution.key": EXECUTION.execution_key,
        "flowledger.execution.status": "failed",
        "flowledger.execution.mode": "manual",
        "flowledger.flow.key": "brief",
        "flowledger.flow.version": 3,
        "flowledger.tokens": 300,
        "flowledger.cost_usd": 0.0012,
        "user.id": str(EXECUTION.executed_by),
        "error.type": "WorkerLost",
    }


def test_call_carries_the_tokens_of_its_own_row() -> None:
    span = told(TIMELINE, [call(4, first_token_ms=250.0)])["chat gpt-x"]
    assert span.leaves
    assert span.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-x",
        "gen_ai.usage.input_tokens": 200,
        "gen_ai.usage.output_tokens": 100,
        "gen_ai.usage.cache_read.input_tokens": 50,
        "gen_ai.usage.cache_creation.input_tokens": 10,
        "gen_ai.usage.reasoning.output_tokens": 20,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": 0.25,
        "flowledger.cost_usd": 0.0004,
        "flowledger.event.sequence": 4,
    }


def test_call_without_a_row_says_what_its_event_says() -> None:
    events = [
        event(1, "llm_started", "m"),
        event(2, "llm_completed", "m", began=1, provider="bedrock", usage=vars(USAGE)),
    ]
    about = told(events)["chat m"].attributes
    assert (about["gen_ai.provider.name"], about["gen_ai.usage.input_tokens"]) == ("aws.bedrock", 200)


def test_call_of_unknown_tokens_carries_none_and_not_zero() -> None:
    about = told(TIMELINE, [call(4, usage=None)])["chat gpt-x"].attributes
    assert not [name for name in about if name.startswith("gen_ai.usage")]
    assert "flowledger.cost_usd" not in about


def test_call_whose_event_was_dropped_has_a_span_all_the_same() -> None:
    calls = [call(None, 1), call(None, 2, status=CallStatus.FAILED, usage=None), call(99, 3)]
    spans = [span for span in trace(EXECUTION, TIMELINE[:3], calls, previews=False) if span.leaves]
    assert [(span.started_at, span.ended_at) for span in spans] == [(at(4), at(4.5))] * 3
    assert len({span.id for span in spans}) == 3
    assert [span.failure for span in spans] == [None, "the call is failed", None]


def test_failure_is_the_spans_status_and_names_its_class() -> None:
    span = told(TIMELINE)["execute_tool figures"]
    assert (span.failure, span.attributes["error.type"]) == ("no such quarter", "KeyError")
    assert told(TIMELINE)["invoke_agent Secretary of the Board"].failure is None


def test_failure_of_unknown_class_is_other() -> None:
    assert told([event(1, "tool_failed", "t", error="e")])["execute_tool t"].attributes["error.type"] == "_OTHER"


def test_refused_call_is_a_failed_span() -> None:
    span = told([event(1, "llm_refused", "gpt-x", reason="0.10 of 0.10 USD is spent")])
    assert (span["chat gpt-x"].failure, span["chat gpt-x"].attributes["error.type"]) == (
        "0.10 of 0.10 USD is spent",
        "BudgetExceeded",
    )


def test_what_a_killed_run_left_open_ends_with_it_and_has_failed() -> None:
    spans = told(TIMELINE[:4], execution=KILLED)
    assert spans["invoke_workflow brief"].failure == "WorkerLost: It stopped renewing."
    for name in ("method write", "chat gpt-x"):
        assert spans[name].ended_at == KILLED.completed_at
        assert spans[name].failure == "no end was seen: the execution ended as failed"
        assert spans[name].attributes["flowledger.end_unseen"] is True


def test_what_a_completed_run_left_open_is_not_said_to_have_failed() -> None:
    span = told(TIMELINE[:4])["method write"]
    assert (span.failure, span.attributes["flowledger.end_unseen"]) == (None, True)


def test_execution_that_never_started_is_a_root_and_no_more() -> None:
    late = replace(KILLED, status=Status.TIMEOUT, error_type="QueueTimeout", error_message=None, duration_ms=None)
    (root,) = trace(late, [], [], previews=False)
    assert (root.failure, root.parent) == ("QueueTimeout", None)


def test_nested_flow_has_a_span_of_its_own() -> None:
    nested = [*TIMELINE[:2], event(3, "flow_started", "Inner", parent=2, nested=True)]
    assert told(nested)["invoke_workflow Inner"].parent == told(nested)["method write"].id


def test_moments_are_events_of_the_span_around_them() -> None:
    events = [*TIMELINE[:2], event(3, "feedback_requested", parent=2), event(4, "error", "E", parent=2, message="why")]
    assert [moment.name for moment in told(events)["method write"].moments] == ["feedback", "exception"]
    assert told([event(1, "log", "hello")])["invoke_workflow brief"].moments[0].name == "log"


@pytest.mark.parametrize("parents", [(2, 1), (1, 2), (77, 78), (-1, 0)])
def test_whatever_a_flow_says_nothing_becomes_its_own_ancestor(parents: tuple[int, int]) -> None:
    events = [
        event(sequence, "method_started", f"m{sequence}", parent=parent)
        for sequence, parent in enumerate(parents, start=1)
    ]
    spans = {span.id: span for span in trace(EXECUTION, events, [], previews=False)}
    for span in spans.values():
        seen = set()
        while span.parent is not None:
            assert span.id not in seen
            seen.add(span.id)
            span = spans[span.parent]


def test_ids_are_the_same_each_time_and_of_this_execution_alone() -> None:
    ids = [span.id for span in trace(EXECUTION, TIMELINE, [call(None)], previews=False)]
    assert ids == [span.id for span in trace(EXECUTION, TIMELINE, [call(None)], previews=False)]
    other = trace(replace(EXECUTION, id=UUID(int=1)), TIMELINE, [call(None)], previews=False)
    assert len({*ids, *(span.id for span in other)}) == 2 * len(ids)
    assert all(0 < id_ < 2**64 for id_ in ids)
    assert trace_id(EXECUTION.id).to_bytes(16) == EXECUTION.id.bytes


WITH_CONTENT = [
    event(1, "task_started", f"Write about {CANARY}", prompt=CANARY),
    event(2, "llm_started", "gpt-x", parent=1, task_name=f"Write about {CANARY}", prompt={"text": CANARY}),
    event(3, "llm_completed", "gpt-x", parent=1, began=2, response=[CANARY]),
    event(4, "tool_started", "search", parent=1, arguments={"query": CANARY}),
    event(5, "log", "line", parent=1, text=CANARY),
]


def test_content_goes_out_only_when_it_is_asked_for() -> None:
    assert CANARY not in repr(trace(EXECUTION, WITH_CONTENT, [call(2)], previews=False))
    shown = repr(trace(EXECUTION, WITH_CONTENT, [call(2)], previews=True))
    assert shown.count(CANARY) >= 7
    assert told(WITH_CONTENT, previews=True)["chat gpt-x"].attributes["flowledger.prompt"] == f'{{"text": "{CANARY}"}}'


def test_named_task_is_named_and_a_described_one_is_not() -> None:
    assert "task write_brief" in told([event(1, "task_started", "write_brief")])
    assert "task" in told([event(1, "task_started", "Write a brief.")])
