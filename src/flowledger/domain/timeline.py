"""The append-only facts of an execution: what happened inside it, in order, and what it printed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any


class EventKind(StrEnum):
    """Kinds of timeline events. `fields` of each are documented in docs/reference/events.md."""

    FLOW_STARTED = "flow_started"
    FLOW_FINISHED = "flow_finished"
    FLOW_FAILED = "flow_failed"
    METHOD_STARTED = "method_started"
    METHOD_FINISHED = "method_finished"
    METHOD_FAILED = "method_failed"
    CREW_STARTED = "crew_started"
    CREW_FINISHED = "crew_finished"
    CREW_FAILED = "crew_failed"
    TASK_STARTED = "task_started"
    TASK_FINISHED = "task_finished"
    TASK_FAILED = "task_failed"
    AGENT_STARTED = "agent_started"
    AGENT_FINISHED = "agent_finished"
    AGENT_FAILED = "agent_failed"
    LLM_STARTED = "llm_started"
    LLM_COMPLETED = "llm_completed"
    LLM_FAILED = "llm_failed"
    TOOL_STARTED = "tool_started"
    TOOL_FINISHED = "tool_finished"
    TOOL_FAILED = "tool_failed"

    @property
    def matters_at_the_end(self) -> bool:
        """Kept even of a run that has told more than fits: how it ended, and what failed."""
        return self is EventKind.FLOW_FINISHED or self.endswith("_failed")


@dataclass(frozen=True)
class Event:
    """One fact. `sequence` counts from 1 within its execution; gaps mean that facts were dropped."""

    sequence: int
    at: datetime
    kind: EventKind
    name: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LogLine:
    """A piece of what the flow wrote. `stream` is `stdout` or `stderr`; `text` may hold several lines."""

    sequence: int
    at: datetime
    stream: str
    text: str
