"""`/crewai/{key}`: one flow in the shape of CrewAI's hosted product, whose clients move here by changing their URL.

What it answers beside that product's own keys has names that it does not use. Its errors are problems like all others,
with `error` and `message` as its clients look for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import Field, WithJsonSchema
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from flowledger import inputs
from flowledger.api import problems
from flowledger.api.answers import NoParameters, answered
from flowledger.api.asking import Asked, Asking
from flowledger.api.flows import FlowKey
from flowledger.api.idempotency import IdempotencyKey, started
from flowledger.api.shapes import Shape, Text, refusals
from flowledger.database.session import Connection
from flowledger.domain.execution import Execution, NewExecution
from flowledger.domain.graph import Graph
from flowledger.domain.status import Status
from flowledger.domain.timeline import EventKind, Span, SpanStatus, spans
from flowledger.errors import (
    ExecutionNotFound,
    FeedbackNotAwaited,
    FlowledgerError,
    InvalidInput,
    TransitionRefused,
)
from flowledger.ledger import executions, flows, timeline

_MOST_EVENTS = 10_000
_STEPS = tuple(kind for kind in EventKind if kind.subject in ("method", "task"))
_WAITING = (Status.PENDING, Status.RUNNING)


class HostedRoute(APIRoute):
    """Refuses in words that the hosted product's clients read as well."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_or_refuse(request: Request) -> Response:
            try:
                return await handle(request)
            except FlowledgerError as error:
                return _hosted(problems.told(error))
            except RequestValidationError as error:
                return _hosted(problems.told_invalid(error))
            except HTTPException as error:
                return _hosted(problems.told_http(request, error))

        return handle_or_refuse


def _hosted(problem: JSONResponse) -> JSONResponse:
    told = json.loads(bytes(problem.body))
    faults = "; ".join(f"{fault['field']}: {fault['what']}" for fault in told.get("faults", ()))
    message = ". ".join(part.rstrip(".") for part in (told["title"], faults, told.get("remedy")) if part)
    error = _ERRORS.get(told["code"]) or HTTPStatus(told["status"]).phrase
    answer = problems.problem(**told, error=error, message=message)
    if "retry-after" in problem.headers:
        answer.headers["retry-after"] = problem.headers["retry-after"]
    return answer


_ERRORS = {
    "unreadable_body": "Invalid Request",
    "execution_not_found": "Execution not found",
    "flow_not_found": "Flow not found",
    "feedback_not_awaited": "Invalid Request",
    "invalid_request": "Validation Error",
    "invalid_input": "Validation Error",
}

router = APIRouter(prefix="/crewai/{key}", tags=["crewai"], route_class=HostedRoute)

Webhook = Annotated[Any, WithJsonSchema({"type": "null", "description": "Refused: this version calls no webhooks."})]
"""Anything, so that whoever gives one is told what to use instead."""

KickoffId = Annotated[Text, Path(max_length=100, description="What kickoff answered.")]


class InputsShape(Shape):
    """Names of what the flow takes; none when it takes anything."""

    inputs: list[str]


class KickoffRequest(Shape):
    """What to start. `meta` becomes the execution's metadata. URLs to be called are refused: there are none yet."""

    inputs: Annotated[dict[str, Any], Field(description="Checked by the flow's schema.")]
    meta: dict[str, Any] | None = None
    task_webhook_url: Annotated[Webhook, Field(alias="taskWebhookUrl")] = None
    step_webhook_url: Annotated[Webhook, Field(alias="stepWebhookUrl")] = None
    crew_webhook_url: Annotated[Webhook, Field(alias="crewWebhookUrl")] = None
    webhooks: Webhook = None


class KickoffShape(Shape):
    """`kickoff_id` is the execution's id."""

    kickoff_id: UUID


class ProgressShape(Shape):
    """Tasks are the flow's methods. A flow that does not come by all of them ends before it has completed all."""

    completed_tasks: int
    total_tasks: int


class RunningShape(Shape):
    """`current_task` is a task of a crew or else a method; null while the execution waits."""

    status: Literal["running"] = "running"
    execution_status: Status
    current_task: str | None
    progress: ProgressShape


class TaskShape(Shape):
    """A task of a crew; in a flow without any, a method. `execution_time` is in seconds."""

    task_id: str
    output: Annotated[str, Field(description="As far as the timeline keeps it.")]
    agent: str | None
    execution_time: float | None


class ResultShape(Shape):
    output: Annotated[str, Field(description="Text as it is, anything else as JSON.")]
    tasks: list[TaskShape]


class CompletedShape(Shape):
    """`execution_time` is in seconds."""

    status: Literal["completed"] = "completed"
    execution_status: Status
    result: ResultShape
    execution_time: float | None


class ErrorShape(Shape):
    """`execution_status` tells `failed`, `cancelled` and `timeout` apart. `execution_time` is in seconds."""

    status: Literal["error"] = "error"
    execution_status: Status
    error: str
    execution_time: float | None


class StopShape(Shape):
    """`stopped`: it had not started. `stopping`: its worker is told, and `status` says `error` soon."""

    kickoff_id: UUID
    status: Literal["stopped", "stopping"]


class ResumeRequest(Shape):
    """What people said, as the hosted product is told."""

    execution_id: Text
    task_id: Text
    human_feedback: Text
    is_approve: bool
    task_webhook_url: Annotated[Webhook, Field(alias="taskWebhookUrl")] = None
    step_webhook_url: Annotated[Webhook, Field(alias="stepWebhookUrl")] = None
    crew_webhook_url: Annotated[Webhook, Field(alias="crewWebhookUrl")] = None


# -- Start ------------------------------------------------------------------------------------------------------------


@router.get("/inputs", response_model=InputsShape, responses=refusals(404))
async def show_inputs(asked: Asked, key: FlowKey, _: NoParameters) -> Response:
    """What the flow takes, by name."""
    async with asked.session() as session:
        flow = await flows.find_active(session, key)
    properties = (flow.input_schema or {}).get("properties")
    return answered(InputsShape(inputs=list(properties) if isinstance(properties, dict) else []))


@router.post("/kickoff", response_model=KickoffShape, responses=refusals(400, 404))
async def kickoff(
    asked: Asked, key: FlowKey, new: KickoffRequest, _: NoParameters, idempotency_key: IdempotencyKey = None
) -> Response:
    """Starts the flow."""
    _refuse_webhooks(new)
    inputs.refuse_unstorable(new.meta, "meta")
    wanted = NewExecution(flow_key=key, inputs=new.inputs, metadata=new.meta or {})
    execution, again = await started(asked, idempotency_key, f"kickoff of {key}", new, wanted)
    headers = {"Idempotency-Replayed": "true"} if again else None
    return answered(KickoffShape(kickoff_id=execution.id), headers=headers)


def _refuse_webhooks(new: KickoffRequest) -> None:
    for name, field in KickoffRequest.model_fields.items():
        if "webhook" in name and getattr(new, name):
            raise InvalidInput(
                field.alias or name,
                "this version calls no webhooks; a later one will",
                "Leave it out; meanwhile follow GET /api/v1/live?topics=execution:KICKOFF_ID, or ask for the status.",
            )


# -- Watch ------------------------------------------------------------------------------------------------------------


@router.get("/status/{kickoff_id}", response_model=RunningShape | CompletedShape | ErrorShape, responses=refusals(404))
async def show_status(asked: Asked, key: FlowKey, kickoff_id: KickoffId, _: NoParameters) -> Response:
    """How far the execution is, or how it ended."""
    async with asked.session() as session:
        execution = await _find(asked, session, key, kickoff_id)
        return answered(await _status(session, execution))


@router.get("/{kickoff_id}/status", response_model=RunningShape | CompletedShape | ErrorShape, responses=refusals(404))
async def show_status_as_before(asked: Asked, key: FlowKey, kickoff_id: KickoffId, _: NoParameters) -> Response:
    """The same where earlier versions of the hosted product had it."""
    return await show_status(asked, key, kickoff_id, _)


async def _find(asked: Asking, session: Connection, key: str, kickoff_id: str) -> Execution:
    """Raises ExecutionNotFound, also for an execution of another flow."""
    try:
        id_ = UUID(kickoff_id)
    except ValueError as none:
        raise ExecutionNotFound(kickoff_id) from none
    execution = await executions.find(session, asked.claims, str(id_))
    if execution.flow_key != key:
        raise ExecutionNotFound(kickoff_id)
    return execution


async def _status(session: Connection, execution: Execution) -> RunningShape | CompletedShape | ErrorShape:
    status, seconds = execution.status, None if execution.duration_ms is None else execution.duration_ms / 1000
    if status not in (*_WAITING, Status.COMPLETED):
        why = ": ".join(part for part in (execution.error_type, execution.error_message) if part)
        return ErrorShape(execution_status=status, error=why or str(status), execution_time=seconds)
    steps = spans(await timeline.read(session, execution.id, most=_MOST_EVENTS, kinds=_STEPS))
    if status is Status.COMPLETED:
        result = ResultShape(output=_output(execution), tasks=_tasks(steps, execution))
        return CompletedShape(execution_status=status, result=result, execution_time=seconds)
    flow = await flows.show(session, execution.flow_key)
    known = set(Graph.of(flow.definition).nodes)
    return RunningShape(execution_status=status, current_task=_current(steps), progress=_progress(steps, known))


def _progress(steps: Sequence[Span], known: set[str]) -> ProgressShape:
    methods = [step for step in steps if step.subject == "method"]
    completed = {step.name for step in methods if step.status is SpanStatus.COMPLETED}
    return ProgressShape(
        completed_tasks=len(completed), total_tasks=len(known.union(method.name for method in methods))
    )


def _current(steps: Sequence[Span]) -> str | None:
    running = [step for step in steps if step.status is SpanStatus.RUNNING]
    # A task runs inside a method.
    tasks = [step for step in running if step.subject == "task"] or running
    return tasks[-1].name if tasks else None


def _result(execution: Execution) -> Any:
    output = execution.output_state
    return output.get("result") if isinstance(output, dict) else None


def _output(execution: Execution) -> str:
    """What the flow returned; of a crew's output what the crew said."""
    result = _result(execution)
    if isinstance(result, dict) and isinstance(result.get("raw"), str):
        return str(result["raw"])
    if result is None:
        return ""
    return result if isinstance(result, str) else to_json(result, inf_nan_mode="null").decode()


def _tasks(steps: Sequence[Span], execution: Execution) -> list[TaskShape]:
    ended = [step for step in steps if step.status is SpanStatus.COMPLETED]
    tasks = [step for step in ended if step.subject == "task"] or ended
    outputs = [step.fields.get("output", step.fields.get("result")) for step in tasks]
    result = _result(execution)
    whole = result.get("tasks_output") if isinstance(result, dict) else None
    if isinstance(whole, list) and len(whole) == len(tasks):
        # The crew whose output was returned ran alone: these are its tasks, uncut.
        outputs = [one.get("raw") if isinstance(one, dict) else one for one in whole]
    return [
        TaskShape(
            task_id=step.name,
            output="" if output is None else str(output),
            agent=_agent(step),
            execution_time=None if step.milliseconds is None else step.milliseconds / 1000,
        )
        for step, output in zip(tasks, outputs, strict=True)
    ]


def _agent(step: Span) -> str | None:
    role = step.fields.get("agent_role")
    return None if role is None else str(role)


# -- End --------------------------------------------------------------------------------------------------------------


@router.post("/stop/{kickoff_id}", response_model=StopShape, responses=refusals(404, 409))
async def stop(asked: Asked, key: FlowKey, kickoff_id: KickoffId, _: NoParameters) -> Response:
    """Asks to end the execution."""
    async with asked.session() as session:
        execution = await _find(asked, session, key, kickoff_id)
        answer = await executions.cancel(session, execution.id, None)
    if answer == "ended":
        raise TransitionRefused(f"execution {execution.id} has ended already")
    return answered(StopShape(kickoff_id=execution.id, status="stopped" if answer == "cancelled" else "stopping"))


@router.post("/resume", response_model=None, responses=refusals(400, 404))
async def resume(asked: Asked, key: FlowKey, given: ResumeRequest, _: NoParameters) -> Response:
    """Answered as the hosted product answers for an execution that waits for nobody: here none does."""
    async with asked.session() as session:
        execution = await _find(asked, session, key, given.execution_id)
    raise FeedbackNotAwaited(str(execution.id))
