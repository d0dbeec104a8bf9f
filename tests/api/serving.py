"""The API as its users meet it: a real server at a real address, over a real Postgres; and tokens to come with."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
import jwt
from fastapi import FastAPI

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.server import application, bound, serving, url_of
from flowledger.settings import Settings

SECRET = "a secret of the tests, long enough to keep"


@dataclass(frozen=True)
class Served:
    """A server that runs. `app` is for looking at, not for calling."""

    url: str
    app: FastAPI
    stop: Callable[[], None]
    """Asks it to end, as a signal does."""
    wait: Callable[[], None]
    """Until it has ended."""

    @property
    def streams(self) -> int:
        """Live streams that are open."""
        open_: int = self.app.state.feed.streams
        return open_

    def as_(self, token: str | None = None, **headers: str) -> httpx.Client:
        """A client that carries this token, or none."""
        given = headers if token is None else {"Authorization": f"Bearer {token}", **headers}
        return httpx.Client(base_url=self.url, headers=given, timeout=30, trust_env=False)

    def as_user(self, user: UUID, role: str = "authenticated") -> httpx.Client:
        return self.as_(signed(user, role=role))


@contextmanager
def served(postgres: EmbeddedPostgres, *, send_buffer: int | None = None, **given: Any) -> Iterator[Served]:
    """`has_login` and `most_connections` are the application's, all else are settings. `send_buffer`, in bytes, is that
    of each connection; None: as the system has it."""
    of_application = {name: given.pop(name) for name in ("has_login", "most_connections") if name in given}
    chosen = Settings(**{"server_port": 0, "jwt_secret": SECRET, **given})
    app = application(chosen, postgres.url("flowledger_api"), **of_application)
    with closing(bound(chosen)) as taken:
        if send_buffer is not None:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        started, stop = threading.Event(), asyncio.Event()
        loops: list[asyncio.AbstractEventLoop] = []

        async def serve() -> None:
            async with serving(app, taken):
                loops.append(asyncio.get_running_loop())
                started.set()
                await stop.wait()

        thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        thread.start()
        assert started.wait(30), "the server did not start"

        def end() -> None:
            if thread.is_alive():
                loops[0].call_soon_threadsafe(stop.set)

        def wait() -> None:
            thread.join(30)
            assert not thread.is_alive(), "the server did not stop"

        try:
            yield Served(url_of(taken), app, end, wait)
        finally:
            end()
            wait()


def signed(user: object, *, key: Any = SECRET, algorithm: str = "HS256", headers: Any = None, **claims: Any) -> str:
    """A JWT for this user, good for a minute; a claim that is given as None is left out."""
    given = {"sub": str(user), "exp": int(time.time()) + 60, **claims}
    payload = {name: value for name, value in given.items() if value is not None}
    return jwt.encode(payload, key, algorithm=algorithm, headers=headers)
