"""A real server on a socket of its own, and clients of its live stream."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import jwt
import uvicorn
from fastapi import FastAPI
from httpx_sse import EventSource, ServerSentEvent
from pydantic import SecretStr

from flowledger.server import application
from flowledger.settings import Settings

SECRET = "a-secret-that-only-the-tests-know-0123456789"


def token(user: UUID, role: str = "authenticated") -> str:
    claims = {"sub": str(user), "role": role, "exp": datetime.now(UTC) + timedelta(hours=1)}
    return jwt.encode(claims, SECRET, algorithm="HS256")


@dataclass(frozen=True)
class Served:
    """A server at work."""

    url: str
    app: FastAPI

    @property
    def streams(self) -> int:
        """Live streams that are open."""
        return self.app.state.feed.streams


@contextmanager
def served(conninfo: str, *, send_buffer: int | None = None, **settings: Any) -> Iterator[Served]:
    """A server that works on this database."""
    app = application(Settings(jwt_secret=SecretStr(SECRET), **settings), conninfo)
    listening = socket.socket()
    if send_buffer is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    listening.bind(("127.0.0.1", 0))
    listening.listen(512)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    give_up_at = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < give_up_at, "the server does not come up"
        thread.join(0.01)
    try:
        yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", app)
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


class Watcher:
    """What one client of the live stream has been told."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.told: list[ServerSentEvent] = []
        self.last_id: str | None = None
        self.has_ended = False
        self._more = asyncio.Event()

    async def read(self) -> None:
        try:
            async for message in EventSource(self.response).aiter_sse():
                self.last_id = message.id or self.last_id
                if message.data:
                    self.told.append(message)
                self._more.set()
        except httpx.RemoteProtocolError:
            pass
        self.has_ended = True
        self._more.set()

    @property
    def changes(self) -> list[tuple[str, str]]:
        """Kind and execution of each change, without the opening message."""
        told = (json.loads(message.data) for message in self.told)
        return [(one["kind"], one.get("execution", "")) for one in told if one["kind"] not in ("ready", "reset")]

    @property
    def executions(self) -> set[UUID]:
        return {UUID(execution) for _, execution in self.changes if execution}

    async def until(self, fact: Callable[[], bool], seconds: float = 20) -> None:
        """Waits for the fact. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not fact():
                self._more.clear()
                await self._more.wait()


@asynccontextmanager
async def watching(
    url: str, user: UUID, topics: str, *, after: str | None = None, role: str = "authenticated"
) -> AsyncIterator[Watcher]:
    """A client of the live stream that has been told `ready`, or `reset`."""
    headers = {"Authorization": f"Bearer {token(user, role)}", **({"Last-Event-ID": after} if after else {})}
    async with (
        httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(10, read=None)) as client,
        client.stream("GET", "/api/v1/live", params={"topics": topics}, headers=headers) as response,
    ):
        if response.is_error:
            await response.aread()
        response.raise_for_status()
        watcher = Watcher(response)
        reading = asyncio.create_task(watcher.read())
        try:
            await watcher.until(lambda: bool(watcher.told))
            yield watcher
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
