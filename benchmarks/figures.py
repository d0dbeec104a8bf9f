"""What a benchmark hands back, and the statistics and the table made of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One row. `rival` is what `measured` is compared with, taken in the same run, in turns with it.

    `target` holds the promise in words, `reached` whether it was kept; None when nothing was promised.
    """

    name: str
    measured: str
    spread: str = ""
    rival: str = ""
    ratio: str = ""
    target: str = ""
    reached: bool | None = None


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def p95(values: Iterable[float]) -> float:
    return percentile(values, 95)


def percentile(values: Iterable[float], percent: int) -> float:
    """By the nearest rank: a value that was measured."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, -(-len(ordered) * percent // 100) - 1)]


def spread(values: Sequence[float], unit: str, digits: int = 0) -> str:
    """Number, lowest and 95th percentile of what the median was taken from."""
    return f"{len(values)}: {min(values):,.{digits}f} to {p95(values):,.{digits}f} {unit}"


def show(figures: Iterable[Figure]) -> None:
    """Prints the table."""
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("figure", "median", "n: least to p95", "compared with", "ratio", "target", "reached"):
        table.add_column(heading, overflow="fold")
    for figure in figures:
        table.add_row(
            figure.name,
            figure.measured,
            figure.spread,
            figure.rival,
            figure.ratio,
            figure.target,
            {True: "yes", False: "NO", None: ""}[figure.reached],
        )
    Console(width=max(150, Console().width)).print(table)
