"""The ledger's database for tests: one embedded Postgres for the session, emptied before each test that asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.migrate import migrate


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A private Postgres with the schema in it, the same for the whole session."""
    with EmbeddedPostgres.start(tmp_path_factory.mktemp("embedded")) as postgres:
        migrate(postgres.url("flowledger"))
        yield postgres


@pytest.fixture
def database(postgres: EmbeddedPostgres) -> EmbeddedPostgres:
    """The embedded Postgres with an empty ledger. `url(role)` takes flowledger, flowledger_worker or flowledger_api."""
    with psycopg.connect(postgres.url("flowledger"), autocommit=True) as owner:
        # A test that left a transaction open shall fail here, and not hang.
        owner.execute("set lock_timeout = '10s'")
        owner.execute(
            "truncate public.crewai_flows, flowledger.workers, flowledger.uncounted_executions, flowledger.prunes, "
            "flowledger.prices, flowledger.spending, flowledger.unfolded_spending, "
            "flowledger.tokens, flowledger.logins restart identity cascade"
        )
        owner.execute("update flowledger.settings set value = '10000' where name = 'queue_limit'")
    return postgres
