"""`flowledger run FLOW`: starts one execution from what the command line gives and exits by its outcome."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from flowledger import inputs
from flowledger.cli.opening import Ledger
from flowledger.cli.options import (
    DatabaseOption,
    DataOption,
    JsonOption,
    PairsOption,
    ProjectOption,
    PythonOption,
    seconds,
    settings,
)
from flowledger.cli.starting import Asked, start_and_leave
from flowledger.domain.execution import HIGHEST_PRIORITY, NewExecution
from flowledger.errors import InvalidInput
from flowledger.ledger.flows import KnownFlow

app = typer.Typer()


@app.command()
def run(
    flow: Annotated[str, typer.Argument(help="Key, class name or entry point of the flow.", show_default=False)],
    pairs: PairsOption = None,
    input_file: Annotated[
        str | None, typer.Option("--input", metavar="FILE|-", help="A JSON object of inputs from a file or stdin.")
    ] = None,
    json_input: Annotated[
        str | None, typer.Option("--json-input", metavar="JSON", help="A JSON object of inputs.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(help="Wall-clock limit, such as 90s, 5m, 1h.", show_default=False)
    ] = None,
    queue_timeout: Annotated[
        str | None, typer.Option(help="How long it may wait for a worker; then it ends as timeout.", show_default=False)
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(
            min=-HIGHEST_PRIORITY,
            max=HIGHEST_PRIORITY,
            help="Higher starts sooner; 0 if not given.",
            show_default=False,
        ),
    ] = None,
    meeting: Annotated[
        UUID | None, typer.Option(help="The board meeting this run belongs to.", show_default=False)
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Record the execution and leave it to a worker.")] = False,
    as_json: JsonOption = False,
    project: ProjectOption = None,
    python: PythonOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Run a flow and watch it; exits by its outcome: 0 completed, 3 failed, 6 cancelled, 7 timeout."""
    chosen = settings(project=project, python=python, database_url=database_url, data_dir=data, slots=1)
    given = _given(input_file, json_input)
    timeout_seconds, queue_seconds = seconds(timeout, "--timeout"), seconds(queue_timeout, "--queue-timeout")

    def new(known: KnownFlow) -> NewExecution:
        values = {**given, **inputs.parse(pairs or [], known.input_schema)}
        inputs.check(known.input_schema, values)
        return NewExecution(
            flow_key=known.flow_key,
            inputs=values,
            board_meeting_id=meeting,
            timeout_seconds=timeout_seconds,
            queue_seconds=queue_seconds,
            priority=priority,
        )

    async def ask(_: Ledger) -> Asked:
        return Asked(flow, new)

    start_and_leave(chosen, ask, detach=detach, as_json=as_json)


def _given(input_file: str | None, json_input: str | None) -> dict[str, Any]:
    if input_file is not None and json_input is not None:
        raise InvalidInput("--input", "cannot be given together with --json-input", "Use one of them.")
    if json_input is not None:
        return _object(json_input, "--json-input")
    if input_file is not None:
        return _object(_read(input_file), "--input")
    return {}


def _read(place: str) -> str:
    if place == "-":
        return sys.stdin.read()
    try:
        return Path(place).read_text()
    except (OSError, UnicodeDecodeError) as unreadable:
        raise InvalidInput("--input", f"{place} cannot be read: {unreadable}") from unreadable


def _object(text: str, field: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as wrong:
        raise InvalidInput(field, f"is no JSON: {wrong}") from wrong
    if not isinstance(value, dict):
        raise InvalidInput(
            field, f"must be a JSON object, not {type(value).__name__}", 'Name each input: {"topic": "..."}.'
        )
    return value
