"""The ASGI application, the API under `/api/v1`, and how it is served: its address, its life, its end."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import structlog
import uvicorn
from fastapi import APIRouter, FastAPI

from flowledger import __version__
from flowledger.api import (
    budgets,
    costs,
    errors,
    executions,
    exports,
    flows,
    health,
    kickoff,
    live,
    login,
    metrics,
    pages,
    prices,
    problems,
    tokens,
)
from flowledger.api.auth import Verifier
from flowledger.api.connections import Connection
from flowledger.api.document import document, operation_id
from flowledger.api.envelope import Envelope
from flowledger.api.hosts import Hosts, allowed_hosts, is_loopback, require_safe_bind
from flowledger.api.limits import Bodies, Rates
from flowledger.database import migrate
from flowledger.database.session import Claims, Database
from flowledger.errors import InvalidInput
from flowledger.feed import Feed
from flowledger.settings import Settings
from flowledger.telemetry.requests import Counted, RequestMetrics

_log = structlog.get_logger("flowledger.server")

MOST_CONNECTIONS = 8
_GRACE_SECONDS = 10
_BACKLOG = 2048
_SILENT_SECONDS = 120
"""A peer that takes nothing of what it is sent for so long is gone."""


def application(
    settings: Settings, conninfo: str, *, has_login: bool = False, most_connections: int = MOST_CONNECTIONS
) -> FastAPI:
    """`conninfo` logs in as a role that may become `anon`, `authenticated` and `service_role`. `has_login`: one-time
    links are taken, at an address that only this machine reaches.

    Raises InvalidInput for settings that cannot be used, or are not safe.
    """
    require_safe_bind(settings)
    verifier, rates = Verifier(settings), Rates(settings)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        async with Database(conninfo, most_connections=most_connections) as database:
            app.state.database = database
            async with database.session(Claims.of_nobody()) as session:
                await migrate.require_current_in(session)
            listen_url = settings.listen_url.get_secret_value() if settings.listen_url else conninfo
            async with Feed(database, listen_url, poll_seconds=settings.poll_seconds).running() as app.state.feed:
                yield

    app = _Api(
        title="flowledger",
        version=__version__,
        lifespan=life,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=operation_id,
    )
    app.state.verifier, app.state.rates = verifier, rates
    app.state.metrics = RequestMetrics()
    app.state.has_login = has_login and is_loopback(settings.server_host)
    problems.install(app)
    _route(app)
    # The last is outermost.
    app.add_middleware(Bodies, most_bytes=settings.max_body_bytes)
    app.add_middleware(Hosts, allowed=allowed_hosts(settings))
    app.add_middleware(Envelope)
    app.add_middleware(Counted, metrics=app.state.metrics)
    return app


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        self.openapi_schema = self.openapi_schema or document(self)
        return self.openapi_schema


def _route(app: FastAPI) -> None:
    v1 = APIRouter(prefix="/api/v1")
    # Exports before the executions, whose references they would be one of.
    for resource in (exports, executions, flows, kickoff, costs, errors, budgets, prices, tokens, live, health):
        v1.include_router(resource.router)
    app.include_router(v1)
    app.include_router(metrics.router)
    app.include_router(pages.router)
    if app.state.has_login:
        app.include_router(login.router)


def bound(settings: Settings) -> socket.socket:
    """The address, taken. Raises InvalidInput if somebody else has it, or it is none of this machine's."""
    host, port = settings.server_host, settings.server_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small answers at once only where it is told that this is TCP: else each waits 40 ms for a timer.
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _hang_up_on_the_silent(taken)
        taken.bind((host, port))
        taken.listen(_BACKLOG)
    except OSError as trouble:
        taken.close()
        raise InvalidInput(
            "setting server_port",
            f"{host}:{port} cannot be served at: {trouble.strerror}",
            "Choose with --port, 0: any.",
        ) from trouble
    return taken


def _hang_up_on_the_silent(taken: socket.socket) -> None:
    """Every connection inherits it. Where the system has no such limit, its own holds: minutes to hours."""
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_SECONDS * 1000)


def url_of(taken: socket.socket) -> str:
    """Where a browser of this machine finds it."""
    host, port = taken.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - to read it, not to bind it
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where there is one: a quarter less CPU for each request. None: asyncio's own."""
    return uvicorn.Config("", log_config=None).get_loop_factory()


@asynccontextmanager
async def serving(app: FastAPI, taken: socket.socket) -> AsyncIterator[asyncio.Task[None]]:
    """Served while the block runs; then live streams end, and requests in flight get 10 seconds to. The task ends early
    by a fault. Raises DatabaseUnreachable, SchemaTooOld, SchemaTooNew.
    """
    async with app.router.lifespan_context(app):
        server = _Server(app)
        task = asyncio.create_task(server.serve(sockets=[taken]), name="server")
        starting = asyncio.create_task(server.ready.wait())
        try:
            await asyncio.wait((task, starting), return_when=asyncio.FIRST_COMPLETED)
            _settle()
            _log.info("server_ready", url=url_of(taken))
            yield task
        finally:
            starting.cancel()
            app.state.feed.end()
            server.should_exit = True
            await task


def _settle() -> None:
    """What has been loaded stays: a full collection would look at all of it again, and hold requests up meanwhile."""
    gc.collect()
    gc.freeze()


class _Server(uvicorn.Server):
    """Leaves signals to whoever started it, and tells when it is ready."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                http=Connection,
                ws="none",
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
