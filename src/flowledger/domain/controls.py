"""What a project's `[tool.flowledger.flows.KEY]` says about one flow: timeouts, limits, retries.

`timeout_seconds` and the limits of its process are kept by the worker; the database keeps all others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from decimal import Decimal, InvalidOperation
from typing import Any

from flowledger.domain.budget import Budget
from flowledger.domain.duration import parse_duration
from flowledger.domain.reach import OnReach
from flowledger.errors import InvalidInput

LARGEST_BUDGET_USD = 999_999
LARGEST_BUDGET_TOKENS = 10**12

LONGEST_SECONDS = 2_147_483
"""About 24.8 days: `duration_ms` is a four-byte integer."""


@dataclass(frozen=True)
class FlowControls:
    """None means: no limit, or for `timeout_seconds` the worker's own.

    `retry_on` holds error types, whole or without their module; empty: every exception of the flow's own. The pause
    before the first retry is `retry_seconds`; it doubles with each. `idempotent` also tries again when nobody knows how
    a run ended. `memory_mb` (MiB), `processes` and `open_files` are those of one run, with all its descendants.
    `budget_usd` and `budget_tokens` are what one run may spend, `on_budget` what happens then. Of prompts, answers and
    outputs the first `preview_characters` are kept; 0: none of them, None: the worker's own.
    `redact` holds regular expressions for what is kept out of everything that is stored of a run.
    """

    timeout_seconds: float | None = None
    queue_seconds: float | None = None
    concurrency: int | None = None
    concurrency_per_user: int | None = None
    retries: int = 0
    retry_on: tuple[str, ...] = ()
    retry_seconds: float = 10
    idempotent: bool = False
    crash_limit: int = 5
    memory_mb: int | None = None
    processes: int | None = None
    open_files: int | None = None
    budget_usd: Decimal | None = None
    budget_tokens: int | None = None
    on_budget: OnReach = OnReach.STOP
    preview_characters: int | None = None
    redact: tuple[str, ...] = ()

    @classmethod
    def read(cls, table: Mapping[str, Any], place: str) -> FlowControls:
        """The controls that a table of `place` declares. Raises InvalidInput naming place and field."""
        known = [field.name for field in fields(cls)]
        for name in table:
            if name not in known:
                raise InvalidInput(f"{place} {name}", "is not known", f"Use {', '.join(known)}.")
        return cls(**{name: _READERS[name](value, f"{place} {name}") for name, value in table.items()})

    def for_database(self) -> dict[str, Any]:
        """What the database keeps."""
        return {name: getattr(self, name) for name in _KEPT_BY_DATABASE}

    def over(self, timeout_seconds: float) -> FlowControls:
        """The same, with the worker's own timeout where the flow has none."""
        return self if self.timeout_seconds is not None else replace(self, timeout_seconds=timeout_seconds)

    @property
    def that_apply(self) -> dict[str, Any]:
        """The limits there are; what is said of retries only where there are any."""
        said = {name: value for name, value in vars(self).items() if value not in (None, ())}
        left_out = (() if self.retries else _OF_RETRIES) + (() if self.budget else ("on_budget",))
        return {name: value for name, value in said.items() if name not in left_out}

    @property
    def budget(self) -> Budget | None:
        """None: one run may spend any amount."""
        if self.budget_usd is None and self.budget_tokens is None:
            return None
        return Budget(self.budget_usd, self.budget_tokens, self.on_budget, "the flow's budget for a run")

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory_mb is None else self.memory_mb * 1024 * 1024


_OF_RETRIES = ("retries", "retry_on", "retry_seconds", "idempotent")
_KEPT_BY_DATABASE = (
    "queue_seconds",
    "concurrency",
    "concurrency_per_user",
    "retries",
    "retry_on",
    "retry_seconds",
    "idempotent",
    "crash_limit",
)


def _span(longest: float) -> Callable[[Any, str], float]:
    def read(value: Any, place: str) -> float:
        seconds = _seconds(value)
        if seconds is None:
            raise InvalidInput(
                place, f"{value!r} is no span of time", 'Give seconds, or text like "90s", "5m", "1h30m".'
            )
        if not 0.001 <= seconds <= longest:
            raise InvalidInput(place, f"must be between 0.001 and {longest:,} seconds, not {seconds:g}")
        return seconds

    return read


def _seconds(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            return parse_duration(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(least: int, most: int) -> Callable[[Any, str], int]:
    def read(value: Any, place: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise InvalidInput(place, f"must be a whole number from {least:,} to {most:,}, not {value!r}")
        return value

    return read


def _money(value: Any, place: str) -> Decimal:
    try:
        amount = Decimal(value if isinstance(value, str) else repr(value))
    except (InvalidOperation, TypeError):
        amount = Decimal("NaN")
    if isinstance(value, bool) or not amount.is_finite() or not 0 <= amount <= LARGEST_BUDGET_USD:
        raise InvalidInput(place, f"must be an amount of USD from 0 to {LARGEST_BUDGET_USD:,}, not {value!r}")
    return amount


def _on_reach(value: Any, place: str) -> OnReach:
    try:
        return OnReach(value)
    except ValueError:
        raise InvalidInput(place, f'must be "stop" or "warn", not {value!r}') from None


def _truth(value: Any, place: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(place, f"must be true or false, not {value!r}")
    return value


def _names(value: Any, place: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise InvalidInput(
            place, f"must be a list of error types, not {value!r}", 'Like ["TimeoutError", "httpx.ReadTimeout"].'
        )
    return tuple(value)


def _patterns(value: Any, place: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
        raise InvalidInput(place, f"must be a list of regular expressions, not {value!r}", "Like ['KD-[0-9]{8}'].")
    for pattern in value:
        try:
            finds_nothing = re.compile(pattern).search("") is not None
        except (re.error, RecursionError, OverflowError) as error:
            raise InvalidInput(
                place, f"{pattern!r} is no regular expression: {error}", "Single quotes keep backslashes as they are."
            ) from error
        if finds_nothing:
            raise InvalidInput(place, f"{pattern!r} matches the empty text, so it would be found everywhere")
    return tuple(value)


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "timeout_seconds": _span(LONGEST_SECONDS),
    "queue_seconds": _span(LONGEST_SECONDS),
    "concurrency": _count(1, 1_000_000),
    "concurrency_per_user": _count(1, 1_000_000),
    "retries": _count(0, 20),
    "retry_on": _names,
    "retry_seconds": _span(86_400),
    "idempotent": _truth,
    "crash_limit": _count(1, 1_000_000),
    "memory_mb": _count(1, 16_777_216),
    "processes": _count(1, 1_000_000),
    "open_files": _count(16, 1_048_576),
    "budget_usd": _money,
    "budget_tokens": _count(0, LARGEST_BUDGET_TOKENS),
    "on_budget": _on_reach,
    "preview_characters": _count(0, 20_000),
    "redact": _patterns,
}
