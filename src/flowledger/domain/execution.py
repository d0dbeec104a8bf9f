"""One run of a flow: what is asked for, what is stored, and how it ended."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

from flowledger.domain.budget import Budget
from flowledger.domain.controls import LONGEST_SECONDS
from flowledger.domain.mode import Mode
from flowledger.domain.priority import HIGHEST_PRIORITY
from flowledger.domain.status import Status
from flowledger.errors import InvalidInput

JsonObject = dict[str, Any]

EXECUTION_KEY_LENGTH = 100
"""Characters that `execution_key character varying(100)` holds."""

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LONGEST_PLAIN_FLOW_KEY = 63


def execution_key(flow_key: str, at: datetime) -> str:
    """`FLOW-KEY-TIMESTAMP` plus 80 random bits, so that keys sort by time, never collide and cannot be guessed.

    The same rule as the SQL function `flowledger.execution_key`. Flow keys over 63 characters are shortened to 46, a
    tilde and 16 characters of their sha256, so that every key fits 100 characters.
    """
    stamp = at.astimezone(UTC).strftime("%Y%m%dT%H%M%S") + f"{at.microsecond // 1000:03d}Z"
    random = "".join(secrets.choice(_CROCKFORD) for _ in range(16))
    return f"{_shortened(flow_key)}-{stamp}-{random}"


def _shortened(flow_key: str) -> str:
    if len(flow_key) <= _LONGEST_PLAIN_FLOW_KEY:
        return flow_key
    return f"{flow_key[:46]}~{hashlib.sha256(flow_key.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class NewExecution:
    """What a caller asks for. Everything else is decided by the ledger.

    `timeout_seconds` None means the flow's own or the default timeout, `queue_seconds` None that it waits as long as
    its flow may. Higher `priority` starts sooner; None is 0. `execution_key` None lets the database make one.
    `rerun_of` is the execution that this one repeats. `budget` is the most that it may spend; None: what its flow may.
    """

    flow_key: str
    inputs: JsonObject = field(default_factory=dict)
    board_meeting_id: UUID | None = None
    execution_key: str | None = None
    timeout_seconds: float | None = None
    queue_seconds: float | None = None
    priority: int | None = None
    rerun_of: UUID | None = None
    budget: Budget | None = None
    metadata: JsonObject = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.execution_key is not None and len(self.execution_key) > EXECUTION_KEY_LENGTH:
            raise InvalidInput(
                "execution_key",
                f"has {len(self.execution_key)} characters, the limit is {EXECUTION_KEY_LENGTH}",
                "Leave it out and the ledger makes one.",
            )
        _require_span("timeout", self.timeout_seconds)
        _require_span("queue timeout", self.queue_seconds)
        if self.priority is not None and not -HIGHEST_PRIORITY <= self.priority <= HIGHEST_PRIORITY:
            raise InvalidInput(
                "priority", f"must be from -{HIGHEST_PRIORITY} to {HIGHEST_PRIORITY}, not {self.priority}"
            )

    @property
    def asked_for(self) -> JsonObject:
        """The metadata to store: the caller's own, and beside it what is asked of the ledger."""
        asked = {
            "timeout_seconds": self.timeout_seconds,
            "queue_seconds": self.queue_seconds,
            "priority": self.priority,
            "rerun_of": None if self.rerun_of is None else str(self.rerun_of),
            **(self.budget.as_json() if self.budget is not None else {}),
        }
        return {**self.metadata, **{name: value for name, value in asked.items() if value is not None}}


def _require_span(name: str, seconds: float | None) -> None:
    if seconds is not None and not 0.001 <= seconds <= LONGEST_SECONDS:
        raise InvalidInput(name, f"must be between 0.001 and {LONGEST_SECONDS:,} seconds, not {seconds:g}")


@dataclass(frozen=True)
class Execution:
    """A row of `crewai_flow_executions` as its reader sees it; field for field the reference document's columns."""

    id: UUID
    flow_id: UUID
    execution_key: str
    input_state: Any
    output_state: Any
    status: Status
    error_message: str | None
    error_stack: str | None
    error_type: str | None
    started_at: datetime | None
    completed_at: datetime | None
    duration_ms: int | None
    token_count: int | None
    cost_usd: Decimal | None
    board_meeting_id: UUID | None
    executed_by: UUID | None
    execution_mode: Mode
    metadata: JsonObject | None
    flow_key: str = ""
    """The flow's key, joined in for readers. Empty: the flow was withdrawn from their sight."""


@dataclass(frozen=True)
class Claim:
    """An execution that a worker holds: the row's start, and the lease that makes it the worker's.

    `fence` orders the holders; a finish with another fence than the lease's is refused.
    `timeout_seconds` None means the worker's default. `cancel_reason` is set when a cancel wish came before the start.
    """

    execution_id: UUID
    fence: int
    flow_id: UUID
    flow_key: str
    execution_key: str
    inputs: JsonObject
    metadata: JsonObject
    execution_mode: Mode
    executed_by: UUID | None
    board_meeting_id: UUID | None
    timeout_seconds: float | None


@dataclass(frozen=True)
class Outcome:
    """How an execution ended, decided by whoever watched the child end.

    `began_after_ms`: milliseconds between claim and the flow's own start; None when the flow never began.
    `token_count` None: no LLM call was seen, or none reported its tokens. `cost_usd` None: the price is unknown.
    """

    status: Status
    output_state: Any = None
    error_type: str | None = None
    error_message: str | None = None
    error_stack: str | None = None
    token_count: int | None = None
    cost_usd: Decimal | None = None
    began_after_ms: int | None = None
    metadata: JsonObject = field(default_factory=dict)


class Finish(StrEnum):
    """What the ledger answers to a finish."""

    OK = "ok"
    DUP = "dup"
    """The same outcome is already stored: an earlier reply was lost."""
    LOST = "lost"
    """The lease was ours no more; somebody else decided the outcome."""


@dataclass(frozen=True)
class Transition:
    """One step of an execution. `from_status` None is the birth; `fence` and `worker_id` are the lease's, if any."""

    from_status: Status | None
    to_status: Status
    actor: str
    reason: str | None
    worker_id: UUID | None
    fence: int | None
    at: datetime


@dataclass(frozen=True)
class Rerun:
    """That `execution_id` repeats `of_execution`: as a `rerun` somebody asked for, or a `retry` by its flow's policy.

    `attempt` counts the whole chain, whose first execution is 1.
    """

    execution_id: UUID
    of_execution: UUID
    kind: str
    attempt: int
