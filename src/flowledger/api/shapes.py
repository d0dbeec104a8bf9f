"""What requests and answers look like: pydantic, at the HTTP border only. Keys are those of the ledger's columns.

Money is text, so that no digit is lost; times are UTC. Rows come from the ledger and are not judged again: whatever
Postgres holds can be told.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, StringConstraints

from flowledger.domain.controls import LARGEST_BUDGET_TOKENS, LONGEST_SECONDS
from flowledger.domain.execution import EXECUTION_KEY_LENGTH, Execution, Rerun, Transition
from flowledger.domain.mode import Mode
from flowledger.domain.priority import HIGHEST_PRIORITY
from flowledger.domain.reach import OnReach
from flowledger.domain.status import Status
from flowledger.domain.timeline import Event, LogLine, Span, SpanStatus
from flowledger.domain.usage import CallStatus, PricedCall, Repricing, exact_text

MOST_ROWS = 1000
"""On one page, of whatever kind."""


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def in_utc(at: datetime) -> datetime:
    """The same time as UTC tells it."""
    # The first and the last day there are cannot be told in another zone.
    with suppress(OverflowError):
        return at.astimezone(UTC)
    return at.replace(tzinfo=UTC)


Utc = Annotated[datetime, AfterValidator(in_utc)]
ANY_TEXT = r"^[^\x00]*$"
Text = Annotated[str, StringConstraints(pattern=ANY_TEXT)]
"""Postgres holds no NUL."""
Money = Annotated[str, Field(description="USD, every digit.", examples=["0.0071"])]
Sequence_ = Annotated[int, Field(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Strict(), Field(ge=0.001, le=LONGEST_SECONDS)]
Json = Annotated[Any, Field(description='Any JSON. `{"$unreadable": why}` stands for what cannot be told here.')]
ListedJson = Annotated[
    Any,
    Field(
        description='Any JSON. `{"$large": bytes}` stands for what is too large for a list, `{"$unreadable": why}` for '
        "what cannot be told here; /state has both whole."
    ),
]


def money(amount: Decimal | None) -> str | None:
    return None if amount is None else exact_text(amount)


# -- Executions -------------------------------------------------------------------------------------------------------


class ExecutionShape(Shape):
    """A row of `crewai_flow_executions`."""

    id: UUID
    flow_id: UUID
    flow_key: Annotated[str, Field(description="Empty: the flow was withdrawn from sight.")]
    execution_key: str
    status: Status
    execution_mode: Mode
    input_state: ListedJson
    output_state: ListedJson
    error_type: str | None
    error_message: str | None
    error_stack: str | None
    started_at: Utc | None
    completed_at: Utc | None
    duration_ms: int | None
    token_count: int | None
    cost_usd: Money | None
    board_meeting_id: UUID | None
    executed_by: UUID | None
    metadata: ListedJson

    @classmethod
    def of(cls, execution: Execution, **more: Any) -> Self:
        return cls(**{**vars(execution), "cost_usd": money(execution.cost_usd), **more})


class RerunShape(Shape):
    """That one execution repeats another: as a `rerun` somebody asked for, or a `retry` by its flow's policy."""

    execution_id: UUID
    of_execution: UUID
    kind: str
    attempt: int


class RepricingShape(Shape):
    """What later prices made of an execution's cost."""

    repriced_at: Utc
    repriced_by: str
    old_usd: Money | None
    new_usd: Money | None
    prices: Json

    @classmethod
    def of(cls, one: Repricing) -> Self:
        return cls(**{**vars(one), "old_usd": money(one.old_usd), "new_usd": money(one.new_usd)})


class WholeExecutionShape(ExecutionShape):
    """The row, what it repeats and what repeats it, and what it cost by later prices."""

    repeats: RerunShape | None
    repeated_by: list[RerunShape]
    repricings: list[RepricingShape]

    @classmethod
    def with_links(cls, execution: Execution, links: Sequence[Rerun], repricings: Sequence[Repricing]) -> Self:
        shapes = [RerunShape(**vars(link)) for link in links]
        return cls.of(
            execution,
            repeats=next((link for link in shapes if link.execution_id == execution.id), None),
            repeated_by=[link for link in shapes if link.of_execution == execution.id],
            repricings=[RepricingShape.of(one) for one in repricings],
        )


class ExecutionPage(Shape):
    """`next` is the `after` of the page that follows; null: there is none."""

    executions: list[ExecutionShape]
    next: str | None


class NewExecutionShape(Shape):
    """What to start. Only the flow is needed."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"flow": "board_brief"},
                {
                    "flow": "board_brief",
                    "inputs": {"topic": "pricing"},
                    "timeout_seconds": 600.0,
                    "budget_usd": "0.50",
                    "on_budget": "stop",
                    "metadata": {"ticket": "OPS-17"},
                },
            ]
        }
    )

    flow: Annotated[Text, Field(min_length=1, max_length=100, description="The flow's key.")]
    inputs: Annotated[dict[str, Any], Field(description="Checked by the flow's schema.")] = {}
    execution_key: Annotated[
        Text | None, Field(min_length=1, max_length=EXECUTION_KEY_LENGTH, description="null: the ledger makes one.")
    ] = None
    timeout_seconds: Annotated[
        Seconds | None, Field(description="How long it may run. null: as long as its flow may.")
    ] = None
    queue_seconds: Annotated[
        Seconds | None, Field(description="How long it may wait. null: as long as its flow may.")
    ] = None
    priority: Annotated[
        Annotated[int, Strict(), Field(ge=-HIGHEST_PRIORITY, le=HIGHEST_PRIORITY)] | None,
        Field(description="Higher starts sooner; null is 0."),
    ] = None
    budget_usd: Annotated[
        Annotated[str, StringConstraints(pattern=r"^[0-9]{1,6}(\.[0-9]{1,10})?$")] | None,
        Field(description="The most that it may spend, in USD.", examples=["0.50"]),
    ] = None
    budget_tokens: Annotated[int, Strict(), Field(ge=0, le=LARGEST_BUDGET_TOKENS)] | None = None
    on_budget: OnReach | None = None
    board_meeting_id: UUID | None = None
    metadata: Annotated[dict[str, Any], Field(description="The caller's own.")] = {}


class RerunRequest(Shape):
    """What is different this time."""

    inputs: Annotated[dict[str, Any], Field(description="In place of the earlier execution's, name by name.")] = {}


class CancellationRequest(Shape):
    reason: Annotated[Text, Field(max_length=1000)] | None = None


class CancellationShape(Shape):
    """`cancelled`: it had not started. `wished`: its worker is told, and the execution ends soon."""

    execution_id: UUID
    answer: Literal["cancelled", "wished"]


# -- What belongs to one ----------------------------------------------------------------------------------------------


class EventShape(Shape):
    """One fact. docs/reference/events.md says what `fields` each kind has."""

    sequence: int
    at: Utc
    kind: str
    name: str
    fields: Json
    parent: int | None
    began: int | None

    @classmethod
    def of(cls, event: Event) -> Self:
        return cls(**{**vars(event), "kind": str(event.kind)})


class SpanShape(Shape):
    """Something that lasts, or a moment. `ended_at` null: no end was seen."""

    sequence: int
    parent: int | None
    subject: str
    name: str
    started_at: Utc
    ended_at: Utc | None
    status: SpanStatus
    duration_ms: float | None
    fields: Json

    @classmethod
    def of(cls, span: Span) -> Self:
        lasted = None if span.ended_at is None else (span.ended_at - span.started_at).total_seconds() * 1000
        told = span.fields.get("duration_ms")
        return cls(**vars(span), duration_ms=float(told) if isinstance(told, int | float) else lasted)


class EventPage(Shape):
    """`next` is the `after` of the page that follows; null: there is none yet."""

    events: list[EventShape]
    next: int | None


class SpanPage(Shape):
    """`is_complete` false: there were more events than one answer tells of, and the last of them are left out."""

    spans: list[SpanShape]
    is_complete: bool


class LogLineShape(Shape):
    sequence: int
    at: Utc
    stream: Literal["stdout", "stderr"]
    text: str

    @classmethod
    def of(cls, line: LogLine) -> Self:
        return cls(**vars(line))


class LogPage(Shape):
    """`next` is the `after` of the page that follows; null: there is none yet."""

    lines: list[LogLineShape]
    next: int | None


class TokensShape(Shape):
    """`input_tokens` includes cached input and cache writes, `output_tokens` includes reasoning."""

    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int


class CallShape(Shape):
    """One LLM call. `usage` null: nobody reported tokens. `cost_usd` null: nobody knows."""

    number: int
    sequence: int | None
    call_id: str
    status: CallStatus
    model: str
    provider: str
    step: str | None
    crew: str | None
    agent: str | None
    task: str | None
    started_at: Utc
    latency_ms: float | None
    first_token_ms: float | None
    finish_reason: str | None
    retries: int
    usage: TokensShape | None
    price: dict[str, str] | None
    cost_usd: Money | None
    estimated_usd: Money | None

    @classmethod
    def of(cls, call: PricedCall) -> Self:
        usage = call.call.usage
        return cls(
            **{**vars(call.call), "usage": None if usage is None else TokensShape(**vars(usage))},
            price=None if call.price is None else call.price.as_json(),
            cost_usd=money(call.cost_usd),
            estimated_usd=money(call.estimated_usd),
        )


class CallPage(Shape):
    """`next` is the `after` of the page that follows; null: there is none yet."""

    calls: list[CallShape]
    next: int | None


class TransitionShape(Shape):
    """One step of an execution's life. `from_status` null: its birth."""

    from_status: Status | None
    to_status: Status
    actor: str
    reason: str | None
    worker_id: UUID | None
    fence: int | None
    at: Utc

    @classmethod
    def of(cls, step: Transition) -> Self:
        return cls(**vars(step))


class TransitionsShape(Shape):
    transitions: list[TransitionShape]


class StatesShape(Shape):
    """Both in full, every digit as it is stored."""

    input_state: Any
    output_state: Any


# -- Two compared -----------------------------------------------------------------------------------------------------


class ChangeShape(Shape):
    """A change of JSON, as RFC 6902 writes it, with what was there before. Long values are cut."""

    op: Literal["add", "remove", "replace"]
    path: str
    value: Any = None
    was: Any = None


class ChangesShape(Shape):
    """The first changes that lead from one to the other, and how many more there are."""

    changes: list[ChangeShape]
    more: int


class StepSideShape(Shape):
    status: SpanStatus
    duration_ms: float | None


class StepShape(Shape):
    """A method of the flow, the first, second, ... time that it ran. null: on that side it did not."""

    name: str
    time: int
    this: StepSideShape | None
    other: StepSideShape | None


class NumbersShape(Shape):
    """`difference` is the other's less this one's; null where one of them is not known."""

    this: int | None
    other: int | None
    difference: int | None


class AmountsShape(Shape):
    """The same in USD."""

    this: Money | None
    other: Money | None
    difference: Money | None


class ComparisonShape(Shape):
    """What is different in another execution, seen from this one."""

    this: UUID
    other: UUID
    flow_keys: tuple[str, str]
    statuses: tuple[Status, Status]
    inputs: ChangesShape
    outputs: ChangesShape
    steps: list[StepShape]
    token_count: NumbersShape
    cost_usd: AmountsShape
    duration_ms: NumbersShape


# -- Problems ---------------------------------------------------------------------------------------------------------


class FaultShape(Shape):
    field: str
    what: str


class ProblemShape(BaseModel):
    """An error (RFC 9457): what is wrong, where, and what to do about it."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    code: str
    remedy: str | None = None
    field: str | None = None
    faults: list[FaultShape] | None = None
    facts: Annotated[dict[str, Any] | None, Field(description="What is told of by name, for programs.")] = None


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How a resource may refuse, for OpenAPI: these, and what every one of them may answer."""
    told = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemShape"}}}
    return {
        status: {"description": _TOLD[status], "model": ProblemShape, "content": told}
        for status in sorted({*statuses, 401, 403, 422, 429, 503})
    }


_TOLD = {
    400: "The body is no JSON",
    401: "Nobody knows who asks",
    403: "Not permitted",
    404: "There is none, or it is not to be seen",
    409: "It is too late, or more than one could be meant",
    422: "A field, its limit and the remedy are named",
    429: "Too much waits, or too much was spent or asked",
    503: "The database is away or busy: try again",
}
