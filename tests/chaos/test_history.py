"""The history checker finds every kind of wrong that it claims to see, and lets lawful histories pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from tests.chaos.history import (
    Acknowledgement,
    Answer,
    Bounds,
    Effect,
    History,
    Invariant,
    Look,
    Outage,
    Sighting,
    Transition,
    check,
    lost_although_ended,
)

FLOW = UUID(int=0xF10)
ALICE = UUID(int=0xA11CE)
WORKER, OTHER_WORKER = UUID(int=0x1), UUID(int=0x2)
BOUNDS = Bounds(
    lease=timedelta(seconds=2), grace=timedelta(seconds=1), poll=timedelta(seconds=1), slack=timedelta(seconds=1)
)

DONE, LOST, UNSTARTED, STOPPED, OVERDUE = (UUID(int=number) for number in range(100, 105))
"""One of each kind: completed; WorkerLost though its flow ended; cancelled before and while it ran; timeout."""


def at(seconds: float) -> datetime:
    return datetime(2026, 1, 1, 12, tzinfo=UTC) + timedelta(seconds=seconds)


def row(execution: UUID, status: str, **columns: Any) -> dict[str, Any]:
    return {
        "id": execution,
        "flow_id": FLOW,
        "execution_key": f"FLOW-{execution.int}",
        "input_state": {"n": execution.int},
        "output_state": None,
        "status": status,
        "error_message": None,
        "error_stack": None,
        "error_type": None,
        "started_at": at(1),
        "completed_at": at(3),
        "duration_ms": 2000,
        "token_count": None,
        "cost_usd": None,
        "board_meeting_id": None,
        "executed_by": ALICE,
        "execution_mode": "manual",
        "metadata": {"exit_status": "0"},
        **columns,
    }


def acknowledged(execution: UUID, *, cancelled: bool = False) -> Acknowledgement:
    whole = row(execution, "pending")
    identity = {
        column: whole[column]
        for column in ("id", "flow_id", "execution_key", "executed_by", "execution_mode", "input_state")
    }
    return Acknowledgement(execution, identity, cancelled)


def steps(execution: UUID, end: str, by: str, fence: int | None) -> list[Transition]:
    """An ordinary life: born at 0, claimed at 1 unless it has no fence, ended at 3."""
    first = execution.int * 10
    born = Transition(first, execution, None, "pending", str(ALICE), at(0))
    if fence is None:
        return [born, Transition(first + 1, execution, "pending", end, by, at(3))]
    return [
        born,
        Transition(first + 1, execution, "pending", "running", "worker", at(1), fence, WORKER),
        Transition(first + 2, execution, "running", end, by, at(3), fence, WORKER),
    ]


def effects(execution: UUID, **when: float) -> list[Effect]:
    return [Effect(execution, what, at(seconds)) for what, seconds in when.items()]


def lawful() -> History:
    return History(
        bounds=BOUNDS,
        acknowledgements=(
            *(acknowledged(execution) for execution in (DONE, LOST, STOPPED, OVERDUE)),
            acknowledged(UNSTARTED, cancelled=True),
        ),
        transitions=(
            *steps(DONE, "completed", "worker", 7),
            *steps(LOST, "failed", "reaper", 8),
            *steps(UNSTARTED, "cancelled", str(ALICE), None),
            *steps(STOPPED, "cancelled", "worker", 9),
            *steps(OVERDUE, "timeout", "reaper", 10),
        ),
        rows={
            DONE: row(DONE, "completed", token_count=12, cost_usd=Decimal("0.0001")),
            LOST: row(LOST, "failed", error_type="WorkerLost"),
            UNSTARTED: row(UNSTARTED, "cancelled", duration_ms=None, error_type="Cancelled"),
            STOPPED: row(STOPPED, "cancelled", error_type="Cancelled"),
            OVERDUE: row(OVERDUE, "timeout", error_type="Timeout"),
        },
        digests={execution: f"digest of {execution}" for execution in (DONE, LOST, UNSTARTED, STOPPED, OVERDUE)},
        execution_counts={FLOW: 5},
        looks=(
            Look(DONE, at(2), "running", "before the end", lease_until=at(3)),
            Look(DONE, at(4), "completed", f"digest of {DONE}"),
            Look(LOST, at(2.9), "running", "before the end", lease_until=at(1.5)),
        ),
        effects=(
            *effects(DONE, started=1.1, step=1.2, ended=2.9),
            *effects(LOST, started=1.1, ended=1.4),
            *effects(STOPPED, started=1.1, step=2.9),
            *effects(OVERDUE, started=1.1, step=2.9),
        ),
        sightings=(Sighting(DONE, at(2.9)),),
        answers=(
            Answer(DONE, 7, "completed", "ok"),
            Answer(LOST, 8, "completed", "lost"),
            Answer(STOPPED, 9, "cancelled", "ok"),
        ),
    )


def found(history: History) -> set[tuple[Invariant, UUID | None]]:
    return {(violation.invariant, violation.execution) for violation in check(history)}


# -- Lawful histories -------------------------------------------------------------------------------------------------


def test_a_lawful_history_passes() -> None:
    assert check(lawful()) == []


def test_nothing_happened_is_lawful() -> None:
    assert check(History(bounds=BOUNDS)) == []


def test_a_lost_worker_whose_flow_ended_is_lawful_and_counted() -> None:
    assert lost_although_ended(lawful()) == [LOST]


def test_an_insert_without_an_acknowledgement_may_be_there() -> None:
    history = lawful()
    assert check(replace(history, acknowledgements=history.acknowledgements[1:])) == []


def test_a_finish_that_was_answered_twice_but_stored_once_is_lawful() -> None:
    history = lawful()
    assert check(replace(history, answers=(*history.answers, Answer(DONE, 7, "completed", "dup")))) == []


def test_a_dead_lease_is_lawful_while_nobody_could_reap() -> None:
    history = lawful()
    late = Look(LOST, at(2.9), "running", "", lease_until=at(-20))
    assert check(replace(history, looks=(late,))) != []
    assert check(replace(history, looks=(late,), outages=(Outage(at(-19), at(2)),))) == []


def test_an_output_that_could_not_be_stored_ends_as_failed() -> None:
    history = with_row(lawful(), DONE, status="failed", error_type="OutputNotStorable")
    ended = replace(step_of(history, DONE, 2), to_status="failed")
    history = with_step(history, ended)
    assert check(replace(history, looks=())) == []


def test_claims_side_by_side_may_be_written_in_either_order() -> None:
    history = lawful()
    swapped = {DONE: 8, LOST: 7}
    transitions = tuple(
        replace(step, fence=swapped.get(step.execution, step.fence)) if step.fence else step
        for step in history.transitions
    )
    answers = tuple(replace(answer, fence=swapped.get(answer.execution, answer.fence)) for answer in history.answers)
    assert check(replace(history, transitions=transitions, answers=answers)) == []


# -- Planted histories ------------------------------------------------------------------------------------------------


def step_of(history: History, execution: UUID, place: int) -> Transition:
    return history.chains[execution][place]


def with_step(history: History, step: Transition) -> History:
    """In place of the one with its number, or added."""
    others = tuple(one for one in history.transitions if one.seq != step.seq)
    return replace(history, transitions=(*others, step))


def without_step(history: History, execution: UUID, place: int) -> History:
    gone = step_of(history, execution, place)
    return replace(history, transitions=tuple(step for step in history.transitions if step is not gone))


def with_row(history: History, execution: UUID, **columns: Any) -> History:
    return replace(history, rows={**history.rows, execution: {**history.rows[execution], **columns}})


def with_effects(history: History, *more: Effect) -> History:
    return replace(history, effects=(*history.effects, *more))


def lost_acknowledgement(history: History) -> History:
    return replace(
        history,
        acknowledgements=(*history.acknowledgements, acknowledged(UUID(int=999))),
    )


def cancelled_then_run(history: History) -> History:
    return replace(history, acknowledgements=(acknowledged(DONE, cancelled=True),))


def born_running(history: History) -> History:
    return with_step(history, replace(step_of(history, DONE, 0), to_status="running"))


def born_unseen(history: History) -> History:
    return replace(history, transitions=tuple(step for step in history.transitions if step.execution != UNSTARTED))


def gap_in_chain(history: History) -> History:
    return without_step(history, LOST, 1)


def forbidden_edge(history: History) -> History:
    return with_step(history, Transition(DONE.int * 10 + 3, DONE, "completed", "pending", "worker", at(4)))


def chain_ends_elsewhere(history: History) -> History:
    return with_row(history, OVERDUE, status="failed")


def claimed_twice(history: History) -> History:
    again = Transition(DONE.int * 10 + 3, DONE, "pending", "running", "worker", at(1.5), 11, OTHER_WORKER)
    return with_step(history, again)


def started_twice(history: History) -> History:
    return with_effects(history, *effects(DONE, started=1.5))


def effects_without_a_claim(history: History) -> History:
    return with_effects(history, *effects(UNSTARTED, started=1.5))


def ended_twice(history: History) -> History:
    again = Transition(LOST.int * 10 + 3, LOST, "running", "failed", "worker", at(3.5), 8, WORKER)
    return with_step(history, again)


def runs_for_ever(history: History) -> History:
    return replace(without_step(with_row(history, OVERDUE, status="running"), OVERDUE, 2), leases={OVERDUE: 10})


def terminal_row_changed(history: History) -> History:
    return replace(history, digests={**history.digests, DONE: "another digest"})


def runs_under_a_dead_lease(history: History) -> History:
    return replace(history, looks=(*history.looks, Look(LOST, at(2.9), "running", "", lease_until=at(-0.2))))


def runs_without_a_lease(history: History) -> History:
    looks = tuple(Look(LOST, at(seconds), "running", "") for seconds in (-3.0, 0.0, 2.9))
    return replace(history, looks=looks)


def lease_without_a_run(history: History) -> History:
    return replace(history, leases={DONE: 7})


def finish_ok_twice(history: History) -> History:
    return replace(history, answers=(*history.answers, Answer(DONE, 7, "completed", "ok")))


def dup_of_another_outcome(history: History) -> History:
    return replace(history, answers=(*history.answers, Answer(LOST, 8, "completed", "dup")))


def stale_fence_finishes(history: History) -> History:
    return with_step(history, replace(step_of(history, DONE, 2), fence=6))


def fence_used_twice(history: History) -> History:
    claim, end = step_of(history, LOST, 1), step_of(history, LOST, 2)
    history = with_step(with_step(history, replace(claim, fence=7)), replace(end, fence=7))
    return replace(history, answers=())


def fence_goes_back(history: History) -> History:
    """All others claimed two seconds before with larger ones."""
    claim, end = step_of(history, DONE, 1), step_of(history, DONE, 2)
    history = with_step(with_step(history, replace(claim, fence=3, at=at(2.8))), replace(end, fence=3))
    return replace(history, answers=(), effects=effects_without(history, DONE), looks=())


def effects_without(history: History, execution: UUID) -> tuple[Effect, ...]:
    others = [effect for effect in history.effects if effect.execution != execution]
    return (*others, *effects(execution, started=2.85, ended=2.9))


def completed_without_an_end(history: History) -> History:
    return replace(
        history,
        effects=tuple(effect for effect in history.effects if (effect.execution, effect.what) != (DONE, "ended")),
    )


def completed_before_its_end(history: History) -> History:
    return with_effects(history, *effects(DONE, step=3.5))


def completed_and_unkillable(history: History) -> History:
    return with_row(history, DONE, metadata={"unkillable": True})


def process_outlives_its_end(history: History) -> History:
    return replace(history, sightings=(Sighting(LOST, at(5.5)),))


def effect_long_after_worker_lost(history: History) -> History:
    return with_effects(history, *effects(LOST, step=5.5))


def effect_after_cancelled(history: History) -> History:
    return with_effects(history, *effects(STOPPED, step=4.5))


def effect_after_timeout(history: History) -> History:
    return with_effects(history, *effects(OVERDUE, step=4.5))


def negative_duration(history: History) -> History:
    return with_row(history, DONE, duration_ms=-1)


def completed_before_it_started(history: History) -> History:
    return with_row(history, DONE, completed_at=at(0))


def cost_is_nan(history: History) -> History:
    return with_row(history, DONE, cost_usd=Decimal("NaN"))


def duration_of_what_never_ran(history: History) -> History:
    return with_row(history, UNSTARTED, duration_ms=0)


def inputs_changed(history: History) -> History:
    return with_row(history, DONE, input_state={"n": "another"})


def owner_changed(history: History) -> History:
    history = replace(history, transitions=tuple(step for step in history.transitions if step.execution != DONE))
    history = replace(history, effects=tuple(effect for effect in history.effects if effect.execution != DONE))
    history = with_row(history, DONE, executed_by=UUID(int=0xB0B))
    return replace(history, answers=())


def miscounted(history: History) -> History:
    return replace(history, execution_counts={FLOW: 6})


def completed_by_the_reaper(history: History) -> History:
    return with_step(history, replace(step_of(history, DONE, 2), actor="reaper"))


def cancelled_by_a_stranger(history: History) -> History:
    return with_step(history, replace(step_of(history, UNSTARTED, 1), actor=str(UUID(int=0xB0B))))


def time_goes_back(history: History) -> History:
    return with_step(history, replace(step_of(history, DONE, 0), at=at(2)))


PLANTED: tuple[tuple[Callable[[History], History], Invariant, UUID | None], ...] = (
    (lost_acknowledgement, Invariant.KEPT, UUID(int=999)),
    (cancelled_then_run, Invariant.KEPT, DONE),
    (born_running, Invariant.BIRTH, DONE),
    (born_unseen, Invariant.BIRTH, UNSTARTED),
    (gap_in_chain, Invariant.CHAIN, LOST),
    (forbidden_edge, Invariant.CHAIN, DONE),
    (chain_ends_elsewhere, Invariant.CHAIN, OVERDUE),
    (claimed_twice, Invariant.ONE_RUN, DONE),
    (started_twice, Invariant.ONE_RUN, DONE),
    (effects_without_a_claim, Invariant.ONE_RUN, UNSTARTED),
    (ended_twice, Invariant.ONE_END, LOST),
    (runs_for_ever, Invariant.ONE_END, OVERDUE),
    (terminal_row_changed, Invariant.FROZEN, DONE),
    (runs_under_a_dead_lease, Invariant.HELD, LOST),
    (runs_without_a_lease, Invariant.HELD, LOST),
    (lease_without_a_run, Invariant.LEASE_RUNS, DONE),
    (finish_ok_twice, Invariant.FINISH_ONCE, DONE),
    (dup_of_another_outcome, Invariant.FINISH_ONCE, LOST),
    (stale_fence_finishes, Invariant.FENCE, DONE),
    (fence_used_twice, Invariant.FENCE, LOST),
    (fence_goes_back, Invariant.FENCE, DONE),
    (completed_without_an_end, Invariant.END_SEEN, DONE),
    (completed_before_its_end, Invariant.END_SEEN, DONE),
    (completed_and_unkillable, Invariant.END_SEEN, DONE),
    (process_outlives_its_end, Invariant.GONE, LOST),
    (effect_long_after_worker_lost, Invariant.GONE, LOST),
    (effect_after_cancelled, Invariant.QUIET, STOPPED),
    (effect_after_timeout, Invariant.QUIET, OVERDUE),
    (negative_duration, Invariant.NUMBERS, DONE),
    (completed_before_it_started, Invariant.NUMBERS, DONE),
    (cost_is_nan, Invariant.NUMBERS, DONE),
    (duration_of_what_never_ran, Invariant.NUMBERS, UNSTARTED),
    (inputs_changed, Invariant.IDENTITY, DONE),
    (owner_changed, Invariant.IDENTITY, DONE),
    (miscounted, Invariant.COUNTED, None),
    (completed_by_the_reaper, Invariant.ACTOR, DONE),
    (cancelled_by_a_stranger, Invariant.ACTOR, UNSTARTED),
    (time_goes_back, Invariant.CLOCK, DONE),
)


@pytest.mark.parametrize(("plant", "invariant", "execution"), PLANTED, ids=[plant.__name__ for plant, _, _ in PLANTED])
def test_a_planted_history_is_found(
    plant: Callable[[History], History], invariant: Invariant, execution: UUID | None
) -> None:
    assert (invariant, execution) in found(plant(lawful()))


@pytest.mark.parametrize("plant", [plant for plant, _, _ in PLANTED], ids=lambda plant: plant.__name__)
def test_a_planted_history_accuses_nobody_else(plant: Callable[[History], History]) -> None:
    accused = {execution for planted, _, execution in PLANTED if planted is plant}
    assert {execution for _, execution in found(plant(lawful()))} <= accused


def test_every_invariant_has_a_planted_history() -> None:
    assert {invariant for _, invariant, _ in PLANTED} == set(Invariant)
