"""The ledger's database for tests: one embedded Postgres for the session, emptied before each test that asks for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.migrate import migrate
from flowledger.database.supervisor import Place
from tests.empty_ledger import Emptying


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A private Postgres with the schema in it, the same for the whole session."""
    with EmbeddedPostgres.start(tmp_path_factory.mktemp("embedded")) as postgres:
        _need_not_sync(postgres)
        migrate(postgres.url("flowledger"))
        yield postgres


def _need_not_sync(postgres: EmbeddedPostgres) -> None:
    """By its operator's own file: what the session's server holds need not outlive a power failure."""
    cluster = Place(postgres.data_dir).cluster
    with (cluster / "postgresql.conf").open("a") as file:
        file.write("fsync = off\n")
    os.kill(int((cluster / "postmaster.pid").read_text().split("\n", 1)[0]), signal.SIGHUP)


@pytest.fixture(scope="session")
def emptying(postgres: EmbeddedPostgres) -> Iterator[Emptying]:
    emptying = Emptying(postgres.url("flowledger"))
    yield emptying
    emptying.close()


@pytest.fixture
def database(postgres: EmbeddedPostgres, emptying: Emptying) -> EmbeddedPostgres:
    """The embedded Postgres with an empty ledger. `url(role)` takes flowledger, flowledger_worker or flowledger_api."""
    emptying()
    return postgres
