"""`/flows`: which there are, what each takes, how it hangs together; and the pause that lets nothing of one start."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Self
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import Field, StringConstraints

from flowledger.api.answers import NoParameters, answered, told, unless_known
from flowledger.api.asking import Asked, Asking
from flowledger.api.parameters import Limit
from flowledger.api.shapes import Json, Shape, Text, Utc, refusals
from flowledger.database.session import Connection
from flowledger.domain import graph
from flowledger.domain.graph import Graph
from flowledger.errors import InvalidInput
from flowledger.ledger import flows
from flowledger.ledger.flows import FlowStatus, ListedFlow, WholeFlow

router = APIRouter(prefix="/flows", tags=["flows"])

_STATUS = "draft|active|archived|deprecated"
_GRAPH_PARTS = ("nodes", "edges", "start_methods", "router_methods")


async def _key(key: Annotated[Text, Path(max_length=100, description="The flow's key.")]) -> str:
    if "\x00" in key:
        raise InvalidInput("key", "holds a NUL character", "Give the flow's key.")
    return key


FlowKey = Annotated[str, Depends(_key)]


class ActivityShape(Shape):
    """What a flow does now, and its limits. `paused_by` is `flowledger` after a crash loop."""

    waiting: int
    running: int
    concurrency: int | None
    concurrency_per_user: int | None
    retries: int
    paused_at: Utc | None
    paused_by: str | None
    paused_reason: str | None

    @classmethod
    def of(cls, one: FlowStatus | None) -> Self | None:
        return None if one is None else cls(**{name: getattr(one, name) for name in cls.model_fields})


class FlowShape(Shape):
    """A row of `crewai_flows`."""

    id: UUID
    flow_key: str
    flow_name: str
    description: str | None
    status: str | None
    version: int | None
    tags: list[str] | None
    created_by: UUID | None
    created_at: Utc | None
    updated_at: Utc | None
    published_at: Utc | None
    execution_count: int | None
    last_executed_at: Utc | None
    now: Annotated[ActivityShape | None, Field(description="null: told to operators only, of active flows.")]

    @classmethod
    def of(cls, flow: ListedFlow, activity: FlowStatus | None) -> Self:
        return cls(**vars(flow), now=ActivityShape.of(activity))


class WholeFlowShape(FlowShape):
    """The row, and what is known of the flow's code. `graph` is what `/graph` tells, `input_schema` what `/schema`."""

    parent_flow_id: UUID | None
    metadata: Json
    entry_point: str | None
    fingerprint: str | None
    input_schema: Json
    graph: dict[str, Any]
    python_code: str | None

    @classmethod
    def whole(cls, flow: WholeFlow, activity: FlowStatus | None) -> Self:
        facts = {**vars(flow)}
        facts.pop("definition")
        return cls(
            **facts,
            now=ActivityShape.of(activity),
            entry_point=_text(_part(flow, "entry_point")),
            fingerprint=_text(_part(flow, "fingerprint")),
            input_schema=_part(flow, "input_schema"),
            graph=_graph(flow),
        )


class FlowPage(Shape):
    """`next` is the `after` of the page that follows; null: there is none."""

    flows: list[FlowShape]
    next: str | None


class FlowParameters(Shape):
    """Which flows, by key."""

    status: Annotated[
        Annotated[str, StringConstraints(pattern=f"^({_STATUS})(,({_STATUS}))*$")],
        Field(description="One or several, between commas.", examples=["active,draft"]),
    ] = "active"
    search: Annotated[
        Annotated[Text, Field(min_length=1, max_length=200)] | None,
        Field(description="Words of its name and description, or a part of its key."),
    ] = None
    limit: Limit = 50
    after: Annotated[Annotated[Text, Field(max_length=100)] | None, Field(description="The `next` of a page.")] = None


class GraphFormat(StrEnum):
    JSON = "json"
    TEXT = "text"
    MERMAID = "mermaid"


class GraphParameters(Shape):
    format: GraphFormat = GraphFormat.JSON


class PauseRequest(Shape):
    reason: Annotated[Text, Field(max_length=1000)] | None = None


class PauseShape(Shape):
    """null: it is not paused."""

    flow_key: str
    paused_at: Utc | None
    paused_by: str | None
    paused_reason: str | None


class ChangedShape(Shape):
    """`changed` false: it was so already."""

    flow_key: str
    changed: bool


# -- List and show ----------------------------------------------------------------------------------------------------


@router.get("", response_model=FlowPage, responses=refusals())
async def list_(asked: Asked, given: Annotated[FlowParameters, Query()]) -> Response:
    """Flows by key: those that are active, unless told otherwise. Of other statuses users see their own."""
    async with asked.session() as session:
        found = await flows.page(
            session,
            statuses=given.status.split(","),
            search=given.search,
            limit=given.limit + 1,
            after=given.after,
        )
        activities = await _activities(asked, session)
    shown = found[: given.limit]
    shapes = [FlowShape.of(flow, activities.get(flow.id)) for flow in shown]
    return answered(FlowPage(flows=shapes, next=shown[-1].flow_key if len(found) > given.limit else None))


@router.get(
    "/{key}",
    response_model=WholeFlowShape,
    responses={**refusals(404), 304: {"description": "It is what If-None-Match names"}},
)
async def show(asked: Asked, request: Request, key: FlowKey, _: NoParameters) -> Response:
    """One flow: what it takes, how it hangs together, where it is."""
    async with asked.session() as session:
        flow = await flows.show(session, key)
        activities = await _activities(asked, session)
    return unless_known(request, answered(WholeFlowShape.whole(flow, activities.get(flow.id))))


async def _activities(asked: Asking, session: Connection) -> dict[UUID, FlowStatus]:
    """Of active flows by id. Users are not told: it is what everybody does with them."""
    return {one.id: one for one in await flows.statuses(session)} if asked.claims.is_operator else {}


@router.get(
    "/{key}/graph",
    response_model=dict[str, Any],
    responses={**refusals(404), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def show_graph(asked: Asked, key: FlowKey, given: Annotated[GraphParameters, Query()]) -> Response:
    """How the flow's methods hang together: as CrewAI tells it, as an outline, or in Mermaid's language."""
    async with asked.session() as session:
        flow = await flows.show(session, key)
    match given.format:
        case GraphFormat.TEXT:
            return PlainTextResponse(graph.text(flow.flow_key, Graph.of(flow.definition)) + "\n")
        case GraphFormat.MERMAID:
            return PlainTextResponse(graph.mermaid(Graph.of(flow.definition)) + "\n")
        case GraphFormat.JSON:
            return told(_graph(flow))


@router.get("/{key}/schema", response_model=dict[str, Any], responses=refusals(404))
async def show_schema(asked: Asked, key: FlowKey, _: NoParameters) -> Response:
    """The JSON Schema of the flow's inputs; `{}` when it takes anything."""
    async with asked.session() as session:
        flow = await flows.show(session, key)
    schema = _part(flow, "input_schema")
    return told(schema if isinstance(schema, dict) else {})


def _part(flow: WholeFlow, name: str) -> Any:
    return flow.definition.get(name) if isinstance(flow.definition, dict) else None


def _graph(flow: WholeFlow) -> dict[str, Any]:
    return {name: _part(flow, name) for name in _GRAPH_PARTS if _part(flow, name) is not None}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


# -- Pause ------------------------------------------------------------------------------------------------------------


@router.get("/{key}/pause", response_model=PauseShape, responses=refusals(404))
async def show_pause(asked: Asked, key: FlowKey, _: NoParameters) -> Response:
    """Since when, by whom and why nothing of the flow starts. For operators."""
    async with asked.session() as session:
        paused = await flows.status(session, key)
    return answered(PauseShape(**{name: getattr(paused, name) for name in PauseShape.model_fields}))


@router.put("/{key}/pause", response_model=ChangedShape, responses=refusals(400, 404))
async def pause(asked: Asked, key: FlowKey, _: NoParameters, body: PauseRequest | None = None) -> Response:
    """Lets nothing of the flow start. What runs goes on; what is asked for waits. For operators."""
    async with asked.session() as session:
        changed = await flows.pause(session, key, body.reason if body else None)
    return answered(ChangedShape(flow_key=key, changed=changed))


@router.delete("/{key}/pause", response_model=ChangedShape, responses=refusals(404))
async def resume(asked: Asked, key: FlowKey, _: NoParameters) -> Response:
    """Lets the flow start again, whoever paused it. For operators."""
    async with asked.session() as session:
        changed = await flows.resume(session, key)
    return answered(ChangedShape(flow_key=key, changed=changed))
