"""Options that several commands share, and how they become settings."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from flowledger.domain.duration import parse_duration
from flowledger.errors import InvalidInput
from flowledger.settings import Settings

ProjectOption = Annotated[
    str | None,
    typer.Option(
        "--project", "-C", help="The CrewAI project: a directory, file or module. Default: here.", show_default=False
    ),
]
PythonOption = Annotated[
    Path | None, typer.Option("--python", help="The project's interpreter, if it has its own.", show_default=False)
]
DatabaseOption = Annotated[
    str | None,
    typer.Option("--database-url", help="Postgres to use. Default: the embedded one.", show_default=False),
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Directory of the embedded Postgres. Default: .flowledger", show_default=False),
]
SlotsOption = Annotated[
    int | None, typer.Option("--slots", min=1, max=512, help="Executions to run side by side.", show_default=False)
]
PairsOption = Annotated[
    list[str] | None,
    typer.Option("-i", "--set", metavar="KEY=VALUE", help="One input; key=@file reads a file, key:=json takes JSON."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON.")]


def settings(**flags: Any) -> Settings:
    """Settings with these flags before everything else; a flag that is None does not count. Raises InvalidInput."""
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as invalid:
        first = invalid.errors()[0]
        raise InvalidInput(
            f"setting {'.'.join(str(part) for part in first['loc'])}",
            first["msg"],
            "docs/reference/settings.md lists every setting.",
        ) from invalid


def moment(text: str | None, field: str) -> datetime | None:
    """A point in time: ISO 8601 (local if no zone), or how long ago (`90m`, `24h`, `7d`). Raises InvalidInput."""
    if text is None:
        return None
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(text))
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError as wrong:
        raise InvalidInput(field, f"{text!r} is no time", "Give a date like 2026-11-26 or a span like 24h.") from wrong


def seconds(text: str | None, field: str) -> float | None:
    """A span of time in seconds: `90`, `90s`, `5m`, `1h30m`. Raises InvalidInput."""
    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as wrong:
        raise InvalidInput(field, f"{text!r} is no span of time", "Give one like 90s, 5m or 1h30m.") from wrong
