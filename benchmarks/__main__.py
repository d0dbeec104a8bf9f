"""`python -m benchmarks [NAME...]`: measures, and prints one table. A busy machine is slow: see the load it prints."""

from __future__ import annotations

import argparse
import os
import platform
import time
import traceback

from benchmarks import api, cancel, commands, costs, embedded, idle, live, recording, start, survival, throughput
from benchmarks.figures import Figure, show
from benchmarks.stage import Stage

BENCHMARKS = {
    "start": start.alone,
    "side-by-side": start.side_by_side,
    "memory": start.memory,
    "steps": start.recording,
    "recording": recording.recording,
    "events": recording.events,
    "lifecycles": throughput.lifecycles,
    "commands": commands.answers,
    "claim": throughput.claim_behind_history,
    "hot-flow": throughput.hot_flow,
    "costs": costs.told,
    "embedded": embedded.starts,
    "cancel": cancel.wishes,
    "idle": idle.worker,
    "lost-worker": survival.lost_worker,
    "deaf-worker": survival.deaf_worker,
    "api": api.answers,
    "live": live.live,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}; none: all")
    parser.add_argument(
        "--ahead", action="store_true", help="run before all other work of this machine (SCHED_RR, needs root)"
    )
    arguments = parser.parse_args()
    names = arguments.names or list(BENCHMARKS)
    if unknown := sorted(set(names) - set(BENCHMARKS)):
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if arguments.ahead:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    began, load = time.monotonic(), os.getloadavg()[0]
    figures: list[Figure] = []
    with Stage() as stage:
        for name in names:
            print(f"measuring {name} ...", flush=True)
            figures += _measured(name, stage)
    show(figures)
    print(
        f"\n{os.cpu_count()} cores, Python {platform.python_version()}, load {load:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after, {time.monotonic() - began:.0f} s. Measured and compared values were taken in "
        "turns; what other processes of this machine did meanwhile is in both"
        + (", and had to wait." if arguments.ahead else ".")
    )


def _measured(name: str, stage: Stage) -> list[Figure]:
    """One benchmark that cannot be taken does not cost the others."""
    try:
        return BENCHMARKS[name](stage)
    except Exception as error:
        traceback.print_exc()
        return [Figure(name, f"not measured: {type(error).__name__}", reached=False)]


if __name__ == "__main__":
    main()
