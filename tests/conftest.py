"""The ledger's database for tests: one embedded Postgres for the session, emptied before each test that asks for it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import structlog
from hypothesis import settings
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.migrate import migrate
from flowledger.database.supervisor import ROLES, Place
from tests.empty_ledger import Emptying

# How long an example takes says nothing on a busy machine.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


HERE = Path(__file__).parent
LONG = (
    "accounting",
    "runner",
    "worker",
    "cli",
    "walls",
    "api",
    "client",
    "telemetry",
    "registry",
    "acceptance",
    "examples",
    "ledger",
)
"""Folders that take long, the longest first: with one of them at the end, all processors but one would be idle."""


@pytest.fixture(autouse=True)
def every_fact_is_heard() -> None:
    """Whatever level of log a command of an earlier test asked for; on stderr, as everywhere."""
    structlog.reset_defaults()
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In which order test processes take the files."""
    order = {folder: number for number, folder in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.relative_to(HERE).parts[0], len(LONG)))


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A private Postgres with the schema in it, the same for the whole session."""
    with EmbeddedPostgres.start(tmp_path_factory.mktemp("embedded")) as postgres:
        _need_not_sync(postgres)
        _prove_passwords_quickly(postgres)
        migrate(postgres.url("flowledger"))
        yield postgres


def _need_not_sync(postgres: EmbeddedPostgres) -> None:
    """By its operator's own file: what the session's server holds need not outlive a power failure."""
    cluster = Place(postgres.data_dir).cluster
    with (cluster / "postgresql.conf").open("a") as file:
        file.write("fsync = off\n")
    os.kill(int((cluster / "postmaster.pid").read_text().split("\n", 1)[0]), signal.SIGHUP)


def _prove_passwords_quickly(postgres: EmbeddedPostgres) -> None:
    """The same passwords: thousands of connections need not repeat thousands of hashes each."""
    for role in ROLES:
        with psycopg.connect(postgres.url(role)) as itself:
            itself.execute("set scram_iterations = 1")
            password = conninfo_to_dict(postgres.url(role))["password"]
            itself.execute(sql.SQL("alter role {} password {}").format(sql.Identifier(role), sql.Literal(password)))


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
