"""Clients of the live stream, and what each has been told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import UUID

import httpx
from httpx_sse import EventSource, ServerSentEvent

from tests.api.serving import signed


class Watcher:
    """What one client of the live stream has been told."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.told: list[ServerSentEvent] = []
        self.last_id: str | None = None
        self.has_ended = False
        self.was_cut = False
        self._more = asyncio.Event()

    async def read(self) -> None:
        try:
            async for message in EventSource(self.response).aiter_sse():
                self.last_id = message.id or self.last_id
                if message.data:
                    self.told.append(message)
                self._more.set()
        except httpx.RemoteProtocolError:
            self.was_cut = True
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
    headers = {"Authorization": f"Bearer {signed(user, role=role)}", **({"Last-Event-ID": after} if after else {})}
    async with (
        httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(10, read=None), trust_env=False) as client,
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
