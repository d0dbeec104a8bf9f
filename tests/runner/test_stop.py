"""A run stops when it must: asked first, then made to; and nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from flowledger.domain.execution import Outcome
from flowledger.domain.status import Status
from flowledger.domain.timeline import LogLine
from flowledger.runner import namespace, process
from flowledger.runner.limits import Limits
from tests.runner.conftest import Runner

KINDS = ["plain", "setsid", "double fork", "ignores TERM", "plain fork", "stopped", "bomb", "holds the pipe"]


def processes_of(execution_id: object) -> list[int]:
    """Every living process that carries the run's mark."""
    mark, found = f"FLOWLEDGER_RUN={execution_id}".encode(), []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


async def all_gone(execution_id: object, within: float) -> bool:
    deadline = time.monotonic() + within
    while processes_of(execution_id):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


async def stopped_once_it_says(
    runner: Runner, word: str, limits: Limits, stop: Any, *run: Any, **changes: Any
) -> tuple[Outcome, float]:
    """The outcome of a run that is stopped when it prints `word`, and the seconds from then to the end."""
    at: list[float] = []

    def on_log(line: LogLine) -> None:
        if word in line.text and not at:
            at.append(time.monotonic())
            stop()

    runner.recording.on_log = on_log
    try:
        outcome = await runner(*run, limits=limits, **changes)
    finally:
        runner.recording.on_log = None
    assert at, (outcome, runner.recording)
    return outcome, time.monotonic() - at[0]


async def test_cancelled_flow_stops_at_its_next_step_by_itself(either: Runner) -> None:
    limits = Limits()
    outcome, seconds = await stopped_once_it_says(
        either, "step", limits, lambda: limits.cancel("no need"), "house.faults:Slow", {"seconds": 0.5}, grace_seconds=4
    )
    assert (outcome.status, outcome.error_type, outcome.error_message) == (Status.CANCELLED, "Cancelled", "no need")
    assert seconds < 1.8
    assert outcome.metadata["exit_status"] == "1"
    assert outcome.output_state["state"]["seconds"] == 0.5
    assert either.recording.text("stdout") == "step\n"


@pytest.mark.parametrize("how", ["sleep", "native", "stubborn"])
async def test_flow_that_does_not_listen_is_dead_after_grace(either: Runner, how: str) -> None:
    limits = Limits()
    outcome, seconds = await stopped_once_it_says(
        either,
        "step",
        limits,
        lambda: limits.cancel(None),
        "house.faults:Slow",
        {"seconds": 50, "how": how},
        grace_seconds=1,
    )
    assert outcome.status is Status.CANCELLED
    assert outcome.metadata["exit_status"] in ({"signal SIGKILL", None} if how == "stubborn" else {"signal SIGTERM"})
    assert seconds < 3


async def test_time_used_up_is_a_timeout_that_names_the_limit(either: Runner) -> None:
    outcome = await either("house.faults:Slow", {"seconds": 50}, timeout_seconds=0.7, grace_seconds=0.5)
    assert (outcome.status, outcome.error_type) == (Status.TIMEOUT, "Timeout")
    assert "0.7 s" in (outcome.error_message or "")


async def test_run_cancelled_before_its_start_never_starts(flow: Runner) -> None:
    limits = Limits()
    limits.cancel("changed my mind")
    outcome = await flow("house.faults:Slow", {"seconds": 50}, limits)
    assert (outcome.status, outcome.began_after_ms) == (Status.CANCELLED, None)
    assert flow.recording.events == []


async def test_lost_lease_kills_at_once(either: Runner) -> None:
    limits = Limits()
    outcome, seconds = await stopped_once_it_says(
        either, "step", limits, limits.lose, "house.faults:Slow", {"seconds": 50, "how": "stubborn"}, grace_seconds=30
    )
    assert outcome.error_type == "LeaseLost"
    assert seconds < 3


async def test_flow_whose_lease_ended_before_its_start_never_starts(either: Runner) -> None:
    limits = Limits()
    limits.held_while(lambda: False)
    outcome = await either("house.faults:Slow", {"seconds": 50}, limits)
    assert (outcome.error_type, outcome.began_after_ms) == ("LeaseLost", None)
    assert either.recording.events == []


async def test_run_without_ticks_ends_itself_after_a_lease(either: Runner) -> None:
    begun = time.monotonic()
    outcome = await either("house.faults:Slow", {"seconds": 50}, lease_seconds=1)
    assert outcome.error_type == "LeaseLost"
    assert 0.9 < time.monotonic() - begun < 3


async def test_ticks_keep_a_run_alive_beyond_its_lease(either: Runner) -> None:
    limits = Limits()

    async def tick() -> None:
        while True:
            limits.tick()
            await asyncio.sleep(0.2)

    ticking = asyncio.create_task(tick())
    outcome = await either("house.faults:Slow", {"seconds": 0.8}, limits, lease_seconds=1)
    ticking.cancel()
    assert outcome.status is Status.COMPLETED


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stay", [False, True], ids=["completed", "cancelled"])
async def test_no_descendant_outlives_its_run(either: Runner, kind: str, stay: bool) -> None:
    limits, execution_id = Limits(), uuid4()
    inputs = {"kind": kind, "mark": str(execution_id), "stay": stay}
    outcome, _ = await stopped_once_it_says(
        either,
        "left",
        limits,
        (lambda: limits.cancel(None)) if stay else (lambda: None),
        "house.descendants:Leaves",
        inputs,
        execution_id=execution_id,
        grace_seconds=0.4,
    )
    assert outcome.status is (Status.CANCELLED if stay else Status.COMPLETED)
    assert await all_gone(execution_id, within=2), processes_of(execution_id)


async def test_the_search_for_leftovers_finds_one_that_was_planted() -> None:
    execution_id = uuid4()
    process = await asyncio.create_subprocess_exec("sleep", "60", env={"FLOWLEDGER_RUN": str(execution_id)})
    assert not await all_gone(execution_id, within=0.1)
    assert processes_of(execution_id) == [process.pid]
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()


async def test_side_by_side_runs_do_not_mix(flow: Runner) -> None:
    runners = [Runner(flow.template) for _ in range(4)]
    outcomes = await asyncio.gather(
        *(runner("house.plain:Steps", {"given": number}) for number, runner in enumerate(runners))
    )
    assert [outcome.output_state["result"]["given"] for outcome in outcomes] == [0, 1, 2, 3]
    assert all([event.sequence for event in runner.recording.events] == list(range(1, 9)) for runner in runners)


async def test_sweep_leaves_alone_what_is_just_starting(either: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[int] = []
    done = threading.Event()

    def sweep() -> None:
        while not done.is_set():
            process.sweep_leftovers()

    def kill(pid: int, _: int) -> None:
        # Nothing is really killed: other runs of this machine are none of this test's business.
        swept.extend({pid}.intersection(namespace.descendants(either.template._base._process.pid)))

    monkeypatch.setattr(os, "kill", kill)
    sweeping = asyncio.create_task(asyncio.to_thread(sweep))
    try:
        statuses = [(await either("house.plain:Steps")).status for _ in range(8)]
    finally:
        done.set()
        await sweeping
    assert statuses == [Status.COMPLETED] * 8
    assert swept == []
