"""A real server over a real Postgres, a network that can be made to fail, and both clients behind one face."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import pytest

from flowledger.client import AsyncClient, Client
from tests.api.serving import Served, served, signed
from tests.client.awaiting import Awaiting, looping
from tests.client.proxy import Proxy
from tests.ledger.conftest import alice, as_user, bob, connect, flow, held, owner, worker  # noqa: F401 - fixtures
from tests.ledger.law import ALICE

Connected = Callable[..., Any]


@pytest.fixture(scope="module")
def server(postgres) -> Iterator[Served]:
    with served(postgres) as running:
        yield running


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with looping() as running:
        yield running


@pytest.fixture
def network(server, database) -> Iterator[Proxy]:
    """Between client and server."""
    with Proxy(server.url).running() as proxy:
        yield proxy


@pytest.fixture(params=["synchronous", "asynchronous"])
def connected(request, server, database, loop) -> Iterator[Connected]:
    """Makes a client of a user's: `connected(user, role=..., url=..., **how)`."""
    with ExitStack() as stack:

        def connected(user: UUID = ALICE, role: str = "authenticated", url: str = server.url, **how: Any) -> Any:
            token = how.pop("token", None) or signed(user, role=role)
            if request.param == "synchronous":
                return stack.enter_context(Client(url, token, **how))
            client = Awaiting(AsyncClient(url, token, **how), loop)
            stack.callback(client.close)
            return client

        yield connected


@pytest.fixture
def client(connected) -> Any:
    """Alice's, straight to the server."""
    return connected()


@pytest.fixture
def shaky(connected, network) -> Any:
    """Alice's, over the network."""
    return connected(url=network.url)
