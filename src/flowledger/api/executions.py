"""`/executions`: start, list, show, cancel, run again, compare, and what belongs to each."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response

from flowledger import inputs
from flowledger.api.answers import NoParameters, answered, unless_known
from flowledger.api.asking import Asked, Asking
from flowledger.api.comparison import Side, compared
from flowledger.api.idempotency import IdempotencyKey, started
from flowledger.api.parameters import ListParameters, PageParameters, place, written
from flowledger.api.shapes import (
    CallPage,
    CallShape,
    CancellationRequest,
    CancellationShape,
    ComparisonShape,
    EventPage,
    EventShape,
    ExecutionPage,
    ExecutionShape,
    LogLineShape,
    LogPage,
    NewExecutionShape,
    RerunRequest,
    Shape,
    SpanPage,
    SpanShape,
    StatesShape,
    Text,
    TransitionShape,
    TransitionsShape,
    WholeExecutionShape,
    refusals,
)
from flowledger.database.session import Connection
from flowledger.domain.budget import Budget
from flowledger.domain.execution import Execution, NewExecution
from flowledger.domain.reach import OnReach
from flowledger.domain.timeline import spans
from flowledger.errors import InvalidInput, TransitionRefused
from flowledger.ledger import executions, timeline, usage

router = APIRouter(prefix="/executions", tags=["executions"])

_LARGEST_LISTED = 8_192
"""Bytes of a value that a list still carries: a page holds a thousand rows."""

_MOST_EVENTS = 10_000
"""That one answer puts together as spans. A worker keeps no more of an execution, unless it is told to."""


async def _reference(
    reference: Annotated[
        Text, Path(max_length=100, description="Its id, the first 4 or more hexadecimal digits of it, or its key.")
    ],
) -> str:
    if "\x00" in reference:
        raise InvalidInput("reference", "holds a NUL character", "Give the execution's id.")
    return reference


Reference = Annotated[str, Depends(_reference)]


# -- Start ------------------------------------------------------------------------------------------------------------


@router.post("", status_code=201, response_model=ExecutionShape, responses=refusals(400, 404, 409))
async def create(asked: Asked, new: NewExecutionShape, _: NoParameters, key: IdempotencyKey = None) -> Response:
    """Starts a flow: a pending execution, which a worker takes as soon as it may."""
    execution, again = await started(asked, key, "executions", new, _wanted(new))
    return _created(execution, again=again)


@router.post("/{reference}/rerun", status_code=201, response_model=ExecutionShape, responses=refusals(400, 404, 409))
async def rerun(
    asked: Asked, reference: Reference, _: NoParameters, body: RerunRequest | None = None, key: IdempotencyKey = None
) -> Response:
    """Starts the same flow with the same inputs, changed where the body says so. What was asked of the earlier
    execution, its budget and timeout, is asked again.
    """
    changed = body or RerunRequest()
    inputs.refuse_unstorable(changed.inputs)
    async with asked.session() as session:
        earlier = await executions.find(session, asked.claims, reference)
    wanted = inputs.again(earlier, {**inputs.of_earlier(earlier), **changed.inputs})
    execution, again = await started(asked, key, f"rerun of {earlier.id}", changed, wanted)
    return _created(execution, again=again)


def _wanted(new: NewExecutionShape) -> NewExecution:
    inputs.refuse_unstorable(new.inputs)
    inputs.refuse_unstorable(new.metadata, "metadata")
    return NewExecution(
        flow_key=new.flow,
        inputs=new.inputs,
        board_meeting_id=new.board_meeting_id,
        execution_key=new.execution_key,
        timeout_seconds=new.timeout_seconds,
        queue_seconds=new.queue_seconds,
        priority=new.priority,
        budget=_budget(new),
        metadata=new.metadata,
    )


def _budget(new: NewExecutionShape) -> Budget | None:
    if new.budget_usd is None and new.budget_tokens is None:
        if new.on_budget is not None:
            raise InvalidInput("on_budget", "says what happens at a budget, and there is none", "Add budget_usd.")
        return None
    usd = None if new.budget_usd is None else Decimal(new.budget_usd)
    return Budget(usd, new.budget_tokens, new.on_budget or OnReach.STOP)


def _created(execution: Execution, *, again: bool) -> Response:
    headers = {"Location": f"/api/v1/executions/{execution.id}"}
    if again:
        headers["Idempotency-Replayed"] = "true"
    return answered(ExecutionShape.of(execution), 201, headers)


# -- List and show ----------------------------------------------------------------------------------------------------


@router.get("", response_model=ExecutionPage, responses=refusals())
async def list_(asked: Asked, given: Annotated[ListParameters, Query()]) -> Response:
    """Executions, newest first. A search looks through the newest of those that fit the other filters: its page may
    hold few or none and still name a `next`, where it goes on.
    """
    filters, after = given.filters(asked.claims), place(given.after)
    async with asked.session() as session:
        page = await executions.page(
            session, asked.claims, filters, limit=given.limit, after=after, largest=_LARGEST_LISTED
        )
    shapes = [ExecutionShape.of(execution) for execution in page.executions]
    return answered(ExecutionPage(executions=shapes, next=written(page.next)))


@router.get(
    "/{reference}",
    response_model=WholeExecutionShape,
    responses={**refusals(404, 409), 304: {"description": "It is what If-None-Match names"}},
)
async def show(asked: Asked, request: Request, reference: Reference, _: NoParameters) -> Response:
    """One execution, by its id, a unique prefix of it, or its key."""
    async with asked.session() as session:
        execution = await executions.find(session, asked.claims, reference)
        links = await executions.reruns(session, execution.id)
        repricings = await usage.repricings(session, execution.id)
    return unless_known(request, answered(WholeExecutionShape.with_links(execution, links, repricings)))


# -- What belongs to one ----------------------------------------------------------------------------------------------


class TimelineParameters(PageParameters):
    """`as=spans` puts beginnings and ends together, from the first event on."""

    as_: Annotated[
        Literal["events", "spans"], Query(alias="as", description="Spans put beginnings and ends together.")
    ] = "events"


@router.get("/{reference}/timeline", response_model=EventPage | SpanPage, responses=refusals(404, 409))
async def show_timeline(asked: Asked, reference: Reference, given: Annotated[TimelineParameters, Query()]) -> Response:
    """What happened inside, as events after a sequence number; or as spans."""
    is_spans = given.as_ == "spans"
    if is_spans and given.after:
        raise InvalidInput(
            "after", "is for events: a span may have begun before", "Leave it out, or leave out as=spans."
        )
    most, after = (_MOST_EVENTS, 0) if is_spans else (given.limit, given.after)
    async with asked.session() as session:
        execution = await executions.identify(session, asked.claims, reference)
        events = await timeline.read(session, execution.id, after=after, most=most + 1)
    if is_spans:
        told = [SpanShape.of(span) for span in spans(events[:most])]
        return answered(SpanPage(spans=told, is_complete=len(events) <= most))
    return answered(
        EventPage(events=[EventShape.of(event) for event in events[:most]], next=_next(events, most, "sequence"))
    )


@router.get("/{reference}/logs", response_model=LogPage, responses=refusals(404, 409))
async def show_logs(asked: Asked, reference: Reference, given: Annotated[PageParameters, Query()]) -> Response:
    """What the flow wrote to stdout and stderr, after a sequence number."""
    async with asked.session() as session:
        execution = await executions.identify(session, asked.claims, reference)
        lines = await timeline.read_logs(session, execution.id, after=given.after, most=given.limit + 1)
    shapes = [LogLineShape.of(line) for line in lines[: given.limit]]
    return answered(LogPage(lines=shapes, next=_next(lines, given.limit, "sequence")))


@router.get("/{reference}/usage", response_model=CallPage, responses=refusals(404, 409))
async def show_usage(asked: Asked, reference: Reference, given: Annotated[PageParameters, Query()]) -> Response:
    """The LLM calls with their tokens, prices and costs, after a number. Their sum stands in the execution."""
    async with asked.session() as session:
        execution = await executions.identify(session, asked.claims, reference)
        calls = await usage.read(session, execution.id, after=given.after, most=given.limit + 1)
    shapes = [CallShape.of(call) for call in calls[: given.limit]]
    return answered(CallPage(calls=shapes, next=_next([call.call for call in calls], given.limit, "number")))


@router.get("/{reference}/transitions", response_model=TransitionsShape, responses=refusals(404, 409))
async def show_transitions(asked: Asked, reference: Reference, _: NoParameters) -> Response:
    """Every step of its life, the birth first: when, by whom, why."""
    async with asked.session() as session:
        execution = await executions.identify(session, asked.claims, reference)
        steps = await executions.transitions(session, execution.id)
    return answered(TransitionsShape(transitions=[TransitionShape.of(step) for step in steps]))


@router.get("/{reference}/state", response_model=StatesShape, responses=refusals(404, 409))
async def show_state(asked: Asked, reference: Reference, _: NoParameters) -> Response:
    """What went in and what came out, in full, as the database holds it: also what is too deep or long elsewhere."""
    async with asked.session() as session:
        execution = await executions.identify(session, asked.claims, reference)
        states = await executions.states(session, asked.claims, execution.id)
    body = f'{{"input_state":{states.input_state or "null"},"output_state":{states.output_state or "null"}}}'
    return Response(body, media_type="application/json")


def _next(rows: Sequence[Any], limit: int, name: str) -> int | None:
    """One row more than asked for was read."""
    return getattr(rows[limit - 1], name) if len(rows) > limit else None


# -- Compare ----------------------------------------------------------------------------------------------------------


class ComparisonParameters(Shape):
    with_: Annotated[Text, Query(alias="with", max_length=100, description="The other: id, prefix or key.")]


@router.get("/{reference}/comparison", response_model=ComparisonShape, responses=refusals(404, 409))
async def compare(asked: Asked, reference: Reference, given: Annotated[ComparisonParameters, Query()]) -> Response:
    """What is different in another execution: inputs, outputs, steps, tokens, cost, time."""
    async with asked.session() as session:
        this, other = [await _side(asked, session, one) for one in (reference, given.with_)]
    return answered(compared(this, other))


async def _side(asked: Asking, session: Connection, reference: str) -> Side:
    execution = await executions.find(session, asked.claims, reference)
    return execution, await timeline.read(session, execution.id, most=_MOST_EVENTS)


# -- End --------------------------------------------------------------------------------------------------------------


@router.post(
    "/{reference}/cancellation", status_code=202, response_model=CancellationShape, responses=refusals(400, 404, 409)
)
async def cancel(
    asked: Asked, reference: Reference, _: NoParameters, body: CancellationRequest | None = None
) -> Response:
    """Asks to end an execution: at once if it has not started, else its worker stops it."""
    async with asked.session() as session:
        execution = await executions.identify(session, asked.claims, reference)
        answer = await executions.cancel(session, execution.id, body.reason if body else None)
    if answer == "ended":
        raise TransitionRefused(f"execution {execution.id} has ended already")
    return answered(CancellationShape.model_validate({"execution_id": execution.id, "answer": answer}), 202)
