"""From a committed INSERT to a flow's first line; what a running child weighs; what being recorded costs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

import psutil
import psycopg

from benchmarks.figures import Figure, median, p95, spread
from benchmarks.stage import PROJECT, SIDE_BY_SIDE, Bare, Stage, User, wait_for
from flowledger.runner import interpreter

_ROUNDS_ALONE = 25
_ROUNDS_TOGETHER = 20
_ROUNDS_RECORDED = 25
_FRESH_STARTS = 3
_MOST_MS, _MOST_MS_TOGETHER, _LEAST_TIMES_FASTER = 45, 120, 100
_MOST_PSS, _MOST_DIRTY, _MOST_RECORDING = 50, 28, 1.15

_FRESH = """
import sys, time
sys.path.insert(0, sys.argv[1])
from bench_flows.main import FirstLine
flow = FirstLine()
flow.kickoff()
print("first_line_ns", flow.state["first_line_ns"])
"""


# -- Latency ----------------------------------------------------------------------------------------------------------


def alone(stage: Stage) -> list[Figure]:
    """One at a time, in an idle worker."""
    user, bare = stage.user, stage.bare
    _insert_to_first_line(user, 3)
    committed: list[float] = []
    answered: list[float] = []
    forks: list[float] = []
    fresh: list[float] = []
    _fresh_python(stage)
    for turn in range(_ROUNDS_ALONE):
        time.sleep(0.15)
        execution, before, after = user.start("first_line")
        first = user.ended(execution)["state"]["first_line_ns"]
        committed.append((first - before) / 1e6)
        answered.append((first - after) / 1e6)
        forks.append(_bare_first_line(bare))
        if turn % 9 == 0 and len(fresh) < _FRESH_STARTS:
            fresh.append(_fresh_python(stage))
    ours, faster = median(committed), median(fresh) / median(committed)
    return [
        Figure(
            "INSERT, COMMIT sent -> first line",
            f"{ours:.1f} ms",
            spread(committed, "ms"),
            f"{median(forks):.1f} ms, a bare fork",
            f"{ours / median(forks):.2f}",
            f"<= {_MOST_MS} ms",
            ours <= _MOST_MS,
        ),
        Figure(
            "INSERT, COMMIT answered -> first line",
            f"{median(answered):.1f} ms",
            spread(answered, "ms"),
            f"{median(forks):.1f} ms, a bare fork",
            f"{median(answered) / median(forks):.2f}",
        ),
        Figure(
            "times faster than a fresh python",
            f"{faster:.0f}",
            "",
            f"{median(fresh):,.0f} ms, import crewai and run",
            f"{faster:.0f}",
            f">= {_LEAST_TIMES_FASTER}",
            faster >= _LEAST_TIMES_FASTER,
        ),
    ]


def _insert_to_first_line(user: User, times: int) -> None:
    for _ in range(times):
        user.ended(user.start("first_line")[0])


def _bare_first_line(bare: Bare) -> float:
    begun = bare.begin("FirstLine")
    return float(bare.said()["first_line_ns"] - begun) / 1e6


def _fresh_python(stage: Stage) -> float:
    """Milliseconds; the bytecode is compiled, since nothing runs here for the first time."""
    begun = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    ended = subprocess.run(
        [sys.executable, "-c", _FRESH, str(PROJECT / "src")],
        env=interpreter.environment(stage.environment, (), stage.directory / "fresh"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return (int(ended.stdout.rpartition("first_line_ns")[2]) - begun) / 1e6


def side_by_side(stage: Stage) -> list[Figure]:
    """As many as the worker has slots, committed at once."""
    user, bare = stage.user, stage.bare
    _insert_to_first_line(user, 3)
    ours: list[float] = []
    forks: list[float] = []
    for _ in range(_ROUNDS_TOGETHER):
        time.sleep(0.15)
        started = _start_at_once(stage)
        ours += [(user.ended(execution)["state"]["first_line_ns"] - before) / 1e6 for execution, before, _ in started]
        time.sleep(0.1)
        begun = [bare.begin("FirstLine") for _ in range(SIDE_BY_SIDE)]
        firsts = sorted(bare.said()["first_line_ns"] for _ in begun)
        forks += [(first - begin) / 1e6 for first, begin in zip(firsts, begun, strict=True)]
    return [
        Figure(
            f"same, {SIDE_BY_SIDE} at once on {os.cpu_count()} cores, p95",
            f"{median(ours):.1f} ms, p95 {p95(ours):.1f} ms",
            spread(ours, "ms"),
            f"{median(forks):.1f} ms, p95 {p95(forks):.1f} ms, bare forks",
            f"{p95(ours) / p95(forks):.2f}",
            f"p95 <= {_MOST_MS_TOGETHER} ms",
            p95(ours) <= _MOST_MS_TOGETHER,
        )
    ]


def _start_at_once(stage: Stage) -> list[tuple]:  # type: ignore[type-arg]
    """One connection each, all waiting for the same moment."""
    started = []
    moment = threading.Barrier(SIDE_BY_SIDE)

    def start(user: User) -> None:
        moment.wait()
        started.append(user.start("first_line"))

    users = [User(stage.served) for _ in range(SIDE_BY_SIDE)]
    for user in users:
        user.__enter__()
        user.id = stage.user.id
    threads = [threading.Thread(target=start, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for user in users:
        user.__exit__()
    return started


# -- Memory -----------------------------------------------------------------------------------------------------------


def memory(stage: Stage) -> list[Figure]:
    """With an LLM call over HTTP behind them, while all of them run."""
    weights = _weights_in_worker(stage)
    bare = stage.bare
    for _ in range(SIDE_BY_SIDE):
        bare.begin("Holding")
    base = psutil.Process(bare.process.pid)
    for _ in range(SIDE_BY_SIDE):
        bare.heard("holding")
    processes = wait_for(lambda: _holding(base, of_ours=False))
    forks = [_weight(process.pid) for process in processes]
    for _ in range(SIDE_BY_SIDE):
        bare.said()
    figures = []
    for at, (what, most) in enumerate((("PSS", _MOST_PSS), ("private dirty", _MOST_DIRTY))):
        child, init, fork = (median(pair[at] for pair in found) for found in (*weights, forks))
        figures.append(
            Figure(
                f"{what} per running child, {SIDE_BY_SIDE} side by side",
                f"{child:.1f} MB",
                f"its supervisor {init:.1f} MB",
                f"{fork:.1f} MB, bare fork",
                f"{child / fork:.2f}",
                f"<= {most} MB",
                child <= most,
            )
        )
    return figures


def _weights_in_worker(stage: Stage) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    user = stage.user
    started = [user.start("holding")[0] for _ in range(SIDE_BY_SIDE)]
    worker = psutil.Process(stage.worker.pid)
    wait_for(lambda: _said_in_all(stage, started))
    children = wait_for(lambda: _holding(worker, of_ours=True))
    inits = [child.parent() for child in children]
    weights = [_weight(child.pid) for child in children], [_weight(init.pid) for init in inits if init]
    for execution in started:
        user.ended(execution)
    return weights


def _said_in_all(stage: Stage, started: list[UUID]) -> bool:
    """Whether each of them is past its LLM call."""
    with psycopg.connect(stage.served.url("flowledger")) as looking:
        row = looking.execute(
            "select count(distinct execution_id) from flowledger.logs where execution_id = any (%s)", (started,)
        ).fetchone()
    return row == (len(started),)


def _holding(ancestor: psutil.Process, *, of_ours: bool) -> list[psutil.Process]:
    """The flows' processes, once there are as many as were started: the leaves of the tree."""
    try:
        family = ancestor.children(recursive=True)
        parents = {process.pid: process.parent() for process in family}
        names = {process.pid: process.name() for process in family}
    except psutil.NoSuchProcess:
        return []
    inner = {parent.pid for parent in parents.values() if parent}
    flows = [p for p in family if p.pid not in inner and _is_of_run(parents[p.pid], ancestor, names, of_ours=of_ours)]
    return flows if len(flows) == SIDE_BY_SIDE else []


def _is_of_run(
    parent: psutil.Process | None, ancestor: psutil.Process, names: dict[int, str], *, of_ours: bool
) -> bool:
    if parent is None or parent == ancestor:
        return False
    return not of_ours or names.get(parent.pid) == "fl-supervisor"


def _weight(pid: int) -> tuple[float, float]:
    """PSS and private dirty pages, in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    facts = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return facts["Pss"] / 1024, facts["Private_Dirty"] / 1024


# -- Recording --------------------------------------------------------------------------------------------------------


def recording(stage: Stage) -> list[Figure]:
    """kickoff() of three empty steps, in a worker's child with every event on the pipe, and in a bare fork."""
    user, bare = stage.user, stage.bare
    recorded, plain = [], []
    for turn in range(_ROUNDS_RECORDED + 3):
        time.sleep(0.1)
        ours = user.ended(user.start("three_steps")[0])["result"] / 1e6
        time.sleep(0.1)
        bare.begin("ThreeSteps")
        theirs = bare.said()["result"] / 1e6
        if turn >= 3:
            recorded.append(ours)
            plain.append(theirs)
    return [_compared_kickoffs(recorded, plain)]


def _compared_kickoffs(recorded: list[float], plain: Iterable[float]) -> Figure:
    ratio = median(recorded) / median(plain)
    return Figure(
        "kickoff() of 3 empty steps, recorded",
        f"{median(recorded):.1f} ms",
        spread(recorded, "ms", 1),
        f"{median(plain):.1f} ms, bare kickoff()",
        f"{ratio:.2f}",
        f"<= {_MOST_RECORDING}",
        ratio <= _MOST_RECORDING,
    )
