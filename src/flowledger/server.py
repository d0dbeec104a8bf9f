"""The ASGI application: the API under `/api/v1`, and its life."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI

from flowledger import __version__
from flowledger.api import executions, problems
from flowledger.api.auth import Verifier
from flowledger.database.session import Database
from flowledger.settings import Settings

MOST_CONNECTIONS = 8


def application(settings: Settings, conninfo: str) -> FastAPI:
    """`conninfo` logs in as a role that may become `authenticated` and `service_role`."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        async with Database(conninfo, most_connections=MOST_CONNECTIONS) as database:
            app.state.database = database
            app.state.verifier = Verifier(settings)
            yield

    app = FastAPI(title="flowledger", version=__version__, lifespan=life, openapi_url="/api/v1/openapi.json")
    problems.install(app)
    v1 = APIRouter(prefix="/api/v1")
    v1.include_router(executions.router)
    app.include_router(v1)
    return app
