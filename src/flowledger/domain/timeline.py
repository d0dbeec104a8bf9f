"""The append-only facts of an execution: what happened inside it, in order, and what it printed.

Events are moments. What lasts is a `Span`: a beginning and the end that names it, put together for readers by `spans`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any


class EventKind(StrEnum):
    """Kinds of timeline events. `fields` of each are documented in docs/reference/events.md."""

    FLOW_STARTED = "flow_started"
    FLOW_FINISHED = "flow_finished"
    FLOW_FAILED = "flow_failed"
    FLOW_PAUSED = "flow_paused"
    METHOD_STARTED = "method_started"
    METHOD_FINISHED = "method_finished"
    METHOD_FAILED = "method_failed"
    METHOD_PAUSED = "method_paused"
    CREW_STARTED = "crew_started"
    CREW_FINISHED = "crew_finished"
    CREW_FAILED = "crew_failed"
    TASK_STARTED = "task_started"
    TASK_FINISHED = "task_finished"
    TASK_FAILED = "task_failed"
    AGENT_STARTED = "agent_started"
    AGENT_FINISHED = "agent_finished"
    AGENT_FAILED = "agent_failed"
    REASONING_STARTED = "reasoning_started"
    REASONING_FINISHED = "reasoning_finished"
    REASONING_FAILED = "reasoning_failed"
    LLM_STARTED = "llm_started"
    LLM_COMPLETED = "llm_completed"
    LLM_FAILED = "llm_failed"
    LLM_REFUSED = "llm_refused"
    TOOL_STARTED = "tool_started"
    TOOL_FINISHED = "tool_finished"
    TOOL_FAILED = "tool_failed"
    MEMORY_STARTED = "memory_started"
    MEMORY_FINISHED = "memory_finished"
    MEMORY_FAILED = "memory_failed"
    KNOWLEDGE_STARTED = "knowledge_started"
    KNOWLEDGE_FINISHED = "knowledge_finished"
    KNOWLEDGE_FAILED = "knowledge_failed"
    GUARDRAIL_STARTED = "guardrail_started"
    GUARDRAIL_FINISHED = "guardrail_finished"
    GUARDRAIL_FAILED = "guardrail_failed"
    MCP_STARTED = "mcp_started"
    MCP_FINISHED = "mcp_finished"
    MCP_FAILED = "mcp_failed"
    FEEDBACK_REQUESTED = "feedback_requested"
    FEEDBACK_RECEIVED = "feedback_received"
    BUDGET_WARNED = "budget_warned"
    LOG = "log"
    ERROR = "error"

    @property
    def matters_at_the_end(self) -> bool:
        """Kept even of a run that has told more than fits: how it ended, and what failed."""
        return self in _KEPT_TO_THE_LAST or self.endswith("_failed")

    @property
    def subject(self) -> str:
        """What it is about: `flow`, `method`, `llm`, ..."""
        return self.partition("_")[0]

    @property
    def is_beginning(self) -> bool:
        return self.endswith("_started")

    @property
    def is_failure(self) -> bool:
        return self.endswith(("_failed", "_refused")) or self is EventKind.ERROR


_KEPT_TO_THE_LAST = (
    EventKind.FLOW_FINISHED,
    EventKind.LLM_REFUSED,
    EventKind.BUDGET_WARNED,
    EventKind.ERROR,
)


@dataclass(frozen=True)
class Event:
    """One fact. `sequence` counts from 1 within its execution; gaps mean that facts were dropped.

    `parent` is the sequence of the event with which the enclosing step or call began; None: nothing encloses it.
    `began`, at an end, is the sequence of its beginning; None: this is a beginning or a moment, or nobody knows.
    """

    sequence: int
    at: datetime
    kind: EventKind
    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    parent: int | None = None
    began: int | None = None


@dataclass(frozen=True)
class LogLine:
    """A piece of what the flow wrote. `stream` is `stdout` or `stderr`; `text` may hold several lines."""

    sequence: int
    at: datetime
    stream: str
    text: str


class SpanStatus(StrEnum):
    """RUNNING: no end was seen, because it goes on, or because its process was killed."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    REFUSED = "refused"
    PAUSED = "paused"
    MOMENT = "moment"
    """Happens and does not last: a log line, a request for feedback."""


@dataclass(frozen=True)
class Span:
    """Something that lasts, or a moment. `sequence` is that of its beginning, `fields` those of beginning and end.

    `ended_at` None: no end was seen. A span whose beginning was dropped starts at its end.
    """

    sequence: int
    parent: int | None
    subject: str
    name: str
    started_at: datetime
    ended_at: datetime | None
    status: SpanStatus
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def milliseconds(self) -> float | None:
        """None while no end was seen."""
        if "duration_ms" in self.fields:
            return float(self.fields["duration_ms"])
        return None if self.ended_at is None else (self.ended_at - self.started_at).total_seconds() * 1000


_ENDINGS = {
    "finished": SpanStatus.COMPLETED,
    "completed": SpanStatus.COMPLETED,
    "failed": SpanStatus.FAILED,
    "refused": SpanStatus.REFUSED,
    "paused": SpanStatus.PAUSED,
}


def spans(events: Iterable[Event]) -> list[Span]:
    """What the events tell of, in the order in which it began."""
    found: dict[int, Span] = {}
    for event in events:
        ending = _ENDINGS.get(event.kind.rpartition("_")[2])
        begun = None if event.began is None else found.get(event.began)
        if event.kind.is_beginning:
            found[event.sequence] = _span(event, None, SpanStatus.RUNNING)
        elif ending is None:
            status = SpanStatus.FAILED if event.kind.is_failure else SpanStatus.MOMENT
            found[event.sequence] = _span(event, event.at, status)
        elif begun is None:
            found[event.sequence] = _span(event, event.at, ending)
        else:
            fields = {**begun.fields, **event.fields}
            found[begun.sequence] = replace(begun, ended_at=event.at, status=ending, fields=fields)
    return sorted(found.values(), key=lambda span: span.sequence)


def _span(event: Event, ended_at: datetime | None, status: SpanStatus) -> Span:
    return Span(
        event.sequence, event.parent, event.kind.subject, event.name, event.at, ended_at, status, dict(event.fields)
    )
