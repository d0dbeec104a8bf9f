"""`/metrics`: what Prometheus scrapes of a server. For operators: it names every flow and tells how it is used."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from flowledger.api.answers import NoParameters
from flowledger.api.asking import Asked, Asking
from flowledger.api.shapes import refusals
from flowledger.errors import DatabaseBusy, DatabaseUnreachable, PermissionRefused
from flowledger.ledger import flows
from flowledger.ledger.flows import Backlog

router = APIRouter(tags=["metrics"])

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/metrics", response_class=PlainTextResponse, responses=refusals())
async def metrics(asked: Asked, request: Request, _: NoParameters) -> Response:
    """Requests, streams and connections of this server, and the queue of the ledger, in Prometheus' text format."""
    if not asked.claims.is_operator:
        raise PermissionRefused("metrics are for operators")
    state = request.app.state
    told = state.metrics.exposition(await _backlog(asked), state.database.pool, state.feed.streams)
    return Response(told, media_type=MEDIA_TYPE)


async def _backlog(asked: Asking) -> list[Backlog] | None:
    """None without the database: a server that cannot reach it is what is to be seen."""
    try:
        async with asked.session() as session:
            return await flows.backlog(session)
    except (DatabaseUnreachable, DatabaseBusy):
        return None
