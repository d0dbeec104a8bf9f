"""A proxy between client and server that does what networks do: refuse, lose answers, stall, cut streams."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(eq=False)
class Exchange:
    """One request. Its connections are closed after it, so that each request may meet another fate."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes
    client: socket.socket
    upstream: tuple[str, int]
    server: socket.socket | None = None

    def forward(self) -> Iterator[bytes]:
        """Asks the server and gives its answer as it comes."""
        with socket.create_connection(self.upstream, timeout=60) as self.server, suppress(OSError):
            self.server.sendall(self.raw)
            while data := self.server.recv(65_536):
                yield data

    def answer(self, data: bytes) -> None:
        self.client.sendall(data)

    def cut(self) -> None:
        for side in (self.client, self.server):
            if side is not None:
                with suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)


Fate = Callable[[Exchange], None]


def passed(exchange: Exchange) -> None:
    for data in exchange.forward():
        exchange.answer(data)


def refused(_: Exchange) -> None:
    """The connection breaks before the server hears of the request."""


def lost(exchange: Exchange) -> None:
    """The server does what it was asked, and its answer never arrives."""
    for _ in exchange.forward():
        pass


def cut_after(count: int) -> Fate:
    """So many bytes of the answer arrive."""

    def fate(exchange: Exchange) -> None:
        left = count
        for data in exchange.forward():
            exchange.answer(data[:left])
            left -= len(data)
            if left <= 0:
                return

    return fate


def answering(status: int, body: str = "", **headers: str) -> Fate:
    """The server never hears of it; somebody in between answers."""

    def fate(exchange: Exchange) -> None:
        given = {"content-length": str(len(body)), **{name.replace("_", "-"): it for name, it in headers.items()}}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        exchange.answer(f"HTTP/1.1 {status} As It Is\r\n{lines}connection: close\r\n\r\n{body}".encode())

    return fate


class Proxy:
    """`url` is where clients find it. `requests` are those that came, in order."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self._fates: deque[tuple[str, Fate]] = deque()
        self._open: set[Exchange] = set()
        self._lock = threading.Lock()
        self.requests: list[Exchange] = []
        self._listener = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._handler(), bind_and_activate=True)
        self._listener.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._listener.server_address[1]}"

    def next(self, *fates: Fate, path: str = "") -> None:
        """What befalls the next requests whose path holds `path`; after them all pass."""
        self._fates.extend((path, fate) for fate in fates)

    def asked(self, path: str) -> list[Exchange]:
        return [one for one in self.requests if path in one.path]

    def cut(self, path: str) -> int:
        """Breaks what is under way. How many that were."""
        with self._lock:
            open_ = [one for one in self._open if path in one.path]
        for one in open_:
            one.cut()
        return len(open_)

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._listener.shutdown()
            self.cut("")
            self._listener.server_close()
            thread.join(10)

    def _handler(self) -> type[socketserver.BaseRequestHandler]:
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):
                    proxy._carry(self.request)

        return Handler

    def _carry(self, client: socket.socket) -> None:
        raw = _read(client)
        if raw is None:
            return
        exchange = _exchange(raw, client, self._upstream)
        with self._lock:
            self.requests.append(exchange)
            self._open.add(exchange)
        try:
            self._fate_of(exchange)(exchange)
        finally:
            with self._lock:
                self._open.discard(exchange)
            exchange.cut()

    def _fate_of(self, exchange: Exchange) -> Fate:
        with self._lock:
            found = next((one for one in self._fates if one[0] in exchange.path), None)
            if found is None:
                return passed
            self._fates.remove(found)
            return found[1]


def _read(client: socket.socket) -> bytes | None:
    """The request, with its body. None: nobody asked."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        data = client.recv(65_536)
        if not data:
            return None
        raw += data
    head, _, body = raw.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
    )
    while len(body) < length:
        body += client.recv(65_536)
    return head + b"\r\nConnection: close\r\n\r\n" + body


def _exchange(raw: bytes, client: socket.socket, upstream: tuple[str, int]) -> Exchange:
    head = raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    return Exchange(method, path, headers, raw, client, upstream)
