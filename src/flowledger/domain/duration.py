"""Spans and points of time as people write and read them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `5m`, `1h30m`, `7d`. Raises ValueError."""
    text = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(rf"(?:{_PART.pattern})+", text):
        raise ValueError(f"{text!r} is no span of time")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def parse_moment(text: str, zone: tzinfo | None = None) -> datetime:
    """A point in time: ISO 8601, or how long ago (`90m`, `24h`, `7d`). Raises ValueError.

    `zone` is that of a time that names none; None: local.
    """
    try:
        return datetime.now(UTC) - timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError):
        pass
    at = datetime.fromisoformat(text)
    if at.tzinfo:
        return at
    try:
        return at.astimezone() if zone is None else at.replace(tzinfo=zone)
    except OverflowError as wrong:
        raise ValueError(f"{text!r} lies outside of the calendar") from wrong


def format_duration(milliseconds: int | None) -> str:
    """`340 ms`, `3.1 s`, `1 min 36 s`, `2 h 5 min`; empty for None."""
    if milliseconds is None:
        return ""
    if milliseconds < 1000:
        return f"{milliseconds} ms"
    if milliseconds < 59_950:  # what rounds to 60.0 s is a minute
        return f"{milliseconds / 1000:.1f} s"
    minutes, seconds = divmod(round(milliseconds / 1000), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
