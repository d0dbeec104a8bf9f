"""`/health` and `/readiness`: for whoever starts, stops and routes to servers. They need no identity."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request

from flowledger.api.shapes import Shape
from flowledger.database import migrate
from flowledger.database.session import Claims, address
from flowledger.errors import DatabaseUnreachable

router = APIRouter(tags=["health"])

PATIENCE_SECONDS = 2.0
"""Whoever probes waits no longer than for a few seconds."""


class HealthShape(Shape):
    alive: bool = True


class ReadinessShape(Shape):
    """`schema_version` is the number of the last migration."""

    ready: bool = True
    schema_version: int


@router.get("/health")
async def health() -> HealthShape:
    """The process answers."""
    return HealthShape()


@router.get("/readiness", responses={503: {"description": "It is not ready"}})
async def readiness(request: Request) -> ReadinessShape:
    """The database answers within 2 seconds and has the schema of this version; else 503."""
    database = request.app.state.database
    try:
        async with asyncio.timeout(PATIENCE_SECONDS), database.session(Claims.of_nobody()) as session:
            return ReadinessShape(schema_version=await migrate.require_current_in(session))
    except TimeoutError as silence:
        told = f"no answer within {PATIENCE_SECONDS:g} s"
        raise DatabaseUnreachable(address(database.conninfo), told) from silence
