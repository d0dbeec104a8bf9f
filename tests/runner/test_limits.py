"""A run that takes more than it may is killed, says so, and harms nobody beside it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from flowledger.domain.status import Status
from flowledger.runner.bounds import Bounds, Excess, Meter
from flowledger.runner.limits import Limits
from tests.runner.conftest import Runner
from tests.runner.test_stop import all_gone, processes_of, stopped_once_it_says

MIB = 1 << 20


@pytest.mark.parametrize("where", ["self", "child"])
async def test_run_that_takes_too_much_memory_is_killed_and_its_peak_kept(either: Runner, where: str) -> None:
    execution_id = uuid4()
    outcome = await either(
        "house.hungry:Memory",
        {"mb": 2000, "where": where, "seconds": 20},
        memory_bytes=600 * MIB,
        execution_id=execution_id,
    )
    assert (outcome.status, outcome.error_type) == (Status.FAILED, "MemoryLimit")
    peak = outcome.metadata["peak_memory_bytes"]
    assert 600 * MIB < peak < 1800 * MIB
    assert outcome.error_message == f"the run took {peak / MIB:,.0f} MiB of memory; its limit is 600 MiB"
    assert outcome.metadata["memory_limit_bytes"] == 600 * MIB
    assert await all_gone(execution_id, within=2)


async def test_run_that_stays_within_its_memory_completes(either: Runner) -> None:
    outcome = await either("house.hungry:Memory", {"mb": 300, "pause": 0.01}, memory_bytes=900 * MIB)
    assert outcome.status is Status.COMPLETED, outcome


async def test_pages_shared_with_the_template_do_not_count_in_full(flow: Runner) -> None:
    """Resident memory of any run is above this limit, its share of it is not."""
    outcome = await flow("house.hungry:Memory", {"mb": 0}, memory_bytes=180 * MIB)
    assert outcome.status is Status.COMPLETED, outcome


@pytest.mark.parametrize("how", ["doubling", "many"])
async def test_run_with_too_many_processes_is_killed_with_all_of_them(either: Runner, how: str) -> None:
    execution_id = uuid4()
    outcome = await either("house.hungry:Forks", {"how": how, "count": 200}, processes=40, execution_id=execution_id)
    assert (outcome.status, outcome.error_type) == (Status.FAILED, "ProcessLimit")
    had = outcome.metadata["peak_processes"]
    assert had > 40
    assert outcome.error_message == f"the run had {had:,} processes; its limit is 40"
    assert await all_gone(execution_id, within=2), len(processes_of(execution_id))


async def test_run_within_its_number_of_processes_completes(either: Runner) -> None:
    assert (await either("house.hungry:Forks", {"count": 8}, processes=40)).status is Status.COMPLETED


async def test_fork_bomb_does_not_starve_the_worker(either: Runner) -> None:
    """The worker's own loop goes on, and so does a run beside the bomb."""
    bomb = asyncio.create_task(Runner(either.template)("house.hungry:Forks", {"how": "doubling"}, processes=60))
    longest, done = 0.0, False
    beside = asyncio.create_task(Runner(either.template)("house.plain:Steps"))
    while not done:
        asked = time.monotonic()
        await asyncio.sleep(0.01)
        longest = max(longest, time.monotonic() - asked)
        done = bomb.done() and beside.done()
    assert bomb.result().error_type == "ProcessLimit"
    assert beside.result().status is Status.COMPLETED
    assert longest < 1.5, f"the loop stood still for {longest:.2f} s"


async def test_open_files_have_a_limit_that_the_flow_runs_into(either: Runner) -> None:
    outcome = await either("house.hungry:Files", {"count": 500}, open_files=100)
    assert (outcome.status, outcome.error_type) == (Status.FAILED, "OSError")
    assert "Too many open files" in (outcome.error_message or "")
    assert (await either("house.hungry:Files", {"count": 20}, open_files=100)).status is Status.COMPLETED


def _oom_score(pid: object = "self") -> str:
    return Path(f"/proc/{pid}/oom_score_adj").read_text().strip()


async def test_run_goes_before_the_worker_when_the_machine_has_no_memory_left(either: Runner) -> None:
    execution_id, limits, found = uuid4(), Limits(), []

    def look() -> None:
        found.extend(map(_oom_score, processes_of(execution_id)))
        limits.cancel(None)

    await stopped_once_it_says(
        either, "step", limits, look, "house.faults:Slow", {"seconds": 50}, execution_id=execution_id
    )
    assert "500" in found
    assert _oom_score() != "500"


# -- What is left of a run that is killed -----------------------------------------------------------------------------


async def _halfway(runner: Runner, how: str) -> object:
    limits, execution_id = Limits(), uuid4()

    def kill() -> None:
        for pid in processes_of(execution_id):
            os.kill(pid, signal.SIGKILL)

    stop = {"cancelled": lambda: limits.cancel(None), "timeout": lambda: None, "killed": kill, "lost": limits.lose}
    outcome, _ = await stopped_once_it_says(
        runner,
        "halfway",
        limits,
        stop[how],
        "house.hungry:Halfway",
        execution_id=execution_id,
        grace_seconds=0.2,
        timeout_seconds=1.5 if how == "timeout" else 30,
    )
    return outcome


@pytest.mark.parametrize("how", ["cancelled", "timeout", "killed", "lost"])
async def test_killed_run_keeps_its_state_tokens_and_log_so_far(flow: Runner, how: str) -> None:
    outcome = await _halfway(flow, how)
    state = outcome.output_state["state"]
    assert state["found"] == ["a", None]
    assert "unfinished" not in state
    assert outcome.metadata["output_changes"] == {"not a number": 1}
    assert outcome.token_count == 15
    assert flow.recording.text("stdout") == "first is done\nhalfway\n"


async def test_run_killed_in_its_first_step_shows_the_state_it_began_with(flow: Runner) -> None:
    limits = Limits()
    outcome, _ = await stopped_once_it_says(
        flow, "step", limits, limits.lose, "house.faults:Slow", {"seconds": 50, "how": "native"}
    )
    assert outcome.output_state["state"]["seconds"] == 50


async def test_large_state_of_a_killed_run_is_kept_as_a_preview(flow: Runner) -> None:
    limits = Limits()
    outcome, _ = await stopped_once_it_says(
        flow, "halfway", limits, limits.lose, "house.hungry:Halfway", {"characters": 300_000}
    )
    assert outcome.output_state["truncated"] is True
    assert outcome.output_state["bytes"] > 300_000
    assert outcome.metadata["output_left_out"]["sha256"] == outcome.output_state["sha256"]


async def test_completed_run_reports_its_last_state_and_not_the_one_before(flow: Runner) -> None:
    outcome = await flow("house.hungry:Halfway", {"seconds": 0})
    assert outcome.status is Status.COMPLETED
    assert outcome.output_state["state"]["unfinished"] is True


# -- The meter --------------------------------------------------------------------------------------------------------


@contextmanager
def _process(size: int) -> Iterator[int]:
    """A process with so many bytes of its own."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        hog = bytearray(size)
        hog[::4096] = b"x" * len(hog[::4096])
        os.write(writing, b".")
        time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    os.close(reading)
    os.close(writing)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _looked(meter: Meter, times: int) -> Excess | None:
    for _ in range(times):
        time.sleep(meter.seconds_to_next_look)
        if excess := meter.look():
            return excess
    return None


def test_meter_adds_up_processes_and_finds_the_excess() -> None:
    with _process(100 * MIB) as one, _process(100 * MIB) as other:
        excess = _looked(Meter(Bounds(memory_bytes=150 * MIB), lambda: [one, other]), 1)
        assert excess is not None
        assert excess.memory_bytes is not None
        assert excess.memory_bytes > 200 * MIB
        assert _looked(Meter(Bounds(memory_bytes=2000 * MIB), lambda: [one, other]), 3) is None


def test_meter_does_not_count_zombies() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert _looked(Meter(Bounds(processes=1), lambda: [pid, os.getpid()]), 2) is None
        assert _looked(Meter(Bounds(processes=1), lambda: [os.getpid(), os.getppid()]), 2) == Excess(processes=2)
    finally:
        os.waitpid(pid, 0)


def test_meter_without_bounds_never_looks() -> None:
    meter = Meter(Bounds(open_files=10), lambda: pytest.fail("looked"))
    assert meter.seconds_to_next_look == float("inf")
    assert meter.look() is None
