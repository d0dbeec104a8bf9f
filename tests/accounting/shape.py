"""Whether a timeline can be true: what begins ends once, what encloses something has begun and has not ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowledger.domain.timeline import Event, Span, spans


def untruths(events: Sequence[Event]) -> list[str]:
    """What cannot be true of the events of a run that ended by itself. Empty: they may be."""
    begun = {event.sequence: event for event in events if event.kind.is_beginning}
    ended: dict[int, int] = {}
    found = []
    for last, event in zip([None, *events], events, strict=False):
        if event.sequence != (last.sequence if last else 0) + 1:
            found.append(f"{event.sequence} comes after {last.sequence if last else 0}")
        if last and event.at < last.at:
            found.append(f"{event.sequence} happened before {last.sequence}")
        found += _wrong_end(event, begun, ended)
        found += _wrong_parent(event, begun, ended)
    found += [f"{sequence} {begun[sequence].kind} never ended" for sequence in begun.keys() - ended.keys()]
    return found


def _wrong_end(event: Event, begun: dict[int, Event], ended: dict[int, int]) -> list[str]:
    if event.began is None:
        return []
    beginning = begun.get(event.began)
    if beginning is None or beginning.sequence >= event.sequence:
        return [f"{event.sequence} ends what had not begun"]
    found = []
    if event.began in ended:
        found.append(f"{event.sequence} ends what {ended[event.began]} had ended")
    if (beginning.kind.subject, beginning.name, beginning.parent) != (event.kind.subject, event.name, event.parent):
        found.append(f"{event.sequence} ends something else than {event.began} began")
    ended[event.began] = event.sequence
    return found


def _wrong_parent(event: Event, begun: dict[int, Event], ended: dict[int, int]) -> list[str]:
    if event.parent is None:
        is_root = event.kind.subject == "flow" and not event.fields.get("nested")
        return [] if is_root else [f"{event.sequence} {event.kind} is enclosed by nothing"]
    parent = begun.get(event.parent)
    if parent is None or parent.sequence >= event.sequence:
        return [f"{event.sequence} is inside what had not begun"]
    if event.parent in ended:
        return [f"{event.sequence} is inside {event.parent}, which had ended"]
    if not _may_enclose(parent.kind.subject, event.kind.subject):
        return [f"{event.sequence} {event.kind.subject} is inside {event.parent} {parent.kind.subject}"]
    return []


def _may_enclose(outer: str, inner: str) -> bool:
    allowed = _INSIDE.get(inner)
    return allowed is None or outer in allowed


_INSIDE = {
    "method": ("flow",),
    "task": ("crew",),
    "flow": ("method", "tool"),
    # Threads that a flow starts itself belong to the flow.
    "llm": ("flow", "method", "task", "agent", "reasoning", "guardrail", "tool", "crew", "memory"),
}
"""Where alone these are."""


@dataclass(frozen=True)
class Branch:
    """A span and what is inside it, without the moments."""

    label: str
    inside: tuple[Branch, ...] = ()

    def __str__(self) -> str:
        return self.label + (f"({', '.join(map(str, self.inside))})" if self.inside else "")


def tree(events: Sequence[Event]) -> str:
    """The timeline in one line: `flow:F(method:a(llm:gpt!), method:b)`. `!` has failed, `?` has no end."""
    found = spans(events)
    return ", ".join(str(_branch(span, found)) for span in found if span.parent is None)


def _branch(span: Span, found: Sequence[Span]) -> Branch:
    mark = {"failed": "!", "running": "?", "refused": "x"}.get(span.status, "")
    inside = [inner for inner in found if inner.parent == span.sequence and inner.subject != "log"]
    return Branch(f"{span.subject}:{span.name}{mark}", tuple(_branch(inner, found) for inner in inside))
