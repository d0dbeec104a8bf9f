"""Two executions side by side: what went in, what came out, which steps ran, and what it took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from flowledger.api.shapes import (
    AmountsShape,
    ChangeShape,
    ChangesShape,
    ComparisonShape,
    NumbersShape,
    SpanShape,
    StepShape,
    StepSideShape,
    money,
)
from flowledger.domain.execution import Execution
from flowledger.domain.timeline import Event, spans
from flowledger.runner import changes

Side = tuple[Execution, list[Event]]


def compared(this: Side, other: Side) -> ComparisonShape:
    """What is different in the other, seen from this one."""
    one, two = this[0], other[0]
    return ComparisonShape(
        this=one.id,
        other=two.id,
        flow_keys=(one.flow_key, two.flow_key),
        statuses=(one.status, two.status),
        inputs=_changes(one.input_state, two.input_state),
        outputs=_changes(one.output_state, two.output_state),
        steps=_steps(this[1], other[1]),
        token_count=_numbers(one.token_count, two.token_count),
        cost_usd=_amounts(one.cost_usd, two.cost_usd),
        duration_ms=_numbers(one.duration_ms, two.duration_ms),
    )


def _changes(before: Any, after: Any) -> ChangesShape:
    found, more = changes.between(before, after)
    return ChangesShape(changes=[ChangeShape(**change) for change in found], more=more)


def _steps(this: Iterable[Event], other: Iterable[Event]) -> list[StepShape]:
    left, right = _methods(this), _methods(other)
    return [
        StepShape(name=name, time=time, this=left.get((name, time)), other=right.get((name, time)))
        for name, time in dict.fromkeys([*left, *right])
    ]


def _methods(events: Iterable[Event]) -> dict[tuple[str, int], StepSideShape]:
    """The flow's methods, each with the how manieth time it ran."""
    times: Counter[str] = Counter()
    found = {}
    for span in spans(events):
        if span.subject == "method":
            times[span.name] += 1
            found[span.name, times[span.name]] = StepSideShape(
                status=span.status, duration_ms=SpanShape.of(span).duration_ms
            )
    return found


def _numbers(this: int | None, other: int | None) -> NumbersShape:
    difference = None if this is None or other is None else other - this
    return NumbersShape(this=this, other=other, difference=difference)


def _amounts(this: Decimal | None, other: Decimal | None) -> AmountsShape:
    difference = None if this is None or other is None else other - this
    return AmountsShape(this=money(this), other=money(other), difference=money(difference))
