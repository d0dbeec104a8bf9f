"""`/health` and `/readiness`: for whoever starts, stops and routes to servers. They need no identity."""

from __future__ import annotations

from fastapi import APIRouter, Request

from flowledger.api.shapes import Shape
from flowledger.database import migrate
from flowledger.database.session import Claims

router = APIRouter(tags=["health"])


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


@router.get("/readiness")
async def readiness(request: Request) -> ReadinessShape:
    """The database answers and has the schema of this version; else 503."""
    async with request.app.state.database.session(Claims.of_nobody()) as session:
        return ReadinessShape(schema_version=await migrate.require_current_in(session))
