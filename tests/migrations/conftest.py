"""Databases to migrate: of a plain owner, and of an imitated Supabase project, on every Postgres found here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.bare_postgres import BareServer, installed

HERE = Path(__file__).parent

_OUR_ROLES = ("anon", "authenticated", "service_role")


@dataclass(frozen=True)
class Target:
    """A database, and the role that migrates it."""

    server: BareServer
    owner: str
    name: str

    @property
    def conninfo(self) -> str:
        return self.conninfo_of(self.owner)

    def conninfo_of(self, role: str) -> str:
        return self.server.conninfo(role, self.name)

    def connect(self, role: str | None = None) -> psycopg.Connection:
        return psycopg.connect(self.conninfo_of(role or self.owner), autocommit=True)

    def execute_as_superuser(self, *statements: str) -> None:
        self.server.execute(*statements, dbname=self.name)


@pytest.fixture(scope="session", params=[pytest.param(major, id=f"postgres{major}") for major in installed()])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareServer]:
    server = BareServer(request.param, installed()[request.param], tmp_path_factory.mktemp(f"pg{request.param}"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def plain(server: BareServer) -> Iterator[Target]:
    """A database whose owner may create roles and nothing more; none of our roles exists yet."""
    server.execute("create role plain_owner login createrole", "create database plain owner plain_owner")
    yield Target(server, "plain_owner", "plain")
    _drop(server, "plain", "plain_owner", *_OUR_ROLES)


@pytest.fixture
def supabase(server: BareServer) -> Iterator[Target]:
    """A Supabase project, as far as a schema can tell: see supabase.sql."""
    server.execute((HERE / "supabase_roles.sql").read_text(), "create database supabase owner postgres")
    server.execute((HERE / "supabase.sql").read_text(), dbname="supabase")
    yield Target(server, "postgres", "supabase")
    _drop(server, "supabase", "authenticator", "supabase_auth_admin", *_OUR_ROLES, "postgres")


def _drop(server: BareServer, database: str, *roles: str) -> None:
    server.execute(f"drop database {database} with (force)")
    for role in roles:
        with psycopg.connect(server.conninfo(), autocommit=True) as conn:
            if conn.execute("select 1 from pg_roles where rolname = %s", [role]).fetchone():
                conn.execute(f"drop owned by {role}".encode())
                conn.execute(f"drop role {role}".encode())
