"""The table of figures: every promise has a row that can be asked for. Nothing is timed here."""

from __future__ import annotations

import subprocess
import sys

import pytest
from benchmarks.__main__ import BENCHMARKS
from benchmarks.figures import Figure, median, p95, percentile, show

PROMISED = {
    "start",
    "side-by-side",
    "memory",
    "steps",
    "recording",
    "events",
    "lifecycles",
    "commands",
    "claim",
    "hot-flow",
    "costs",
    "api",
    "live",
    "embedded",
    "cancel",
    "idle",
    "lost-worker",
    "deaf-worker",
}


def test_every_promised_figure_can_be_measured_by_its_name() -> None:
    assert set(BENCHMARKS) == PROMISED


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nonsense"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "nonsense" in ended.stderr
    assert all(name in ended.stderr for name in BENCHMARKS)


def test_the_95th_percentile_is_a_measured_value_and_no_outlier_hides_from_it() -> None:
    assert p95(range(1, 101)) == 95
    assert percentile(range(1, 101), 99) == 99
    assert p95([3.0]) == 3.0
    assert p95([1.0] * 18 + [9.0, 9.0]) == 9.0
    assert median([1.0, 2.0, 9.0]) == 2.0


def test_a_missed_figure_shows(capsys: pytest.CaptureFixture[str]) -> None:
    show([Figure("kept", "1 ms", reached=True), Figure("missed", "9 ms", reached=False), Figure("told", "5 ms")])
    rows = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines() if "ms" in line}
    assert (rows["kept"], rows["missed"]) == ("yes", "NO")
