"""Two users and an operator who come over HTTP, and the database behind it for what only it can bring about."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import httpx
import pytest

from tests.api.serving import Served, served
from tests.ledger.conftest import alice, as_user, bob, connect, flow, owner, worker  # noqa: F401 - fixtures
from tests.ledger.law import ALICE, BOB

CAROL = UUID("ca401000-0000-4000-8000-000000000003")


@pytest.fixture(scope="module")
def server(postgres) -> Iterator[Served]:
    with served(postgres) as running:
        yield running


@pytest.fixture
def as_alice(server, database) -> Iterator[httpx.Client]:
    with server.as_user(ALICE) as client:
        yield client


@pytest.fixture
def as_bob(server, database) -> Iterator[httpx.Client]:
    with server.as_user(BOB) as client:
        yield client


@pytest.fixture
def as_operator(server, database) -> Iterator[httpx.Client]:
    """Carol, who operates the ledger."""
    with server.as_user(CAROL, role="service_role") as client:
        yield client
