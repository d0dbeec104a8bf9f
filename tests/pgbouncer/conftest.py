"""PgBouncer in transaction mode in front of the session's Postgres: one transaction, one server connection, no more.

The ledger's own tests run here once more through it. What holds a session's state by its nature (a user as PostgREST
has one, the owner, LISTEN) goes to Postgres directly.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.supervisor import DATABASE, PORT, ROLES
from tests.acceptance.product import wait_for
from tests.ledger.conftest import Connect, alice, as_user, bob, flow, owner, worker

__all__ = ["alice", "as_user", "bob", "connect", "database", "flow", "owner", "worker"]

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
# It refuses root, as Postgres does; its files stay root's all the same.
_AS_NOBODY = ("unshare", "--user", "--map-user=65534", "--map-group=65534") if os.geteuid() == 0 else ()
_SERVER_CONNECTIONS = 3
"""For each login: fewer than the clients that the tests open, so that they are shared indeed."""


@dataclass(frozen=True)
class Pooled:
    """Stands in for an `EmbeddedPostgres`: what a worker and the API reach is the pooler."""

    behind: EmbeddedPostgres
    port: int

    @property
    def data_dir(self) -> Path:
        return self.behind.data_dir

    def url(self, role: str) -> str:
        if role == "flowledger":
            return self.behind.url(role)
        return f"postgresql://{role}@127.0.0.1:{self.port}/{DATABASE}"


@pytest.fixture(scope="package")
def pooled(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pooled]:
    if PROGRAM is None:
        pytest.skip("pgbouncer is not installed: apt-get install pgbouncer")
    directory, port = tmp_path_factory.mktemp("pgbouncer"), _free_port()
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [*_AS_NOBODY, PROGRAM, _configured(postgres, directory, port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        pooled = Pooled(postgres, port)
        wait_for(lambda: _answers(pooled, process, directory / "log"), seconds=15, what="pgbouncer answers")
        yield pooled
    finally:
        process.terminate()
        process.wait(10)


def _configured(postgres: EmbeddedPostgres, directory: Path, port: int) -> Path:
    passwords = {role: conninfo_to_dict(postgres.url(role))["password"] for role in ROLES}
    users = directory / "users"
    users.write_text("".join(f'"{role}" "{password}"\n' for role, password in passwords.items()))
    users.chmod(0o600)
    settings = directory / "pgbouncer.ini"
    settings.write_text(
        f"""
        [databases]
        {DATABASE} = host={postgres.socket_dir} port={PORT} dbname={DATABASE}
        [pgbouncer]
        pool_mode = transaction
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = trust
        auth_file = {users}
        default_pool_size = {_SERVER_CONNECTIONS}
        """.replace("\n        ", "\n")
    )
    return settings


def _answers(pooled: Pooled, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        with psycopg.connect(pooled.url("flowledger_worker"), connect_timeout=2) as connection:
            return connection.execute("select 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False


@pytest.fixture
def database(pooled: Pooled, database: EmbeddedPostgres) -> Pooled:
    """Emptied as ever."""
    assert database is pooled.behind
    return pooled


@pytest.fixture
def connect(database: Pooled) -> Iterator[Connect]:
    with ExitStack() as stack:

        def connect(login: str) -> psycopg.Connection:
            place = database if login == "flowledger_worker" else database.behind
            conn = psycopg.connect(place.url(login), autocommit=True, row_factory=dict_row, prepare_threshold=None)
            conn.execute("set lock_timeout = '10s'; set statement_timeout = '30s'")
            return stack.enter_context(conn)

        yield connect


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port: int = held.getsockname()[1]
        return port
