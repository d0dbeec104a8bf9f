"""CrewAI's events, turned into small facts of ours, in their true order.

The tap sits on the one function that every event passes synchronously (`_prepare_event`, a private name, so it is
looked for first). Handlers on the bus would run on a thread pool, unordered, and be lost when the process is killed.
Fields are named one by one: whole events carry prompts and states many times over.

What encloses what is taken from CrewAI's own scopes, where they are right: a call that fails is told twice, and the
second time takes the enclosing step from the stack (it is put back here); agents run as flows of their own, which are
not the user's (they are passed over); threads that a flow starts itself know of no scope (they belong to the flow).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flowledger.runner import changes
from flowledger.runner.calls import Call, Calls, whole_usage
from flowledger.runner.encode import clean
from flowledger.runner.gate import Gate, Refused, RoomAwaited, current_attempt

Emit = Callable[[dict[str, Any]], None]
Keep = Callable[[Any], Any]

_LONGEST_FIELD = 500
_COUNTED_AT_ONCE = 1_000
_MOST_REMEMBERED = 20_000
"""Beginnings that ends and what happens inside them may name; more are not open at one time."""
_MOST_DEPTH = 50

_LLM_STARTED = "llm_call_started"

_KINDS: dict[str, tuple[str, str]] = {
    "flow_started": ("flow_started", "flow_name"),
    "flow_finished": ("flow_finished", "flow_name"),
    "flow_failed": ("flow_failed", "flow_name"),
    "flow_paused": ("flow_paused", "flow_name"),
    "method_execution_started": ("method_started", "method_name"),
    "method_execution_finished": ("method_finished", "method_name"),
    "method_execution_failed": ("method_failed", "method_name"),
    "method_execution_paused": ("method_paused", "method_name"),
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
    "agent_reasoning_started": ("reasoning_started", "agent_role"),
    "agent_reasoning_completed": ("reasoning_finished", "agent_role"),
    "agent_reasoning_failed": ("reasoning_failed", "agent_role"),
    _LLM_STARTED: ("llm_started", "model"),
    "llm_call_completed": ("llm_completed", "model"),
    "llm_call_failed": ("llm_failed", "model"),
    "tool_usage_started": ("tool_started", "tool_name"),
    "tool_usage_finished": ("tool_finished", "tool_name"),
    "tool_usage_error": ("tool_failed", "tool_name"),
    "tool_validate_input_error": ("tool_failed", "tool_name"),
    "tool_selection_error": ("tool_failed", "tool_name"),
    "memory_query_started": ("memory_started", "=query"),
    "memory_query_completed": ("memory_finished", "=query"),
    "memory_query_failed": ("memory_failed", "=query"),
    "memory_save_started": ("memory_started", "=save"),
    "memory_save_completed": ("memory_finished", "=save"),
    "memory_save_failed": ("memory_failed", "=save"),
    "memory_retrieval_started": ("memory_started", "=retrieval"),
    "memory_retrieval_completed": ("memory_finished", "=retrieval"),
    "memory_retrieval_failed": ("memory_failed", "=retrieval"),
    "knowledge_query_started": ("knowledge_started", "=query"),
    "knowledge_query_completed": ("knowledge_finished", "=query"),
    "knowledge_query_failed": ("knowledge_failed", "=query"),
    "knowledge_search_query_started": ("knowledge_started", "=search"),
    "knowledge_search_query_completed": ("knowledge_finished", "=search"),
    "knowledge_search_query_failed": ("knowledge_failed", "=search"),
    "llm_guardrail_started": ("guardrail_started", "guardrail_name"),
    "llm_guardrail_completed": ("guardrail_finished", "guardrail_name"),
    "llm_guardrail_failed": ("guardrail_failed", "guardrail_name"),
    "mcp_connection_started": ("mcp_started", "server_name"),
    "mcp_connection_completed": ("mcp_finished", "server_name"),
    "mcp_connection_failed": ("mcp_failed", "server_name"),
    "mcp_tool_execution_started": ("mcp_started", "tool_name"),
    "mcp_tool_execution_completed": ("mcp_finished", "tool_name"),
    "mcp_tool_execution_failed": ("mcp_failed", "tool_name"),
    "human_feedback_requested": ("feedback_requested", "method_name"),
    "human_feedback_received": ("feedback_received", "method_name"),
    "flow_input_requested": ("feedback_requested", "method_name"),
    "flow_input_received": ("feedback_received", "method_name"),
}
"""CrewAI's event type -> our kind, and the field that names what it is about, or after `=` the name itself."""

_WITHOUT_BEGINNING = ("tool_validate_input_error", "tool_selection_error")
_PIECES = ("llm_stream_chunk", "llm_thinking_chunk")

_FIELDS = ("agent_role", "task_name", "call_id", "finish_reason", "from_cache", "retry_count", "stream")

_PREVIEWS: dict[str, tuple[tuple[str, str], ...]] = {
    "llm_started": (("prompt", "messages"),),
    "llm_completed": (("response", "response"),),
    "tool_started": (("arguments", "tool_args"),),
    "tool_finished": (("output", "output"),),
    "method_finished": (("result", "result"),),
    "task_finished": (("output", "output"),),
    "agent_finished": (("output", "output"),),
    "crew_finished": (("output", "output"),),
    "reasoning_finished": (("plan", "plan"),),
    "memory_started": (("query", "query"), ("value", "value")),
    "knowledge_finished": (("query", "query"),),
    "guardrail_finished": (("result", "result"),),
    "guardrail_failed": (("result", "result"),),
    "mcp_started": (("arguments", "tool_args"),),
    "mcp_finished": (("output", "result"),),
    "feedback_requested": (("message", "message"), ("output", "output")),
    "feedback_received": (("feedback", "feedback"), ("response", "response")),
}
"""Our kind -> fields of ours that hold the beginning of what a field of CrewAI's holds."""

_OF_CALL = {"method": "method", "crew": "crew_name", "agent": "agent_role", "task": "task_name"}
"""What encloses an LLM call -> the field that names it."""


@dataclass(frozen=True)
class Terms:
    """How much is told. Of prompts, answers and outputs the first `preview_characters`; 0: none of them."""

    most_events: int = sys.maxsize
    preview_characters: int = _LONGEST_FIELD


@dataclass
class _Begun:
    """Something that has begun. `state` is the flow's before a method."""

    sequence: int
    parent: int | None
    subject: str
    name: str
    at: int
    state: Any = None


class Listener:
    """Emits one message per event of interest. `began` is emitted once, when the run's own flow starts.

    After `terms.most_events` only those are emitted that the worker needs all the same; the others are counted, and a
    `counted` message tells the last number now and then. `keep` is given the state of the run's own flow at the begin
    and the end of each of its methods, and answers with it as plain data, or with None when it was left out. `cut`
    makes a preview of a text.
    """

    def __init__(
        self,
        emit: Emit,
        keep: Keep,
        gate: Gate,
        terms: Terms | None = None,
        cut: Callable[[str, int], str] = lambda text, most: text[:most],
    ) -> None:
        self._emit = emit
        self._keep = keep
        self._gate = gate
        self._terms = terms or Terms()
        self._cut = cut
        self._pid = os.getpid()
        self._root: Any = None
        self._root_sequence: int | None = None
        self._began = False
        self._sequence = 0
        self._calls = Calls()
        self._begun: dict[int, _Begun] = {}
        """By sequence: also what has ended, so that latecomers find what encloses them."""
        self._sequences: dict[str, int | None] = {}
        """CrewAI's id of a beginning -> our sequence; of one that is passed over, that of what encloses it."""
        self._open: dict[str, _Begun] = {}
        self._state_kept: Any = None
        self._kept: Any = None
        self._warned = False
        # Threads tell events side by side; numbers must arrive in order.
        self._lock = threading.RLock()

    @property
    def heard(self) -> int:
        """How many events of interest there were."""
        return self._sequence

    def attach(self, flow: Any) -> bool:
        """Listens to the bus from now on. False when this CrewAI offers no way to, or the flow keeps silent."""
        self._root = flow
        if getattr(flow, "suppress_flow_events", False):
            self.begin()
        with contextlib.suppress(Exception):
            _tap_logging(self.hear_log)
        return _tap_bus(self.hear) or _tap_stream(self.hear)

    def begin(self) -> None:
        """Says that the flow's own code starts now; the first word counts."""
        if not self._began:
            self._began = True
            self._emit({"kind": "began", "at": time.monotonic_ns()})

    def hear(self, source: Any, event: Any) -> None:
        """Raises only to keep an LLM call from being made: a fault of ours must not fail somebody's flow."""
        # A process that the flow forked has its own copy of us, and would write into our pipe.
        if os.getpid() != self._pid:
            return
        number = self._let_through(source, event) if event.type == _LLM_STARTED else None
        with contextlib.suppress(Exception), self._lock:
            self._hear(source, event, number)

    def hear_log(self, record: logging.LogRecord) -> None:
        """A warning or worse that the flow or a library wrote through Python's logging."""
        if record.levelno < logging.WARNING or os.getpid() != self._pid:
            return
        with contextlib.suppress(Exception), self._lock:
            message = self._preview(record.getMessage(), _LONGEST_FIELD)
            fields = {"level": record.levelname.lower(), "message": message}
            self._tell("log", record.name, fields, parent=self._parent_now())

    def tell_error(self, facts: Mapping[str, Any]) -> None:
        """The exception that ended the flow."""
        with contextlib.suppress(Exception), self._lock:
            fields = {name: facts[name] for name in ("message", "fingerprint", "place") if facts.get(name)}
            self._tell("error", facts["type"], fields, parent=self._root_sequence)

    # -- LLM calls ----------------------------------------------------------------------------------------------------

    def _let_through(self, llm: Any, event: Any) -> int | None:
        """The call's number. Raises CrewAI's HookAborted when it may not be made."""
        number = self._calls.next_number()
        try:
            warning = self._gate.pass_through(number, llm, event, inside_call=self._is_inside_call(event))
        except Refused as refused:
            self._refuse(llm, event, number, refused.reason)
            _abort(refused.reason)
        except RoomAwaited:
            with contextlib.suppress(Exception):
                self._calls.refuse(event.call_id, number)
                _leave_scope()
            raise
        except Exception:
            return number
        if warning is not None:
            self._warn(warning)
        return number

    def _is_inside_call(self, event: Any) -> bool:
        """Whether it is made by a tool that another call runs, which ends only after it."""
        if not self._gate.asks:
            return False
        with self._lock:
            return any(begun.subject == "llm" for begun in self._enclosing(self._parent_of(event)))

    def _refuse(self, llm: Any, event: Any, number: int, reason: str) -> None:
        with contextlib.suppress(Exception), self._lock:
            self._calls.refuse(event.call_id, number)
            parent = self._parent_of(event)
            fields = {"reason": reason[:_LONGEST_FIELD], "provider": _provider(llm), **self._around(parent, event)}
            self._tell("llm_refused", self._text(event.model), fields, parent=parent)

    def _give_up(self, llm: Any, event: Any) -> None:
        """The flow cancelled the call, and CrewAI tells nobody. It may have been billed."""
        with contextlib.suppress(Exception), self._lock:
            begun = self._open.pop(event.call_id, None)
            if begun is None:
                return
            fields = {
                "call_id": event.call_id,
                "error_type": "CancelledError",
                "error": "given up by the flow before it ended",
                "abandoned": True,
                **self._call_ends(llm, event, failed=True),
                "duration_ms": _milliseconds_since(begun.at),
            }
            self._tell("llm_failed", begun.name, fields, parent=begun.parent, began=begun.sequence)
            _leave_scope_of(event)

    def _warn(self, warning: str) -> None:
        with contextlib.suppress(Exception), self._lock:
            if not self._warned:
                self._warned = True
                self._tell("budget_warned", "budget", {"reason": warning[:_LONGEST_FIELD]}, parent=self._parent_now())

    # -- Events -------------------------------------------------------------------------------------------------------

    def _hear(self, source: Any, event: Any, number: int | None) -> None:
        if event.type in _PIECES:
            self._calls.piece(event.call_id)
            return
        known = _KINDS.get(event.type)
        if known is None:
            return
        kind = _true_kind(known[0], event)
        if _is_plumbing(source, event):
            if kind.endswith("_started"):
                _remember(self._sequences, event.event_id, self._parent_of(event))
            return
        if kind == "flow_started" and source is self._root:
            self.begin()
        if kind.startswith("llm_") and kind != "llm_started" and self._calls.has_ended(event.call_id):
            self._put_back_scope(event)
            return
        name = known[1][1:] if known[1].startswith("=") else self._name(event, known[1])
        if kind.endswith("_started"):
            self._begin(source, event, kind, name, number)
        else:
            self._end(source, event, kind, name)

    def _begin(self, source: Any, event: Any, kind: str, name: str, number: int | None) -> None:
        parent = self._parent_of(event)
        fields = self._fields(source, event, kind)
        state = self._state(source, event, kind)
        if kind == "llm_started":
            fields.update(self._call_begins(source, event, parent, number))
        sequence = self._tell(kind, name, fields, parent=parent)
        if kind == "flow_started" and source is self._root:
            self._root_sequence = sequence
        begun = _Begun(sequence, parent, kind.partition("_")[0], name, time.monotonic_ns(), state)
        _remember(self._begun, sequence, begun)
        _remember(self._sequences, event.event_id, sequence)
        _remember(self._open, _open_key(event), begun)

    def _end(self, source: Any, event: Any, kind: str, name: str) -> None:
        subject = kind.partition("_")[0]
        begun = self._ended(event, subject, name)
        parent = self._parent_of(event) if begun is None else begun.parent
        fields = self._fields(source, event, kind)
        if subject == "llm":
            fields.update(self._call_ends(source, event, failed=kind == "llm_failed"))
        state = self._state(source, event, kind)
        if begun is not None:
            fields["duration_ms"] = _milliseconds_since(begun.at)
            fields.update(_changes(begun.state, state))
            begun.state = None
            name = name or begun.name
        self._tell(kind, name, fields, parent=parent, began=None if begun is None else begun.sequence)

    def _tell(
        self, kind: str, name: str, fields: dict[str, Any], *, parent: int | None, began: int | None = None
    ) -> int:
        self._sequence += 1
        if self._sequence > self._terms.most_events and not _matters_after_many(kind):
            if self._sequence % _COUNTED_AT_ONCE == 0:
                self._emit({"kind": "counted", "n": self._sequence})
            return self._sequence
        message: dict[str, Any] = {"kind": "event", "n": self._sequence, "at": time.time(), "event": kind, "name": name}
        if parent is not None:
            message["parent"] = parent
        if began is not None:
            message["began"] = began
        self._emit({**message, "fields": fields})
        return self._sequence

    def _ended(self, event: Any, subject: str, name: str) -> _Begun | None:
        """What this is the end of: what CrewAI names, if that makes sense; else the last of its kind and name."""
        given = vars(event)
        for key in (given.get("call_id"), given.get("started_event_id")):
            begun = self._open.get(key) if key else None
            if key and begun is not None and begun.subject == subject:
                return self._open.pop(key)
        if event.type in _WITHOUT_BEGINNING:
            return None
        last_first = reversed(self._open.items())
        found = next((key for key, begun in last_first if (begun.subject, begun.name) == (subject, name)), None)
        return None if found is None else self._open.pop(found)

    # -- What encloses it ---------------------------------------------------------------------------------------------

    def _parent_of(self, event: Any) -> int | None:
        parent_id = vars(event).get("parent_event_id")
        return self._sequences.get(parent_id, self._root_sequence) if parent_id else self._root_sequence

    def _parent_now(self) -> int | None:
        with contextlib.suppress(Exception):
            from crewai.events.event_context import get_current_parent_id

            current = get_current_parent_id()
            if current:
                return self._sequences.get(current, self._root_sequence)
        return self._root_sequence

    def _put_back_scope(self, event: Any) -> None:
        """CrewAI took the enclosing scope from its stack for the end of a call that had ended."""
        taken = self._open.get(vars(event).get("started_event_id") or "")
        if taken is not None and taken.subject != "llm":
            from crewai.events.event_context import push_event_scope

            push_event_scope(event.started_event_id, f"{taken.subject}_started")

    def _around(self, parent: int | None, event: Any) -> dict[str, Any]:
        """The method, crew, agent and task in which a call is made."""
        names: dict[str, Any] = {}
        for begun in self._enclosing(parent):
            if field := _OF_CALL.get(begun.subject):
                names.setdefault(field, begun.name)
        given = vars(event)
        return {
            **names,
            **{field: self._text(given[field]) for field in ("agent_role", "task_name") if given.get(field)},
        }

    def _enclosing(self, parent: int | None) -> Iterator[_Begun]:
        """What lies around it, from the inside out."""
        for _ in range(_MOST_DEPTH):
            begun = self._begun.get(parent) if parent is not None else None
            if begun is None:
                return
            yield begun
            parent = begun.parent

    def _name(self, event: Any, field: str) -> str:
        given = vars(event)
        told = given.get(field)
        if not told and field == "agent_role":
            info = given.get("agent_info")
            told = info.get("role") if isinstance(info, Mapping) else getattr(given.get("agent"), "role", None)
        if not told and field == "task_name":
            task = given.get("task")
            told = getattr(task, "name", None) or getattr(task, "description", None)
        return self._text(told)

    # -- Fields -------------------------------------------------------------------------------------------------------

    def _fields(self, source: Any, event: Any, kind: str) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        # Not getattr: asking a pydantic model for a field that it lacks costs more than all the rest here.
        given = vars(event)
        for name in _FIELDS:
            value = given.get(name)
            if value is not None and value != "":
                fields[name] = value if isinstance(value, (bool, int)) else self._text(value)
        if given.get("run_attempts"):
            fields["run_attempts"] = given["run_attempts"]
        if kind.endswith("_failed"):
            fields.update(self._failure(given))
        if kind.startswith("flow_") and source is not self._root:
            fields["nested"] = True
        for field, theirs in _PREVIEWS.get(kind, ()):
            self._add_preview(fields, field, given.get(theirs))
        return fields

    def _failure(self, given: Mapping[str, Any]) -> dict[str, Any]:
        error = given.get("error") or given.get("failure")
        fields: dict[str, Any] = {}
        if isinstance(error, BaseException):
            fields["error_type"] = type(error).__qualname__
        text = clean(str(error)).strip() if error is not None else ""
        if text:
            fields["error"] = self._cut(text, _LONGEST_FIELD).split("\n", 1)[0]
        return fields

    def _add_preview(self, fields: dict[str, Any], field: str, value: Any) -> None:
        if value is None or value == "" or self._terms.preview_characters == 0:
            return
        if field == "prompt" and isinstance(value, list):
            fields["messages"] = len(value)
            fields["prompt_characters"] = sum(len(_words(_content(message))) for message in value)
            value = _content(value[-1]) if value else ""
        text = _words(value)
        fields.setdefault(f"{field}_characters", len(text))
        fields[field] = self._preview(text, self._terms.preview_characters)

    def _preview(self, text: str, most: int) -> str:
        return self._cut(clean(text), most)

    def _text(self, value: Any) -> str:
        return "" if value is None else self._preview(str(value), _LONGEST_FIELD).strip()

    def _call_begins(self, llm: Any, event: Any, parent: int | None, number: int | None) -> dict[str, Any]:
        with contextlib.suppress(Exception):
            self._calls.meter(type(llm))
        # The same request again: from the same place, to the same model, of the same size.
        request = (parent, event.model, str(vars(event).get("messages"))[-200:])
        call = self._calls.begin(event.call_id, number or self._calls.next_number(), request)
        if (attempt := current_attempt()) is not None:
            attempt.given_up = lambda: self._give_up(llm, event)
        fields: dict[str, Any] = {"call": call.number, "provider": _provider(llm), **self._around(parent, event)}
        if call.retries:
            fields["retries"] = call.retries
        return fields

    def _call_ends(self, llm: Any, event: Any, *, failed: bool) -> dict[str, Any]:
        call: Call | None = self._calls.end(event.call_id, failed=failed)
        provider = _provider(llm)
        fields: dict[str, Any] = {"provider": provider, "usage": whole_usage(call, vars(event).get("usage"), provider)}
        if call is not None:
            fields["call"] = call.number
            if (first_token_ms := call.first_token_ms()) is not None:
                fields["first_token_ms"] = first_token_ms
        return fields

    def _state(self, source: Any, event: Any, kind: str) -> Any:
        """The flow's state before and after a method. CrewAI has made a copy already, which no method changes."""
        if source is not self._root or kind not in ("method_started", "method_finished"):
            return None
        state = vars(event).get("state")
        # As a method begins, the state is mostly what the one before it left.
        with contextlib.suppress(Exception):
            if self._kept is not None and state == self._state_kept:
                return self._kept
        self._state_kept, self._kept = state, self._keep(state)
        return self._kept


def _changes(before: Any, after: Any) -> dict[str, Any]:
    if before is None or after is None:
        return {}
    found, more = changes.between(before, after)
    return {**({"changes": found} if found else {}), **({"more_changes": more} if more else {})}


def _true_kind(kind: str, event: Any) -> str:
    """What ended without raising may have failed all the same."""
    given = vars(event)
    if kind == "tool_finished" and given.get("failure") is not None:
        return "tool_failed"
    if kind == "guardrail_finished" and given.get("success") is False:
        return "guardrail_failed"
    return kind


def _matters_after_many(kind: str) -> bool:
    """Failures and ends of flows are what a reader looks for; without the LLM calls, tokens would be missing."""
    return kind.endswith(("_failed", "_refused", "_warned")) or kind in (
        "flow_finished",
        "llm_started",
        "llm_completed",
        "error",
    )


def _is_plumbing(source: Any, event: Any) -> bool:
    """CrewAI runs every agent as a flow of its own; those flows and their methods are not the user's."""
    return bool(event.type.startswith(("flow_", "method_")) and getattr(source, "is_crewai_internal", False))


def _open_key(event: Any) -> str:
    return str(vars(event).get("call_id") or event.event_id)


def _remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    known[key] = value
    if len(known) > _MOST_REMEMBERED:
        del known[next(iter(known))]


def _abort(reason: str) -> None:
    from crewai.hooks.dispatch import HookAborted

    raise HookAborted(reason=reason, source="flowledger")


def _leave_scope() -> None:
    from crewai.events.event_context import pop_event_scope

    pop_event_scope()


def _leave_scope_of(event: Any) -> None:
    from crewai.events.event_context import get_current_parent_id

    if get_current_parent_id() == event.event_id:
        _leave_scope()


def _milliseconds_since(at: int) -> float:
    return round((time.monotonic_ns() - at) / 1e6, 3)


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


def _tap_logging(hear: Callable[[logging.LogRecord], None]) -> None:
    """Not a handler: with one on the root logger, the flow's own `logging.basicConfig()` would do nothing."""
    original = logging.Logger.callHandlers

    def call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
        hear(record)
        original(logger, record)

    logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign,assignment]


def _provider(llm: Any) -> str:
    return str(getattr(llm, "provider", None) or "unknown")[:_LONGEST_FIELD]


def _content(message: Any) -> Any:
    return message.get("content") if isinstance(message, Mapping) else message


def _words(value: Any) -> str:
    """A value as somebody would read it."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raw = getattr(value, "raw", None)
    if isinstance(raw, str):
        return raw
    if isinstance(value, (dict, list, tuple, int, float, bool)):
        with contextlib.suppress(Exception):
            return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
