"""How soon the command line answers, and whether it does without CrewAI."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.figures import Figure, median, spread
from benchmarks.stage import Stage

_ROUNDS = 12
_MOST_MS = 300
_COMMAND = Path(sys.executable).parent / "flowledger"
_COMPLETED = ("flowledger ex", "flowledger executions l", "flowledger run --", "flowledger executions list --status ")


def answers(_stage: Stage) -> list[Figure]:
    """`--help`, and completion of each kind: command, subcommand, option, value."""
    asked: dict[str, tuple[list[str], Mapping[str, str]]] = {
        "flowledger --help": (["--help"], {}),
        "flowledger run --help": (["run", "--help"], {}),
        **{
            f"completion of `{line}`, {shell}": ([], _completing(line, shell))
            for line in _COMPLETED
            for shell in ("bash", "zsh")
        },
    }
    times: dict[str, list[float]] = {name: [] for name in asked}
    empty: list[float] = []
    for turn in range(_ROUNDS + 1):
        for name, (arguments, variables) in asked.items():
            took = _took([str(_COMMAND), *arguments], variables)
            if turn:
                times[name].append(took)
        empty.append(_took([sys.executable, "-c", ""], {}))
    return [_figure(name, times[name], empty, imports_crewai=_imports_crewai(*asked[name])) for name in asked]


def _completing(line: str, shell: str) -> Mapping[str, str]:
    """What the script sets that `flowledger --install-completion` gives to the shell."""
    return {
        "_FLOWLEDGER_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
        "_TYPER_COMPLETE_ARGS": line,
    }


def _figure(name: str, times: list[float], empty: list[float], *, imports_crewai: bool) -> Figure:
    return Figure(
        f"{name}, {'IMPORTS' if imports_crewai else 'without'} crewai",
        f"{median(times):.0f} ms",
        spread(times, "ms"),
        f"{median(empty):.0f} ms, python -c ''",
        f"{median(times) / median(empty):.1f}",
        f"< {_MOST_MS} ms, no crewai",
        median(times) < _MOST_MS and not imports_crewai,
    )


def _took(command: list[str], variables: Mapping[str, str]) -> float:
    begun = time.monotonic()
    subprocess.run(command, env={**os.environ, **variables}, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    return (time.monotonic() - begun) * 1000


def _imports_crewai(arguments: list[str], variables: Mapping[str, str]) -> bool:
    said = subprocess.run(
        [sys.executable, "-X", "importtime", str(_COMMAND), *arguments],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    return any(line.rpartition("|")[2].strip().partition(".")[0] == "crewai" for line in said.splitlines())
