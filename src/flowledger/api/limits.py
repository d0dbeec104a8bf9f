"""How much one request may bring, and how often one identity may ask."""

from __future__ import annotations

import asyncio
import math
import re
import time

import limits
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowledger.api.problems import problem
from flowledger.database.session import Claims
from flowledger.errors import InvalidInput, NotAuthenticated, RateLimited
from flowledger.settings import Settings

DEEPEST_JSON = 100
"""What the ledger itself can store."""

BODY_SECONDS = 60.0
"""For a whole body."""

FAILURES = "300/minute"
"""Tokens, links and cookies of one address that may be wrong, before none is looked up: each asks the database."""


class Rates:
    """Counts in this process; each has its own count. Raises InvalidInput for a rate that cannot be read."""

    def __init__(self, settings: Settings) -> None:
        try:
            self._allowed = limits.parse(settings.rate_limit)
        except ValueError as wrong:
            raise InvalidInput(
                "setting rate_limit", f"{settings.rate_limit!r} is no rate", "Give one like 500/second or 1000/minute."
            ) from wrong
        self._failures = limits.parse(FAILURES)
        self._windows = FixedWindowRateLimiter(MemoryStorage())

    async def count(self, claims: Claims) -> None:
        """One more request of theirs. Raises RateLimited."""
        key = str(claims.user or claims.role)
        if not await self._windows.hit(self._allowed, "asks", key):
            raise await self._refusal(self._allowed, "asks", key)

    async def admit(self, request: Request) -> None:
        """Raises RateLimited for an address that brought too many wrong tokens."""
        if not await self._windows.test(self._failures, "fails", _address(request)):
            raise await self._refusal(self._failures, "fails", _address(request))

    async def failed(self, request: Request, why: NotAuthenticated) -> NotAuthenticated:
        await self._windows.hit(self._failures, "fails", _address(request))
        return why

    async def _refusal(self, rate: limits.RateLimitItem, *key: str) -> RateLimited:
        window = await self._windows.get_window_stats(rate, *key)
        return RateLimited(str(rate), max(1, math.ceil(window.reset_time - time.time())))


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


class Bodies:
    """Reads each body before anybody else does, as far as it may go; refuses what is too large, too slow, no JSON or
    nested too deeply.
    """

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if "content-length" not in headers and "transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await self._body(headers, receive)
        except TimeoutError:
            await _too_slow()(scope, receive, send)
        except ClientDisconnect:
            # Half a request is none: without its body it might ask for something else.
            return
        else:
            await self._passed_on(scope, body, receive, send)

    async def _passed_on(self, scope: Scope, body: bytes | None, receive: Receive, send: Send) -> None:
        if body is None:
            await self._too_large()(scope, receive, send)
        elif body and not _JSON.match(Headers(scope=scope).get("content-type", "")):
            await _no_json()(scope, receive, send)
        elif is_deeper(body, DEEPEST_JSON):
            await _too_deep()(scope, receive, send)
        else:
            await self._app(scope, _again(body, receive), send)

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        """None: it is too large, which may show before it is read. Raises ClientDisconnect."""
        told = headers.get("content-length", "0")
        if told.isdigit() and int(told[:20]) > self._most_bytes:
            return None
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._most_bytes:
                return None
        return bytes(body)

    def _too_large(self) -> Response:
        return _unread(
            problem(
                413,
                "body_too_large",
                f"the body is larger than {self._most_bytes:,} bytes",
                remedy="Send less, or raise FLOWLEDGER_MAX_BODY_BYTES.",
                field="body",
            )
        )


def _too_slow() -> Response:
    title = f"the body did not come within {BODY_SECONDS:g} seconds"
    return _unread(problem(408, "request_too_slow", title, remedy="Send it at once.", field="body"))


def _unread(answer: Response) -> Response:
    """What was not read cannot be told from the next request."""
    answer.headers["connection"] = "close"
    return answer


def _no_json() -> Response:
    title, remedy = "the body does not say that it is JSON", "Send `Content-Type: application/json`."
    return problem(415, "not_json", title, remedy=remedy, field="Content-Type")


def _too_deep() -> Response:
    title = f"the JSON is nested more than {DEEPEST_JSON} levels deep"
    return problem(422, "json_too_deep", title, remedy="Flatten it.", field="body")


def _again(body: bytes, receive: Receive) -> Receive:
    """What was read, then what comes: that the client left."""
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


_JSON = re.compile(r"application/([\w.-]+\+)?json\s*(;|$)", re.IGNORECASE)
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


def is_deeper(text: bytes, levels: int) -> bool:
    """Whether brackets outside of texts are nested more than so many levels deep; without reading the JSON itself."""
    if text.count(b"[") + text.count(b"{") <= levels:
        return False
    depth = 0
    for bracket in _BRACKET.finditer(_TEXT.sub(b"", text)):
        depth += 1 if bracket[0] in (b"[", b"{") else -1
        if depth > levels:
            return True
    return False
