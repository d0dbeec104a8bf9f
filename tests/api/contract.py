"""Schemathesis over a running server: what it asks, and what it expects, is made from the server's own document."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any

PHASES = "examples,coverage,fuzzing,stateful"

CONFIG = """
max-stream-events = 20

# The document says of all texts together that they hold none.
[generation]
allow-x00 = false

[phases.coverage]
unexpected-methods = ["PATCH", "TRACE"]
"""

SENSE = {
    "list_executions": "`after` is a page's own; `value` needs a `path`",
    "export_executions": "`value` needs a `path`",
    "create_execution": "inputs are judged by the flow's schema; `on_budget` needs a budget",
    "rerun_execution": "inputs again",
    "kickoff_crewai": "inputs again; an `Idempotency-Key` may have come with another request",
    "show_execution_timeline": "spans have no `after`",
    "create_token": "a name may be taken",
    "show_costs": "`until` comes after `since`",
    "list_errors": "`until` comes after `since`",
    "set_budget": "a scope needs whom it is for",
    "set_price": "names are printable",
    "remove_price": "names again",
}
"""Where what fits its schema may make no sense, and is refused with 422; and why no schema can say so."""


@dataclass(frozen=True)
class Walk:
    """What one run asked and found, by operation, as in `GET /api/v1/executions`. `reached`: how often one came as far
    as the ledger, which did it, or told that it was too late.
    """

    cases: int
    operations: int
    reached: Counter[str]
    failures: list[tuple[str, str]]
    output: str


def walk(
    url: str,
    token: str | None,
    place: Path,
    *,
    known: Mapping[str, Iterable[object]],
    examples: int,
    seed: int | None = None,
    phases: str = PHASES,
    paths: str = ".",
) -> Walk:
    """Asks every operation whose path matches. `known` are values of parameters, like `path.reference`, for which there
    is something to tell. `seed` None: other examples each time. `place` takes what it writes.
    """
    report, config = place / "report.json", place / "schemathesis.toml"
    config.write_text("\n".join([CONFIG, *starmap(_dictionary, known.items()), *map(_lenient, SENSE)]))
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "--no-color", "run"),
            *(f"{url}/api/v1/openapi.json", "--phases", phases, "--max-examples", str(examples)),
            *(
                "--include-path-regex",
                paths,
                "--continue-on-failure",
                "--warnings",
                "off",
                "--report-json-path",
                str(report),
            ),
            *([] if seed is None else ["--seed", str(seed), "--generation-deterministic"]),
            *([] if token is None else ["--header", f"Authorization: Bearer {token}"]),
        ],
        capture_output=True,
        text=True,
        cwd=place,
        check=False,
    )
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    return _read(json.loads(report.read_text()), ran.stdout)


def _dictionary(parameter: str, values: Iterable[object]) -> str:
    name = parameter.replace(".", "-")
    return (
        f"[dictionaries.{name}]\nvalues = {json.dumps([str(one) for one in values])}\n"
        f'[parameters."{parameter}"]\ndictionary = "{name}"\nprobability = 0.8\n'
    )


def _lenient(operation: str) -> str:
    expected = json.dumps(["2xx", "3xx", 401, 403, 404, 409, 422, 429])
    return (
        f'[[operations]]\ninclude-operation-id = "{operation}"\n'
        f"checks.positive_data_acceptance.expected-statuses = {expected}\n"
    )


def _read(report: dict[str, Any], output: str) -> Walk:
    reached = Counter[str]()
    for operation, phases in report["valid_rates"].items():
        reached[operation] = sum(phase["accepted"] + phase["conflicts"] for phase in phases.values())
    failures = [(operation, one["title"]) for one in report["failures"] for operation in one["operations"]]
    failures += [("", json.dumps(error)) for error in report["errors"]]
    return Walk(report["test_cases"]["generated"], report["operations"]["tested"], reached, failures, output)
