"""The API as its users meet it: a real server at a real address, over a real Postgres; and tokens to come with."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
import jwt
import uvicorn
from fastapi import FastAPI

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.server import application
from flowledger.settings import Settings

SECRET = "a secret of the tests, long enough to keep"


@dataclass(frozen=True)
class Served:
    """A server that runs. `app` is for looking at, not for calling."""

    url: str
    app: FastAPI

    def as_(self, token: str | None = None, **headers: str) -> httpx.Client:
        """A client that carries this token, or none."""
        given = headers if token is None else {"Authorization": f"Bearer {token}", **headers}
        return httpx.Client(base_url=self.url, headers=given, timeout=30, trust_env=False)

    def as_user(self, user: UUID, role: str = "authenticated") -> httpx.Client:
        return self.as_(signed(user, role=role))


@contextmanager
def served(postgres: EmbeddedPostgres, **given: Any) -> Iterator[Served]:
    chosen = Settings(**{"jwt_secret": SECRET, **given})
    app = application(chosen, postgres.url("flowledger_api"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        try:
            yield Served(f"http://127.0.0.1:{taken.getsockname()[1]}", app)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive(), "the server did not stop"


def signed(user: object, *, key: Any = SECRET, algorithm: str = "HS256", headers: Any = None, **claims: Any) -> str:
    """A JWT for this user, good for a minute; a claim that is given as None is left out."""
    given = {"sub": str(user), "exp": int(time.time()) + 60, **claims}
    payload = {name: value for name, value in given.items() if value is not None}
    return jwt.encode(payload, key, algorithm=algorithm, headers=headers)
