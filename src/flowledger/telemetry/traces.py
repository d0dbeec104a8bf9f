"""What an execution's trace is: a span for the execution, and one for each thing that lasted inside it.

Pure. Names and attributes stand in `semantics.py`; how spans reach a receiver is left to `receiver.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from flowledger.domain.execution import Execution
from flowledger.domain.status import Status
from flowledger.domain.timeline import Event, Span, SpanStatus, spans
from flowledger.domain.usage import CallStatus, PricedCall
from flowledger.telemetry.semantics import (
    BUDGET_ERROR,
    UNKNOWN_ERROR,
    Attribute,
    about_call,
    about_event_of_call,
    about_execution,
    about_fields,
    about_span,
    known,
    span_name,
)

_LONGEST_FAILURE = 500
_MOMENTS = ("log", "error", "feedback", "budget")


@dataclass(frozen=True)
class Moment:
    """Something that happened within a span and did not last."""

    name: str
    at: datetime
    attributes: dict[str, Attribute]


@dataclass(frozen=True)
class TraceSpan:
    """One span. `parent` None: the root. `leaves`: it waits for another system, such as an LLM's provider.
    `failure` None: nothing is known to have gone wrong.
    """

    id: int
    parent: int | None
    name: str
    started_at: datetime
    ended_at: datetime
    leaves: bool = False
    failure: str | None = None
    attributes: dict[str, Attribute] = field(default_factory=dict)
    moments: tuple[Moment, ...] = ()


def trace(
    execution: Execution, events: Iterable[Event], calls: Sequence[PricedCall], *, previews: bool
) -> list[TraceSpan]:
    """The spans of an ended execution, its root first.

    `previews` adds what prompts, answers, tools and log lines say, as far as the timeline holds it.
    """
    return _Trace(execution, events, calls, previews=previews).spans()


def trace_id(execution: UUID) -> int:
    """A trace's id has as many bits as an execution's."""
    return execution.int


class _Trace:
    def __init__(
        self, execution: Execution, events: Iterable[Event], calls: Sequence[PricedCall], *, previews: bool
    ) -> None:
        found = spans(events)
        self._execution = execution
        self._previews = previews
        self._ended_at = _end_of(execution)
        self._own_flow = next((span.sequence for span in found if _is_own_flow(span)), None)
        self._lasting = {span.sequence: span for span in found if _lasts(span)}
        self._calls = {priced.call.sequence: priced for priced in calls if priced.call.sequence in self._lasting}
        self._unseen_calls = [priced for priced in calls if priced.call.sequence not in self._lasting]
        self._moments = self._by_span_around([span for span in found if not _lasts(span)])

    def spans(self) -> list[TraceSpan]:
        children = [self._child(span) for span in self._lasting.values() if span.sequence != self._own_flow]
        return [self._root(), *children, *(self._unseen_call(priced) for priced in self._unseen_calls)]

    def _root(self) -> TraceSpan:
        execution = self._execution
        return TraceSpan(
            id=self._id(0),
            parent=None,
            name=f"invoke_workflow {execution.flow_key}",
            started_at=execution.started_at or self._ended_at,
            ended_at=self._ended_at,
            failure=None if execution.status is Status.COMPLETED else _failure_of(execution),
            attributes=known(about_execution(execution)),
            moments=self._moments.get(None, ()),
        )

    def _child(self, span: Span) -> TraceSpan:
        failure = self._failure_of(span)
        about = about_span(span, previews=self._previews)
        if span.subject == "llm":
            priced = self._calls.get(span.sequence)
            about |= about_event_of_call(span) if priced is None else known(about_call(priced))
        if failure is not None:
            otherwise = BUDGET_ERROR if span.status is SpanStatus.REFUSED else UNKNOWN_ERROR
            about["error.type"] = str(span.fields.get("error_type") or otherwise)
        if span.status is SpanStatus.RUNNING:
            about["flowledger.end_unseen"] = True
        return TraceSpan(
            id=self._id(span.sequence),
            parent=self._id(self._around(span) or 0),
            name=span_name(span, previews=self._previews),
            started_at=span.started_at,
            ended_at=max(span.started_at, span.ended_at or self._ended_at),
            leaves=span.subject == "llm",
            failure=failure,
            attributes=known(about),
            moments=self._moments.get(span.sequence, ()),
        )

    def _failure_of(self, span: Span) -> str | None:
        """Without an end, in an execution that completed, it may have gone well: its end may have been dropped."""
        match span.status:
            case SpanStatus.FAILED | SpanStatus.REFUSED:
                told = span.fields.get("error") or span.fields.get("reason") or span.status
                return str(told)[:_LONGEST_FAILURE]
            case SpanStatus.RUNNING if self._execution.status is not Status.COMPLETED:
                return f"no end was seen: the execution ended as {self._execution.status}"
        return None

    def _unseen_call(self, priced: PricedCall) -> TraceSpan:
        """The event with which it began was dropped, but what it cost is known."""
        call = priced.call
        about = about_call(priced)
        if call.status is not CallStatus.COMPLETED:
            about["error.type"] = UNKNOWN_ERROR
        lasted = (
            self._ended_at - call.started_at if call.latency_ms is None else timedelta(milliseconds=call.latency_ms)
        )
        return TraceSpan(
            id=self._id(f"call {call.number}"),
            parent=self._id(0),
            name=f"chat {call.model}",
            started_at=call.started_at,
            ended_at=call.started_at + max(lasted, timedelta(0)),
            leaves=True,
            failure=None if call.status is CallStatus.COMPLETED else f"the call is {call.status}",
            attributes=known(about),
        )

    def _by_span_around(self, moments: Iterable[Span]) -> dict[int | None, tuple[Moment, ...]]:
        found: dict[int | None, list[Moment]] = {}
        for span in moments:
            found.setdefault(self._around(span), []).append(self._moment(span))
        return {around: tuple(inside) for around, inside in found.items()}

    def _moment(self, span: Span) -> Moment:
        about = about_fields(span.fields, previews=self._previews)
        if span.subject == "error":
            about["exception.type"] = span.name
            about["exception.message"] = str(span.fields.get("message") or "")[:_LONGEST_FAILURE]
        return Moment("exception" if span.subject == "error" else span.subject, span.started_at, known(about))

    def _around(self, span: Span) -> int | None:
        """The sequence of the span around it. None: the root, also for one whose parent was dropped.

        What encloses began before: whatever a flow's process says, nothing becomes its own ancestor.
        """
        parent = span.parent
        if parent is None or parent == self._own_flow or parent >= span.sequence or parent not in self._lasting:
            return None
        return parent

    def _id(self, place: int | str) -> int:
        """The same for one execution and place, whoever exports it and how often."""
        digest = hashlib.sha256(self._execution.id.bytes + str(place).encode()).digest()
        return int.from_bytes(digest[:8]) or 1


def _lasts(span: Span) -> bool:
    return span.status is not SpanStatus.MOMENT and span.subject not in _MOMENTS


def _is_own_flow(span: Span) -> bool:
    """The execution's own flow, for which the root stands; not one that it started."""
    return span.subject == "flow" and span.parent is None and not span.fields.get("nested")


def _end_of(execution: Execution) -> datetime:
    end = execution.completed_at or execution.started_at
    assert end is not None, "an ended execution has an end"
    return end


def _failure_of(execution: Execution) -> str:
    kind = execution.error_type or str(execution.status)
    first_line = (execution.error_message or "").strip().partition("\n")[0]
    return f"{kind}: {first_line}"[:_LONGEST_FAILURE] if first_line else kind
