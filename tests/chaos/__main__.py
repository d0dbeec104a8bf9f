"""`python -m tests.chaos [--seconds S] [--seed N] [--seeds N]`: everything goes wrong; the ledger must stay true."""

from __future__ import annotations

import argparse
import os
import random
import sys

from rich.console import Console

from tests.chaos.chaos import Verdict, run

console = Console(markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="how long faults are dealt in each run")
    parser.add_argument("--seed", type=int, help="of the first run; without it a random one, which is printed")
    parser.add_argument("--seeds", type=int, default=1, help="how many runs, with seeds counting up")
    parser.add_argument("--rate", type=float, default=20, help="inserts per second")
    parser.add_argument("--lawless", action="store_true", help="the negative control: fence and guard off")
    parser.add_argument("--keep", action="store_true", help="leave data and logs in the directory for temporary files")
    parser.add_argument("--faults", action="store_true", help="list every fault")
    given = parser.parse_args()
    first = random.randrange(10_000) if given.seed is None else given.seed
    verdicts = []
    for seed in range(first, first + given.seeds):
        console.print(f"\nchaos for {given.seconds:g} s with --seed {seed} ...")
        verdict = run(seed, given.seconds, per_second=given.rate, lawless=given.lawless, keep=given.keep)
        show(verdict, faults=given.faults)
        verdicts.append(verdict)
    console.print(f"\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    sys.exit(0 if all(verdict.holds for verdict in verdicts) else 1)


def show(verdict: Verdict, *, faults: bool) -> None:
    for line in verdict.faults.told if faults else ():
        console.print(line)
    for name, figure in verdict.figures():
        console.print(f"{name:36} {figure}")
    for violation in verdict.violations[:40]:
        console.print(f"  {violation}")
    for mishap in verdict.mishaps[:20]:
        console.print(f"  {mishap[:2000]}")
    console.print("the promise holds" if verdict.holds else "THE PROMISE DOES NOT HOLD")


if __name__ == "__main__":
    main()
