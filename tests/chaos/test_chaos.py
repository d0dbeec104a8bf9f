"""Chaos for as long as a test may take; `make chaos` goes on for longer. A failure names its seed."""

from __future__ import annotations

import random

import pytest

from tests.chaos.chaos import LEAST_TALKS, MOST_LOST_ALTHOUGH_ENDED, STUCK_AFTER_SECONDS, Verdict, run
from tests.chaos.faults import EVERY_KIND
from tests.chaos.history import Invariant

SECONDS = 25.0
PER_SECOND = 12.0
"""What two busy cores carry beside the faults: a worker that starts again takes seconds of both."""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    return run(random.randrange(10_000), SECONDS, per_second=PER_SECOND)


def told(verdict: Verdict) -> str:
    lines = [f"{name}: {figure}" for name, figure in verdict.figures()]
    return "\n".join([*lines, *verdict.faults.told, *map(str, verdict.violations), *verdict.mishaps])


def test_every_execution_ends_exactly_once_whatever_dies(verdict: Verdict) -> None:
    assert verdict.violations == [], told(verdict)


def test_nothing_is_stuck_10_s_after_the_last_fault(verdict: Verdict) -> None:
    assert STUCK_AFTER_SECONDS == 10
    assert not verdict.stuck, told(verdict)


def test_few_flows_end_unheard(verdict: Verdict) -> None:
    assert verdict.lost_share <= MOST_LOST_ALTHOUGH_ENDED, told(verdict)


def test_no_worker_dies_of_it(verdict: Verdict) -> None:
    assert verdict.mishaps == [], told(verdict)


def test_every_kind_of_fault_was_dealt_and_work_went_on(verdict: Verdict) -> None:
    """Else the claims above would say nothing."""
    assert set(verdict.faults.dealt) == set(EVERY_KIND), told(verdict)
    assert verdict.client.by_flow["talk"] >= LEAST_TALKS, told(verdict)
    completed = sum(row["status"] == "completed" for row in verdict.history.rows.values())
    assert completed > 0.8 * len(verdict.history.rows), told(verdict)


def test_without_fence_and_guard_the_checker_finds_what_they_prevent() -> None:
    verdict = run(random.randrange(10_000), SECONDS, per_second=PER_SECOND, lawless=True)
    broken = {violation.invariant for violation in verdict.violations}
    assert {Invariant.ONE_END, Invariant.FROZEN} <= broken, told(verdict)
