"""One connection: uvicorn's own, with bounds on what comes before there is a request, and a way to hang up.

uvicorn reads a head (request line and headers) of any size, for any time. What is refused here never becomes a request:
it is answered with a problem all the same, and has an id.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from uuid import uuid4

import structlog
from fastapi.responses import JSONResponse
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from flowledger.api.envelope import HEADERS
from flowledger.api.problems import problem

_log = structlog.get_logger("flowledger.api")

MOST_HEAD_BYTES = 32_768
HEAD_SECONDS = 20.0
"""For a whole head, from its first byte, and for the first byte of a new connection."""


class Connection(HttpToolsProtocol):
    """As told to uvicorn."""

    _head_bytes = 0
    _is_in_head = True
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_in_head:
            self._wait_for_head()
            self._head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > MOST_HEAD_BYTES:
            self._refuse(_too_large())

    # -- What the parser tells ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["hang_up"] = self.hang_up

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MOST_HEAD_BYTES:
            self._refuse(_too_large())
            raise ValueError("the parser must not go on")
        self._wait_no_more()
        self._is_in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_in_head = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - it says "Invalid HTTP request received."
        self._refuse(problem(400, "not_http", "This is no HTTP request.", remedy="Check the request line and headers."))

    def hang_up(self) -> None:
        """At once, with a reset: what is still on its way to a client that does not read would wait for it."""
        wire = self.transport.get_extra_info("socket")
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    # -- Refusing -----------------------------------------------------------------------------------------------------

    def _wait_for_head(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        if not self._head_bytes:
            # Browsers open connections before they know what for.
            self.transport.close()
            return
        title = f"no whole request came within {HEAD_SECONDS:g} seconds"
        self._refuse(problem(408, "request_too_slow", title, remedy="Send it at once."))

    def _refuse(self, answer: JSONResponse) -> None:
        if self.transport.is_closing():
            return
        request_id = uuid4().hex
        _log.info("request_refused", request=request_id, status=answer.status_code)
        answer.headers.update({**HEADERS, "X-Request-Id": request_id, "Connection": "close"})
        lines = [b"%b: %b\r\n" % header for header in answer.raw_headers]
        self.transport.write(b"".join([STATUS_LINE[answer.status_code], *lines, b"\r\n", bytes(answer.body)]))
        self.transport.close()


def _too_large() -> JSONResponse:
    title = f"request line and headers are larger than {MOST_HEAD_BYTES:,} bytes"
    return problem(431, "headers_too_large", title, remedy="Send fewer or shorter headers, and a shorter query.")
