"""What may be asked for: which executions, and how one is to be run. Names and meanings are those of the API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, TypedDict
from uuid import UUID

from flowledger.domain.mode import Mode
from flowledger.domain.reach import OnReach
from flowledger.domain.status import Status


class Filters(TypedDict, total=False):
    """Which executions; what is left out, or None, takes all. `since` and `until` compare `started_at`: a time with its
    zone, or how long ago, like `24h`. `by` is a user, or `me`. `search` is a part of the error; `path` is a place in
    the row's JSON, like `input_state.topic`, at which `value` stands.
    """

    status: Status | Sequence[Status] | None
    flow: str | None
    mode: Mode | None
    since: datetime | str | None
    until: datetime | str | None
    meeting: UUID | None
    by: UUID | str | None
    search: str | None
    path: str | None
    value: str | None


class Options(TypedDict, total=False):
    """How an execution is to be run. `timeout_seconds` and `queue_seconds` None: as its flow says. Higher `priority`
    starts sooner. `budget_usd` and `budget_tokens` are the most that it may spend.
    """

    execution_key: str | None
    timeout_seconds: float | None
    queue_seconds: float | None
    priority: int | None
    budget_usd: Decimal | str | None
    budget_tokens: int | None
    on_budget: OnReach | None
    board_meeting_id: UUID | None
    metadata: Mapping[str, Any]


def as_params(given: Mapping[str, Any]) -> dict[str, str]:
    """As a query has it; what is None is left out."""
    return {name: _param(value) for name, value in given.items() if value is not None}


def _param(value: Any) -> str:
    if isinstance(value, date):
        return value.isoformat()
    return str(value) if isinstance(value, str) or not isinstance(value, Sequence) else ",".join(map(str, value))


def as_body(given: Mapping[str, Any]) -> dict[str, Any]:
    """As a body of JSON has it; what is None is left out."""
    return {name: _plain(value) for name, value in given.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return f"{value:f}"
    return str(value) if isinstance(value, UUID) else value
