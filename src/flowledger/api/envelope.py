"""What surrounds every request: its id, the headers of every answer, the fact that it was asked."""

from __future__ import annotations

import re
import time
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowledger.api.problems import fault

_log = structlog.get_logger("flowledger.api")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PROBES = ("/api/v1/health", "/api/v1/readiness")

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""For answers that do not say otherwise."""


class Envelope:
    """Outermost, so that refusals and faults have an id and headers as well."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = _request_id(scope)
        status: int | None = None

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _complete(message, request_id, is_https=scope.get("scheme") == "https")
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            answer = fault(scope["path"], error, request_id)
            if status is not None:
                # Half an answer cannot be taken back: uvicorn closes the connection.
                raise
            await answer(scope, receive, sending)
        finally:
            _tell(scope, status, began)


def _request_id(scope: Scope) -> str:
    """The caller's own, if it is one that may stand in a log."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid4().hex


def _complete(message: Message, request_id: str, *, is_https: bool) -> None:
    headers = MutableHeaders(scope=message)
    headers["X-Request-Id"] = request_id
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    if is_https:
        headers.setdefault("Strict-Transport-Security", "max-age=31536000")


def _tell(scope: Scope, status: int | None, began: float) -> None:
    """The path without its query, which may hold a secret or what was searched for. Status None: nothing was sent."""
    claims = scope["state"].get("claims")
    log = _log.debug if scope["path"] in _PROBES else _log.info
    log(
        "request",
        request=scope["state"]["request_id"],
        method=scope["method"],
        path=scope["path"],
        status=status,
        duration_ms=round((time.monotonic() - began) * 1000, 1),
        user=None if claims is None else str(claims.user),
        role=None if claims is None else claims.role,
    )
