"""Connections, and whom they speak for.

`session(claims)` is one transaction under one role and one identity: from there on row-level security decides. The
worker's `service()` is a plain autocommit connection: what it calls are single functions, each its own transaction.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Self
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, errors, sql
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Format
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from flowledger.errors import (
    BudgetUsedUp,
    DatabaseBusy,
    DatabaseUnreachable,
    FlowledgerError,
    InvalidInput,
    PermissionRefused,
    QueueFull,
    TransitionRefused,
)

Connection = AsyncConnection[DictRow]

CONNECT_SECONDS = 10
ANSWER_SECONDS = 30.0
"""A connection that says nothing for so long is given up. What it was asked may still be carried out."""
_IDLE_IN_TRANSACTION_MS = 30_000
_LOCK_TIMEOUT_MS = 2_000
_DEEPEST_JSON = 200

UNREADABLE = "$unreadable"
"""The only key of what stands for a JSON value that Postgres holds and Python cannot read; its value tells why."""


@dataclass(frozen=True)
class Claims:
    """Who asks. `user` is what `auth.uid()` answers; None for an operator who is nobody in particular.

    `token` is the personal token that they came with, if any; `read_only` transactions change nothing, whatever the
    role may do.
    """

    user: UUID | None
    role: str = "authenticated"
    token: UUID | None = None
    read_only: bool = False

    @classmethod
    def of_operator(cls) -> Claims:
        return cls(user=None, role="service_role")

    @classmethod
    def of_nobody(cls) -> Claims:
        """Before it is known who asks."""
        return cls(user=None, role="anon")

    @property
    def is_operator(self) -> bool:
        return self.role == "service_role"


@dataclass(frozen=True)
class PoolUse:
    """How a pool is used now: connections that are open and those of them that nobody uses, how many there may be, and
    how many requests wait for one.
    """

    open: int
    idle: int
    most: int
    waiting: int


class Database:
    """A pool of connections to the ledger's Postgres. `conninfo` is any libpq URL or keyword string."""

    def __init__(self, conninfo: str, *, most_connections: int = 8) -> None:
        self.conninfo = conninfo
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            conninfo,
            min_size=1,
            max_size=most_connections,
            open=False,
            timeout=CONNECT_SECONDS,
            reconnect_timeout=CONNECT_SECONDS,
            check=_check,
            connection_class=AsyncConnection[DictRow],
            configure=_configure,
            kwargs={
                "row_factory": dict_row,
                "autocommit": True,
                "connect_timeout": CONNECT_SECONDS,
                # Behind a pooler in transaction mode the next statement may meet another server process.
                "prepare_threshold": None,
            },
        )

    async def __aenter__(self) -> Self:
        with translated(self.conninfo):
            # Opening by hand first tells why a connection fails; a pool only says that it waited too long.
            await (await AsyncConnection.connect(self.conninfo, connect_timeout=CONNECT_SECONDS)).close()
            await self._pool.open(wait=True, timeout=CONNECT_SECONDS)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close()

    @property
    def pool(self) -> PoolUse:
        told = self._pool.get_stats()
        return PoolUse(
            open=told["pool_size"],
            idle=told["pool_available"],
            most=told["pool_max"],
            waiting=told.get("requests_waiting", 0),
        )

    @asynccontextmanager
    async def session(self, claims: Claims) -> AsyncIterator[Connection]:
        """One transaction as `claims`. Raises the ledger's errors in place of the driver's."""
        async with self._connection(ANSWER_SECONDS) as connection:
            await connection.execute(_begin(claims))
            yield connection
            await connection.commit()

    @asynccontextmanager
    async def service(self, patience: float = ANSWER_SECONDS) -> AsyncIterator[Connection]:
        """A connection as the login role, which inherits the service role; every statement is a transaction.

        Raises DatabaseUnreachable when there is no answer within `patience` seconds.
        """
        async with self._connection(patience) as connection:
            yield connection

    @asynccontextmanager
    async def _connection(self, patience: float) -> AsyncIterator[Connection]:
        silence_ends = asyncio.get_running_loop().time() + patience
        with translated(self.conninfo):
            # Leaving the pool's block rolls back what an error left open.
            async with self._pool.connection(timeout=min(patience, CONNECT_SECONDS)) as connection:
                with Patience(connection, silence_ends) as patient:
                    try:
                        yield connection
                    finally:
                        if patient.has_ended:
                            # The others were made through the same network and may be as dead.
                            await self._pool.drain()


@lru_cache(maxsize=1024)
def _begin(claims: Claims) -> sql.Composed:
    """Opens a transaction under the role and the claims, in one message: each round trip costs more than the work."""
    sub = str(claims.user) if claims.user else ""
    told = {"sub": sub, "role": claims.role, "token": str(claims.token or "")}
    settings = {
        "role": claims.role,
        "request.jwt.claim.sub": sub,
        "request.jwt.claims": json.dumps({name: value for name, value in told.items() if value}),
        "lock_timeout": str(_LOCK_TIMEOUT_MS),
        "idle_in_transaction_session_timeout": str(_IDLE_IN_TRANSACTION_MS),
    }
    calls = [
        sql.SQL("set_config({}, {}, true)").format(sql.Literal(name), sql.Literal(value))
        for name, value in settings.items()
    ]
    begin = "begin read only; select {}" if claims.read_only else "begin; select {}"
    return sql.SQL(begin).format(sql.SQL(", ").join(calls))


async def _configure(connection: Connection) -> None:
    set_json_loads(_read_json, connection)
    connection.adapters.register_loader("timestamptz", _AnyTime)


_StrictTime = psycopg.adapters.get_loader(psycopg.adapters.types["timestamptz"].oid, Format.TEXT)


class _AnyTime(Loader):
    """Postgres holds times from 4713 BC to 294276 and two infinities; Python's have four digits for the year. What lies
    outside is told as the first or the last time there is, so that such a row does not stop its readers.
    """

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        assert _StrictTime is not None
        self._strict = _StrictTime(oid, context)

    def load(self, data: Buffer) -> Any:
        try:
            return self._strict.load(data)
        except (psycopg.DataError, OverflowError, ValueError):
            text = bytes(data)
            is_before = text.startswith(b"-") or text.endswith(b"BC")
            return datetime.min.replace(tzinfo=UTC) if is_before else datetime.max.replace(tzinfo=UTC)


def _read_json(data: str | bytes) -> Any:
    """Postgres holds deeper nesting and longer numbers than Python reads. A user's row must not stop its readers."""
    try:
        value = json.loads(data)
    except RecursionError:
        return {UNREADABLE: "it is nested too deeply"}
    except ValueError as wrong:
        return {UNREADABLE: str(wrong)}
    if len(data) > 2 * _DEEPEST_JSON and _is_deeper(value, _DEEPEST_JSON):
        return {UNREADABLE: "it is nested too deeply"}
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        objects = (item.values() if isinstance(item, dict) else item for item in level)
        level = [child for children in objects for child in children if isinstance(child, dict | list) and child]
        if not level:
            return False
    return True


async def _check(connection: Connection) -> None:
    """Raises if the server has left. It would have sent its farewell, so a silent connection costs no round trip."""
    arrived = select.poll()
    arrived.register(connection.fileno(), select.POLLIN)
    if arrived.poll(0):
        await AsyncConnectionPool.check_connection(connection)


class Patience:
    """Shuts the connection's socket when it is `ends_at` by the loop's clock and its block still waits.

    A server that left without a word, or a proxy that forgot the connection, would be waited for without end; and to
    cancel a statement is to ask the same silent server for an answer.
    """

    def __init__(self, connection: AsyncConnection[Any], ends_at: float) -> None:
        self._connection = connection
        self._ends_at = ends_at
        self.has_ended = False

    def __enter__(self) -> Self:
        self._timer = asyncio.get_running_loop().call_at(self._ends_at, self._hang_up)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _hang_up(self) -> None:
        self.has_ended = True
        if not self._connection.closed:
            with socket.socket(fileno=os.dup(self._connection.fileno())) as wire, suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)


@contextmanager
def connected(conninfo: str) -> Iterator[psycopg.Connection[Any]]:
    """One plain connection, for tools that look at the database as a whole. Raises the ledger's errors."""
    with translated(conninfo), psycopg.connect(conninfo, connect_timeout=CONNECT_SECONDS) as connection:
        yield connection


@contextmanager
def translated(conninfo: str) -> Iterator[None]:
    """Turns what Postgres refuses into errors that name it; connection trouble into `DatabaseUnreachable`."""
    try:
        yield
    except (psycopg.Error, PoolTimeout) as error:
        told = _told(error, conninfo)
        if told is None:
            raise
        raise told from error


def _told(error: psycopg.Error | PoolTimeout, conninfo: str) -> FlowledgerError | None:
    state = getattr(error, "sqlstate", None) or ""
    message = error.diag.message_primary or str(error) if isinstance(error, psycopg.Error) else str(error)
    match state:
        case "FL001":
            return InvalidInput("execution", message, _diag(error, "message_hint"))
        case "FL002" | "FL003" | "FL004":
            return TransitionRefused(message)
        case "FL006":
            return QueueFull(int(_diag(error, "message_detail") or 0))
        case "FL007":
            return BudgetUsedUp(message)
        case "42501" | "25006":
            return PermissionRefused(message)
    if state[:2] in _BUSY:
        return DatabaseBusy(message)
    if isinstance(error, errors.OperationalError | PoolTimeout):
        return DatabaseUnreachable(address(conninfo), message.strip().splitlines()[0])
    return None


_BUSY = ("40", "53", "55")
"""SQLSTATE classes: transaction rollback (deadlock, serialization), insufficient resources, object not in its state."""


def _diag(error: Any, field: str) -> str:
    return getattr(error.diag, field) or ""


def checked(conninfo: str) -> str:
    """The conninfo itself. Raises InvalidInput if libpq cannot read it."""
    try:
        conninfo_to_dict(conninfo)
    except psycopg.Error as wrong:
        raise InvalidInput(
            "database_url", "is no Postgres URL", "Give one like postgresql://user@host:5432/database."
        ) from wrong
    return conninfo


def password(conninfo: str) -> str:
    """The password in a conninfo; empty if there is none."""
    return str(conninfo_to_dict(conninfo).get("password") or "")


def address(conninfo: str) -> str:
    """Host, port and database of a conninfo, fit to be shown: no password."""
    parts = conninfo_to_dict(conninfo)
    host = parts.get("host") or "local socket"
    return f"{host}:{parts.get('port') or 5432}/{parts.get('dbname') or ''}"
