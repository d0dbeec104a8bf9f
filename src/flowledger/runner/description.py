"""The worker's side of a description: the order for `describe.py`, and what it reports.

Bytes in, bytes out: who carries them is left to `templates.py`, for a fork of the base, and to `registry.py`, for an
interpreter of its own. What the lines mean is left to `registry.py`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from flowledger.domain.project import Project
from flowledger.runner import interpreter, redact

JsonObject = dict[str, Any]

SLACK_SECONDS = 5.0
"""A describer that keeps to its time needs this much more to say so."""


def order(project: Project, seconds: float) -> JsonObject:
    """`describe.Order` as JSON. `seconds` bounds the import of all modules together."""
    return {
        "root": str(project.root),
        "import_paths": [str(path) for path in project.import_paths],
        "modules": list(project.modules),
        "declarations": [str(path) for path in project.declarations],
        "seconds": seconds,
    }


class Report:
    """What a describer has told so far, a line each: first `ready`, last `end` unless it was cut short."""

    def __init__(self, secrets: Collection[str], storage: Path) -> None:
        self._secrets = secrets
        self._storage = storage
        self._rest = b""
        self.lines: list[JsonObject] = []

    @property
    def is_begun(self) -> bool:
        """True once CrewAI is there: from now on the project's own modules take the time."""
        return bool(self.lines)

    @property
    def is_whole(self) -> bool:
        return self.is_begun and self.lines[-1]["kind"] == "end"

    def feed(self, data: bytes) -> bytes:
        """Takes bytes as they come; returns what is to be answered. Raises ValueError when they make no sense."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        answer = b""
        for line in map(json.loads, whole):
            if line["kind"] == "environment":
                answer += self._forbidden(line["environment"])
            else:
                self.lines.append(line)
        return answer

    def _forbidden(self, environment: dict[str, str]) -> bytes:
        redact.own().learn_all(environment)
        drop = interpreter.forbidden(environment, self._secrets, self._storage)
        return json.dumps({"drop": drop}).encode() + b"\n"
