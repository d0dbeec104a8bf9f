"""Answers become what their types say, and what does not fit is told."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

import pytest

from flowledger.client.reading import UNFIT, read
from flowledger.domain.status import Status
from flowledger.domain.timeline import Event, EventKind

ONE = "00000000-0000-4000-8000-000000000001"


@dataclass(frozen=True)
class Some:
    id: UUID
    cost: Decimal | None
    status: Status
    pair: tuple[str, int]
    seconds: float = 0.5


def test_a_value_is_read_by_its_type():
    given = {"id": ONE, "cost": "0.10", "status": "failed", "pair": ["a", 1], "of_a_later_version": [1]}
    assert read(Some, given) == Some(UUID(ONE), Decimal("0.10"), Status.FAILED, ("a", 1))
    assert read(Some, {**given, "cost": None, "seconds": 2}).seconds == 2.0
    assert read(dict[str, tuple[int, ...]], {"a": [1, 2]}) == {"a": (1, 2)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": 1},
        {"id": "x"},
        {"cost": 0.1},
        {"cost": "much"},
        {"status": "finished"},
        {"pair": ["a"]},
        {"pair": "a1"},
        {"pair": ["a", True]},
        {"seconds": "1"},
    ],
)
def test_a_value_of_another_type_is_refused(wrong):
    given = {"id": ONE, "cost": "0.10", "status": "failed", "pair": ["a", 1], **wrong}
    with pytest.raises(UNFIT):
        read(Some, given)


def test_what_is_missing_is_missed():
    with pytest.raises(TypeError):
        read(Some, {"id": ONE})
    with pytest.raises(TypeError):
        read(Some, [])


def test_an_event_of_a_later_version_is_a_log_line_that_says_so():
    given = {"sequence": 1, "at": "2026-11-27T03:00:00Z", "kind": "quantum_leap", "name": "n", "fields": 7}
    event = read(Event, {**given, "parent": None, "began": None})
    assert (event.kind, event.fields) == (EventKind.LOG, {"value": 7, "unknown_kind": "quantum_leap"})
