"""Connections under the ledger's real roles: its owner, a worker, and users who come through the API's login."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.ledger.law import ALICE, BOB, Row, running

Connect = Callable[..., psycopg.Connection]


@pytest.fixture
def connect(database) -> Iterator[Connect]:
    """A new connection as one of the server's logins."""
    with ExitStack() as stack:

        def connect(login: str) -> psycopg.Connection:
            conn = psycopg.connect(database.url(login), autocommit=True, row_factory=dict_row)
            # A test that would wait for ever fails instead.
            conn.execute("set lock_timeout = '10s'; set statement_timeout = '30s'")
            return stack.enter_context(conn)

        yield connect


@pytest.fixture
def as_user(connect) -> Connect:
    """A new connection that speaks for a user, or for anybody with role anon."""

    def as_user(user: object = None, role: str = "authenticated") -> psycopg.Connection:
        conn = connect("flowledger_api")
        conn.execute(f"set role {role}")
        claims = {"role": role} if user is None else {"role": role, "sub": str(user)}
        conn.execute(
            "select set_config('request.jwt.claim.sub', %s, false), set_config('request.jwt.claims', %s, false)",
            [claims.get("sub", ""), json.dumps(claims)],
        )
        return conn

    return as_user


@pytest.fixture
def owner(connect):
    return connect("flowledger")


@pytest.fixture
def worker(connect):
    return connect("flowledger_worker")


@pytest.fixture
def alice(as_user):
    return as_user(ALICE)


@pytest.fixture
def bob(as_user):
    return as_user(BOB)


@pytest.fixture
def flow(worker) -> UUID:
    """An active flow, as the operator's project made it known."""
    row = worker.execute("select id from flowledger.remember_flow('FLOW', 'Flow', '', '{}', '')").fetchone()
    return row["id"]


@pytest.fixture
def held(alice, worker, flow) -> Row:
    """The claim of an execution of Alice's."""
    return running(alice, worker, flow)
