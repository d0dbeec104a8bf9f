"""Starts a new execution with an earlier one's inputs, linked to it both ways."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from flowledger import inputs
from flowledger.cli.actions.reading import find
from flowledger.cli.actions.starting import Asked, start_and_leave
from flowledger.cli.desk import Desk
from flowledger.cli.flags import settings
from flowledger.domain.execution import JsonObject, NewExecution
from flowledger.errors import InvalidInput
from flowledger.ledger.flows import KnownFlow


def rerun(*, reference: str, pairs: list[str], edit: bool, detach: bool, as_json: bool, **flags: Any) -> None:
    # Brings a worker along if none is at work.
    chosen = settings(**flags, slots=1)

    async def ask(desk: Desk) -> Asked:
        earlier = await find(desk, reference)
        given = inputs.of_earlier(earlier)

        def new(known: KnownFlow) -> NewExecution:
            values = {**given, **inputs.parse(pairs, known.input_schema)}
            if edit:
                values = edited(values)
            inputs.check(known.input_schema, values)
            return inputs.again(earlier, values)

        return Asked(earlier.flow_key, new)

    start_and_leave(chosen, ask, detach=detach, as_json=as_json)


def edited(values: JsonObject) -> Any:
    """The inputs after the user's editor. Raises InvalidInput when they are no JSON, or the editor failed."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "inputs.json"
        file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        try:
            subprocess.run([*shlex.split(editor), str(file)], check=True)
        except (OSError, ValueError, subprocess.CalledProcessError) as failed:
            raise InvalidInput("--edit", f"the editor {editor!r} failed: {failed}", "Set EDITOR.") from failed
        text = file.read_text()
    try:
        return json.loads(text)
    except ValueError as wrong:
        raise InvalidInput("--edit", f"the inputs are no JSON any more: {wrong}") from wrong
