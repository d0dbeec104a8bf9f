"""A run that tells without end is kept bounded: its first events, the last that matter, and how many lay between."""

from __future__ import annotations

import pytest

from flowledger.domain.execution import Outcome
from flowledger.domain.status import Status
from tests.runner.conftest import Runner

TIMES = 3_000
TOLD = 2 * TIMES + 8
"""And the begin of flow and method, an LLM call, a tool that fails, the failures of method and flow, the error."""


@pytest.mark.parametrize("unbound", [False, True], ids=["bound in the child", "bound in the worker alone"])
async def test_of_a_flood_the_first_events_and_the_last_that_matter_are_kept(flow: Runner, unbound: bool) -> None:
    outcome = await flow("house.floods:Floods", {"times": TIMES, "unbound": unbound}, max_events=100)
    events = flow.recording.events
    assert [event.sequence for event in events[:100]] == list(range(1, 101))
    assert [str(event.kind) for event in events[100:]] == [
        "tool_failed",
        "method_failed",
        "flow_failed",
        "error",
    ]
    assert events[100].fields["error"] == "no such tool"
    assert "duration_ms" in events[101].fields, "its begin is remembered"
    assert outcome.metadata["events_dropped"] == TOLD - len(events)
    _is_told_apart_from_its_events(outcome)


async def test_within_the_bound_every_event_is_there_and_nothing_is_said_of_dropped_ones(flow: Runner) -> None:
    """The control: these flows do tell all that."""
    outcome = await flow("house.floods:Floods", {"times": TIMES}, max_events=TOLD)
    assert [event.sequence for event in flow.recording.events] == list(range(1, TOLD + 1))
    assert "events_dropped" not in outcome.metadata
    _is_told_apart_from_its_events(outcome)


async def test_a_flood_that_is_killed_says_about_how_much_was_dropped(flow: Runner) -> None:
    outcome = await flow("house.floods:Floods", {"times": 10_000_000}, max_events=100, timeout_seconds=3)
    assert outcome.status is Status.TIMEOUT
    assert len(flow.recording.events) < 400
    assert outcome.metadata["events_dropped"] >= 900


def _is_told_apart_from_its_events(outcome: Outcome) -> None:
    assert (outcome.status, outcome.error_message) == (Status.FAILED, "drowned")
    assert outcome.token_count == 5, "tokens count, kept as events or not"
