"""CrewAI's events, turned into small facts of ours, in their true order.

The tap sits on the one function that every event passes synchronously (`_prepare_event`, a private name, so it is
looked for first). Handlers on the bus would run on a thread pool, unordered, and be lost when the process is killed.
Fields are named one by one: whole events carry prompts and states many times over.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from flowledger.runner.encode import clean
from flowledger.runner.usage import normalise

Emit = Callable[[dict[str, Any]], None]
Keep = Callable[[Any], None]

_LONGEST_FIELD = 500
_LLM_COMPLETED = "llm_completed"
_LLM_FAILED = "llm_failed"

_KINDS: dict[str, tuple[str, str]] = {
    "flow_started": ("flow_started", "flow_name"),
    "flow_finished": ("flow_finished", "flow_name"),
    "flow_failed": ("flow_failed", "flow_name"),
    "method_execution_started": ("method_started", "method_name"),
    "method_execution_finished": ("method_finished", "method_name"),
    "method_execution_failed": ("method_failed", "method_name"),
    "crew_kickoff_started": ("crew_started", "crew_name"),
    "crew_kickoff_completed": ("crew_finished", "crew_name"),
    "crew_kickoff_failed": ("crew_failed", "crew_name"),
    "task_started": ("task_started", "task_name"),
    "task_completed": ("task_finished", "task_name"),
    "task_failed": ("task_failed", "task_name"),
    "agent_execution_started": ("agent_started", "agent_role"),
    "agent_execution_completed": ("agent_finished", "agent_role"),
    "agent_execution_error": ("agent_failed", "agent_role"),
    "lite_agent_execution_started": ("agent_started", "agent_role"),
    "lite_agent_execution_completed": ("agent_finished", "agent_role"),
    "lite_agent_execution_error": ("agent_failed", "agent_role"),
    "llm_call_started": ("llm_started", "model"),
    "llm_call_completed": (_LLM_COMPLETED, "model"),
    "llm_call_failed": (_LLM_FAILED, "model"),
    "tool_usage_started": ("tool_started", "tool_name"),
    "tool_usage_finished": ("tool_finished", "tool_name"),
    "tool_usage_error": ("tool_failed", "tool_name"),
}
"""CrewAI's event type -> our kind, and the field that names what it is about."""

_COUNTED_AT_ONCE = 1_000
_MOST_BEGUN = 10_000
"""Steps and calls whose begin is remembered for their duration; more do not run at one time."""

_KINDS_WITH_STATE = ("method_started", "method_finished")

_FIELDS = ("agent_role", "task_name", "call_id", "finish_reason", "from_cache", "run_attempts")


class Listener:
    """Emits one message per event of interest. `began` is emitted once, when the run's own flow starts.

    After `most_events` only those are emitted that the worker needs all the same; the others are counted, and a
    `counted` message tells the last number now and then. `keep` is given the state of the run's own flow at the begin
    and the end of each of its methods.
    """

    def __init__(self, emit: Emit, keep: Keep, most_events: int = sys.maxsize) -> None:
        self._emit = emit
        self._keep = keep
        self._most_events = most_events
        self._pid = os.getpid()
        self._root: Any = None
        self._began = False
        self._sequence = 0
        self._starts: dict[str, int] = {}
        self._failed_calls: set[str] = set()

    @property
    def heard(self) -> int:
        """How many events of interest there were."""
        return self._sequence

    def attach(self, flow: Any) -> bool:
        """Listens to the bus from now on. False when this CrewAI offers no way to, or the flow keeps silent."""
        self._root = flow
        if getattr(flow, "suppress_flow_events", False):
            self.begin()
        return _tap_bus(self.hear) or _tap_stream(self.hear)

    def begin(self) -> None:
        """Says that the flow's own code starts now; the first word counts."""
        if not self._began:
            self._began = True
            self._emit({"kind": "began", "at": time.monotonic_ns()})

    def hear(self, source: Any, event: Any) -> None:
        """Never raises: a fault of ours must not fail somebody's flow."""
        with contextlib.suppress(Exception):
            known = _KINDS.get(event.type)
            # A process that the flow forked has its own copy of us, and would write into our pipe.
            if known is not None and os.getpid() == self._pid and not _is_plumbing(source, event):
                self._record(source, event, *known)

    def _record(self, source: Any, event: Any, kind: str, name_field: str) -> None:
        if kind == "flow_started" and source is self._root:
            self.begin()
        if kind in _KINDS_WITH_STATE and source is self._root:
            # CrewAI has made this copy already, so no method changes it while it is read.
            self._keep(vars(event).get("state"))
        if kind == _LLM_FAILED and self._is_repeated(event):
            return
        self._sequence += 1
        if self._sequence > self._most_events and not _matters_after_many(kind):
            self._count(event, kind)
            return
        fields = self._fields(source, event, kind)
        name = _text(vars(event).get(name_field)) or ""
        at = time.time()
        self._emit({"kind": "event", "n": self._sequence, "at": at, "event": kind, "name": name, "fields": fields})

    def _count(self, event: Any, kind: str) -> None:
        # A failure that is told later has its duration from its start.
        self._time(event, kind, {})
        if self._sequence % _COUNTED_AT_ONCE == 0:
            self._emit({"kind": "counted", "n": self._sequence})

    def _is_repeated(self, event: Any) -> bool:
        """CrewAI reports one failed call twice, by the same call id."""
        if event.call_id in self._failed_calls:
            return True
        self._failed_calls.add(event.call_id)
        return False

    def _fields(self, source: Any, event: Any, kind: str) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        # Not getattr: asking a pydantic model for a field that it lacks costs more than all the rest here.
        given = vars(event)
        for name in _FIELDS:
            value = given.get(name)
            if value is not None and value != "":
                fields[name] = value if isinstance(value, (bool, int)) else _text(value)
        if kind.startswith("llm_"):
            fields["provider"] = _text(getattr(source, "provider", None)) or "unknown"
        if kind == _LLM_COMPLETED:
            fields["usage"] = normalise(given.get("usage"), fields["provider"])
        if kind.endswith("_failed") and (error := _first_line(given.get("error"))):
            fields["error"] = error
        if kind.startswith("flow_") and source is not self._root:
            fields["nested"] = True
        self._time(event, kind, fields)
        return fields

    def _time(self, event: Any, kind: str, fields: dict[str, Any]) -> None:
        now = time.monotonic_ns()
        key = vars(event).get("call_id")
        if kind.endswith("_started"):
            if len(self._starts) < _MOST_BEGUN:
                self._starts[key or event.event_id] = now
            return
        begun = self._starts.pop(key or vars(event).get("started_event_id") or "", None)
        if begun is not None:
            fields["duration_ms"] = round((now - begun) / 1e6, 3)


def _matters_after_many(kind: str) -> bool:
    """Failures and ends of flows are what a reader looks for; without the LLM calls, tokens would be missing."""
    return kind.endswith("_failed") or kind in ("flow_finished", _LLM_COMPLETED)


def _is_plumbing(source: Any, event: Any) -> bool:
    """CrewAI runs every agent as a flow of its own; those flows and their methods are not the user's."""
    return bool(event.type.startswith(("flow_", "method_")) and getattr(source, "is_crewai_internal", False))


def _tap_bus(hear: Callable[[Any, Any], None]) -> bool:
    from crewai.events import crewai_event_bus

    original = getattr(crewai_event_bus, "_prepare_event", None)
    if original is None:
        return False

    def tap(source: Any, event: Any) -> None:
        original(source, event)
        hear(source, event)

    crewai_event_bus._prepare_event = tap  # noqa: SLF001 - the single choke point; looked for above
    return True


def _tap_stream(hear: Callable[[Any, Any], None]) -> bool:
    try:
        from crewai.events.stream_context import add_stream_sink
    except ImportError:
        return False
    add_stream_sink(hear)
    return True


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return clean(str(value)[:_LONGEST_FIELD])


def _first_line(error: Any) -> str | None:
    text = _text(error)
    return text.strip().split("\n", 1)[0] if text else None
