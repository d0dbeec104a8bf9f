"""What the server answers with, where `flowledger.domain` has no word for it yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

from flowledger.domain.dimension import Dimension
from flowledger.domain.execution import Execution, Rerun
from flowledger.domain.status import Status
from flowledger.domain.timeline import Event, LogLine, Span, SpanStatus
from flowledger.domain.token import Secret, Token
from flowledger.domain.usage import PricedCall, Repricing

# -- Executions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WholeExecution(Execution):
    """An execution, what it repeats and what repeats it, and what it cost by later prices."""

    repeats: Rerun | None = None
    repeated_by: tuple[Rerun, ...] = ()
    repricings: tuple[Repricing, ...] = ()


@dataclass(frozen=True)
class ExecutionPage:
    """`next` is the `after` of the page that follows; None: there is none."""

    executions: tuple[Execution, ...]
    next: str | None


@dataclass(frozen=True)
class States:
    """What went in and what came out, in full."""

    input_state: Any
    output_state: Any


@dataclass(frozen=True)
class Spans:
    """`is_complete` False: there were more events than one answer tells of, and the last of them are left out."""

    spans: tuple[Span, ...]
    is_complete: bool


@dataclass(frozen=True)
class EventPage:
    """`next` is the `after` of the page that follows; None: there is none yet."""

    events: tuple[Event, ...]
    next: int | None


@dataclass(frozen=True)
class LogPage:
    lines: tuple[LogLine, ...]
    next: int | None


@dataclass(frozen=True)
class CallPage:
    calls: tuple[PricedCall, ...]
    next: int | None


class CancelAnswer(StrEnum):
    """CANCELLED: it had not started. WISHED: its worker is told, and it ends soon. ENDED: it had ended before."""

    CANCELLED = "cancelled"
    WISHED = "wished"
    ENDED = "ended"


@dataclass(frozen=True)
class Cancellation:
    execution_id: UUID
    answer: CancelAnswer


# -- Two compared -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """A change of JSON, as RFC 6902 writes it, with what was there before. Long values are cut."""

    op: str
    path: str
    value: Any = None
    was: Any = None


@dataclass(frozen=True)
class Changes:
    """The first changes that lead from one to the other, and how many more there are."""

    changes: tuple[Change, ...]
    more: int


@dataclass(frozen=True)
class StepSide:
    status: SpanStatus
    duration_ms: float | None


@dataclass(frozen=True)
class Step:
    """A method of the flow, the first, second, ... `time` that it ran. None: on that side it did not."""

    name: str
    time: int
    this: StepSide | None
    other: StepSide | None


@dataclass(frozen=True)
class Numbers:
    """`difference` is the other's less this one's; None where one of them is not known."""

    this: int | None
    other: int | None
    difference: int | None


@dataclass(frozen=True)
class Amounts:
    """The same in USD."""

    this: Decimal | None
    other: Decimal | None
    difference: Decimal | None


@dataclass(frozen=True)
class Comparison:
    """What is different in another execution, seen from this one."""

    this: UUID
    other: UUID
    flow_keys: tuple[str, str]
    statuses: tuple[Status, Status]
    inputs: Changes
    outputs: Changes
    steps: tuple[Step, ...]
    token_count: Numbers
    cost_usd: Amounts
    duration_ms: Numbers


# -- Tokens -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MadeToken:
    """A token, and what it says: shown now and never again."""

    token: Token
    secret: Secret = field(repr=False)


# -- Flows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Activity:
    """What a flow does now, and its limits. `paused_by` is `flowledger` after a crash loop."""

    waiting: int
    running: int
    concurrency: int | None
    concurrency_per_user: int | None
    retries: int
    paused_at: datetime | None
    paused_by: str | None
    paused_reason: str | None


@dataclass(frozen=True)
class ListedFlow:
    """A row of `crewai_flows`. `now` None: that is told to operators only, of active flows."""

    id: UUID
    flow_key: str
    flow_name: str
    description: str | None
    status: str | None
    version: int | None
    tags: tuple[str, ...] | None
    created_by: UUID | None
    created_at: datetime | None
    updated_at: datetime | None
    published_at: datetime | None
    execution_count: int | None
    last_executed_at: datetime | None
    now: Activity | None


@dataclass(frozen=True)
class WholeFlow(ListedFlow):
    """The row, and what is known of the flow's code. `input_schema` None: it takes anything."""

    parent_flow_id: UUID | None
    metadata: Any
    entry_point: str | None
    fingerprint: str | None
    input_schema: Any
    graph: dict[str, Any]
    python_code: str | None


@dataclass(frozen=True)
class FlowPage:
    """`next` is the `after` of the page that follows; None: there is none."""

    flows: tuple[ListedFlow, ...]
    next: str | None


@dataclass(frozen=True)
class Changed:
    """`changed` False: it was so already."""

    flow_key: str
    changed: bool


# -- Costs and errors -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """Sums over ended executions and their calls, in tokens and USD. `key` None: of none, or of all of them.

    `executions` and `failed` are None along models: an execution is of no single one. `is_lower_bound`: the costs lack
    `unknown_calls`, of which nobody reported tokens, and `unpriced_calls`, of which nobody knows a price.
    """

    executions: int | None
    failed: int | None
    calls: int
    failed_calls: int
    unknown_calls: int
    unpriced_calls: int
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: Decimal
    repriced_usd: Decimal
    is_lower_bound: bool
    key: str | None = None


@dataclass(frozen=True)
class Costs:
    """The dearest first; days in their order. `first_day` and `last_day` are whole days, UTC; None: no bound."""

    by: Dimension
    flow: str | None
    meeting: UUID | None
    first_day: date | None
    last_day: date | None
    rows: tuple[Spent, ...]
    total: Spent


@dataclass(frozen=True)
class ErrorGroup:
    """Executions that failed or ran out of time with one fingerprint, which wasted at least `tokens` and `cost_usd`.

    `flows` holds flow key -> versions. `error_type`, `place` and `message` are those of `example`, the latest.
    `unpriced` counts the executions that `cost_usd` lacks.
    """

    fingerprint: str
    first_seen: datetime
    last_seen: datetime
    count: int
    flows: dict[str, tuple[int, ...]]
    error_type: str | None
    place: str | None
    message: str | None
    tokens: int | None
    cost_usd: Decimal | None
    unpriced: int
    example: UUID


@dataclass(frozen=True)
class ErrorGroups:
    """The latest seen first. `is_complete` False: there are more."""

    errors: tuple[ErrorGroup, ...]
    is_complete: bool
