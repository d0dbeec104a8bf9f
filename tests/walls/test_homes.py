"""The same laws in the other homes of the schema: a plain Postgres whose owner is no superuser, and a Supabase project,
which grants everything on what is new to everybody.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flowledger.database.migrate import migrate
from tests.migrations.conftest import Target, plain, server, supabase  # noqa: F401 - fixtures
from tests.walls import functions, grants, probes
from tests.walls.canaries import plant
from tests.walls.law import ANON, EMPTY, READ, A, B
from tests.walls.probes import Connection, connection, tables, with_every_grant

OF_SUPABASE = ("auth.", "public.update_updated_at_column", " to postgres")
"""The platform's own functions, a trigger that nobody can call, and what its owner of everything may."""


@contextmanager
def migrated(home: Target) -> Iterator[Connection]:
    migrate(home.conninfo)
    with connection(home.conninfo) as owner:
        plant(owner)
        yield owner


def breaches(owner: Connection) -> list[str]:
    """Of the policies, with every grant given. Operators are left out: in a Supabase project they stand above."""
    known = tables(owner, "public", "flowledger")
    assert set(known) == set(READ)
    with with_every_grant(owner, known):
        return [found for table in known.values() for found in probes.breaches(owner, table, (A, B, EMPTY, ANON))]


def test_a_plain_postgres_keeps_the_laws(plain: Target) -> None:  # noqa: F811 - the fixture
    with migrated(plain) as owner:
        assert grants.breaches(owner) == []
        assert functions.breaches(owner) == []
        assert breaches(owner) == []


def test_a_supabase_project_keeps_the_laws(supabase: Target) -> None:  # noqa: F811 - the fixture
    with migrated(supabase) as owner:
        assert [one for one in grants.breaches(owner) if not any(known in one for known in OF_SUPABASE)] == []
        assert breaches(owner) == []
        # Its own grants are noticed, or there would be nothing to see.
        owner.execute("create table public.crewai_new (id integer)")
        assert any("crewai_new" in one for one in grants.breaches(owner))
