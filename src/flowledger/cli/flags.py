"""What was typed becomes settings, points in time and spans of it."""

from __future__ import annotations

from datetime import datetime, tzinfo
from typing import Any

from pydantic import ValidationError

from flowledger.domain.duration import parse_duration, parse_moment
from flowledger.errors import InvalidInput
from flowledger.settings import Settings


def settings(**flags: Any) -> Settings:
    """Settings with these flags before everything else; a flag that is None does not count. Raises InvalidInput."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return _to_one_place(Settings(**given), given)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        raise InvalidInput(
            f"setting {'.'.join(str(part) for part in first['loc'])}",
            first["msg"],
            "docs/reference/settings.md lists every setting.",
        ) from invalid


def _to_one_place(chosen: Settings, given: dict[str, Any]) -> Settings:
    """A database or project that is named on the command line comes before a server that the environment names."""
    of_here = next((flag for name, flag in _OF_HERE.items() if name in given), None)
    if of_here is None:
        return chosen
    if "url" in given:
        raise InvalidInput("--url", f"cannot be given together with {of_here}", "Use one of them.")
    return chosen.model_copy(update={"url": None})


_OF_HERE = {"database_url": "--database-url", "data_dir": "--data", "project": "--project", "python": "--python"}


def moment(text: str | None, field: str, *, zone: tzinfo | None = None) -> datetime | None:
    """A point in time: ISO 8601, or how long ago (`90m`, `24h`, `7d`). Raises InvalidInput.

    `zone` is that of a time that names none; None: local.
    """
    if text is None:
        return None
    try:
        return parse_moment(text, zone).astimezone()
    except (ValueError, OverflowError) as wrong:
        raise InvalidInput(field, f"{text!r} is no time", "Give a date like 2026-11-26 or a span like 24h.") from wrong


def seconds(text: str | None, field: str) -> float | None:
    """A span of time in seconds: `90`, `90s`, `5m`, `1h30m`. Raises InvalidInput."""
    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as wrong:
        raise InvalidInput(field, f"{text!r} is no span of time", "Give one like 90s, 5m or 1h30m.") from wrong
