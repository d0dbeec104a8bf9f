"""A ledger with canaries in it, and its owner, who sees them all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from tests.empty_ledger import Emptying
from tests.walls.canaries import plant
from tests.walls.probes import Connection, Table, connection, tables


@pytest.fixture(scope="module")
def planted(postgres: EmbeddedPostgres, emptying: Emptying) -> Iterator[EmbeddedPostgres]:
    """The ledger with rows of everybody. Whoever changes them takes it back."""
    emptying()
    with connection(postgres.url("flowledger")) as owner:
        plant(owner)
    yield postgres
    emptying()


@pytest.fixture(scope="module")
def owner(planted: EmbeddedPostgres) -> Iterator[Connection]:
    with connection(planted.url("flowledger")) as owner:
        yield owner


@pytest.fixture(scope="module")
def login(planted: EmbeddedPostgres) -> Iterator[Connection]:
    """As the API and PostgREST log in."""
    with connection(planted.url("flowledger_api")) as login:
        yield login


@pytest.fixture(scope="module")
def known(owner: Connection) -> dict[str, Table]:
    """Every table and view, by name."""
    return tables(owner)
