"""A Postgres that may go away, on TCP as in a network, and a proxy that can fall silent between it and a worker."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from flowledger.database.migrate import migrate
from flowledger.database.supervisor import DATABASE
from tests.acceptance.product import Product, Row, wait_for
from tests.bare_postgres import BareServer
from tests.ledger.invariants import broken

ENDED = ("completed", "failed", "cancelled", "timeout")

_LOGINS = (
    "create role anon nologin",
    "create role authenticated nologin",
    "create role service_role nologin",
    "create role flowledger createrole login",
    "create role flowledger_worker login",
    "create role flowledger_api noinherit login",
    "grant anon, authenticated, service_role to flowledger with admin option",
    "grant service_role to flowledger_worker",
    "grant anon, authenticated, service_role to flowledger_api",
    f"create database {DATABASE} owner flowledger",
)


class NetworkPostgres:
    """A Postgres with the product's logins and schema, on a port of the loopback, in place of an embedded one."""

    def __init__(self, server: BareServer, data_dir: Path) -> None:
        self._server = server
        self.data_dir = data_dir

    @property
    def port(self) -> int:
        return self._server.port

    def start(self) -> None:
        self._server.initialize()
        self.up()
        self._server.execute(*_LOGINS)
        migrate(self.url("flowledger"))

    def up(self) -> None:
        self._server.launch(listen_addresses="127.0.0.1")

    def down(self, mode: str) -> None:
        """`immediate` is a crash, `fast` a clean stop."""
        self._server.stop(mode)

    def url(self, role: str, port: int | None = None) -> str:
        return f"postgresql://{role}@127.0.0.1:{port or self.port}/{DATABASE}"

    def as_superuser(self, *statements: str) -> None:
        self._server.execute(*statements, dbname=DATABASE)


class Proxy:
    """Forwards TCP. `freeze` stops that without closing anything: to both ends the other is there and says nothing."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[_Pair] = []
        self._open = threading.Event()
        self._open.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self, *, newcomers: bool) -> None:
        """What is connected now never gets through again; newcomers neither, until `thaw`, if they are meant too."""
        if newcomers:
            self._open.clear()
        for pair in self._pairs:
            pair.going.clear()

    def thaw(self) -> None:
        self._open.set()

    def close(self) -> None:
        self._listener.close()
        for pair in self._pairs:
            pair.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        self._open.wait()
        try:
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            client.close()
            return
        pair = _Pair(client, server)
        self._pairs.append(pair)
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=pair.pump, args=(source, sink), daemon=True).start()


@dataclass
class _Pair:
    client: socket.socket
    server: socket.socket
    going: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.going.set()

    def pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while (data := source.recv(65536)) and self.going.is_set():
                sink.sendall(data)
        if self.going.is_set():
            self.close()

    def close(self) -> None:
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def proxied(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port: int = held.getsockname()[1]
        return port


def at_rest(product: Product, executions: list[UUID], *, seconds: float) -> list[Row]:
    """The rows once all have ended: none is lost or stuck, none ran or ended twice, and no invariant is broken."""

    def look() -> list[Row]:
        rows = product.sql(
            "select * from crewai_flow_executions where id = any (%s) and status = any (%s)", executions, list(ENDED)
        )
        return rows if len(rows) == len(executions) else []

    rows = {row["id"]: row for row in wait_for(look, seconds=seconds, what="all have ended")}
    with psycopg.connect(product.postgres.url("flowledger"), autocommit=True, row_factory=dict_row) as owner:
        assert broken(owner) == []
    for execution in executions:
        assert product.logs(execution).count("asleep") <= 1, "its flow started twice"
    return [rows[execution] for execution in executions]


def running(product: Product, number: int, **inputs: object) -> list[UUID]:
    """Executions of the slow flow, once all of them run."""
    executions = [product.kickoff("slow", **inputs) for _ in range(number)]
    for execution in executions:
        product.running(execution)
    return executions


def works_again(product: Product, slots: int) -> None:
    """Both workers, with all of their slots."""
    executions = [product.kickoff("slow", seconds=1) for _ in range(2 * slots)]
    at_rest(product, executions, seconds=20)
    holders = product.sql(
        "select worker_id, count(*) as n, min(error_type) as error from flowledger.transitions "
        "join crewai_flow_executions as executions on executions.id = execution_id "
        "where to_status = 'running' and execution_id = any (%s) group by worker_id",
        executions,
    )
    assert [(one["n"], one["error"]) for one in holders] == [(slots, None)] * 2
