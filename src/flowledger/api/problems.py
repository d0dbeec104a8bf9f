"""Errors as HTTP tells them: problems (RFC 9457). The only place where an error gets a status."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from flowledger import errors
from flowledger.errors import FlowledgerError

_log = structlog.get_logger("flowledger.api")

MEDIA_TYPE = "application/problem+json"

STATUSES: tuple[tuple[type[FlowledgerError], int], ...] = (
    (errors.FeedbackNotAwaited, 400),
    (errors.NotAuthenticated, 401),
    (errors.PermissionRefused, 403),
    (errors.ScopeRefused, 403),
    (errors.OriginRefused, 403),
    (errors.FlowNotFound, 404),
    (errors.ExecutionNotFound, 404),
    (errors.TokenNotFound, 404),
    (errors.PriceNotFound, 404),
    (errors.BudgetNotFound, 404),
    (errors.AmbiguousReference, 409),
    (errors.TransitionRefused, 409),
    (errors.InvalidInput, 422),
    (errors.QueueFull, 429),
    (errors.RateLimited, 429),
    (errors.BudgetUsedUp, 429),
    (errors.TooManyStreams, 429),
    (errors.DatabaseBusy, 503),
    (errors.DatabaseUnreachable, 503),
    (errors.KeysUnavailable, 503),
    (errors.SchemaTooOld, 503),
    (errors.SchemaTooNew, 503),
)

OF_HTTP: dict[str, tuple[int, str, str, str]] = {
    "not_http": (
        400,
        "What came is no request.",
        "This is no HTTP request.",
        "Check the request line and headers.",
    ),
    "unreadable_body": (400, "The body is no text.", "the body cannot be read", "Send JSON in UTF-8."),
    "not_found": (404, "There is no such path.", "there is nothing at ‹path›", "/docs shows what there is."),
    "method_not_allowed": (
        405,
        "The path is there, and takes other methods: `Allow` tells which.",
        "‹method› is not for ‹path›",
        "Ask with ‹methods›.",
    ),
    "request_too_slow": (
        408,
        "Headers have 20 seconds to come, and a body 60.",
        "the body did not come within 60 seconds",
        "Send it at once.",
    ),
    "body_too_large": (
        413,
        "The body is larger than the server reads.",
        "the body is larger than ‹bytes› bytes",
        "Send less, or raise FLOWLEDGER_MAX_BODY_BYTES.",
    ),
    "not_json": (
        415,
        "The body is something else, or does not say what it is.",
        "the body does not say that it is JSON",
        "Send `Content-Type: application/json`.",
    ),
    "host_refused": (
        421,
        "The request was made to a name that the server does not answer to.",
        "this name is not served here",
        "Add it to FLOWLEDGER_ALLOWED_HOSTS.",
    ),
    "invalid_request": (
        422,
        "Fields or parameters do not fit. `faults` names each, and what is wrong with it.",
        "The request does not fit its schema.",
        "",
    ),
    "json_too_deep": (
        422,
        "The body is nested more deeply than the ledger can store.",
        "the JSON is nested more than 100 levels deep",
        "Flatten it.",
    ),
    "headers_too_large": (
        431,
        "The path with its query and the headers are larger than the server reads.",
        "request line and headers are larger than 32,768 bytes",
        "Send fewer or shorter headers, and a shorter query.",
    ),
    "internal": (
        500,
        "A fault of flowledger's own. `request` is the id under which its log has the story.",
        "This is a fault of flowledger's own.",
        "",
    ),
}
"""What no error of the ledger's stands behind: code -> status, meaning, an example of its title and its remedy."""

_PASSING = (429, 503)
_RETRY_SECONDS = 5


def install(app: FastAPI) -> None:
    """Every error leaves as a problem; what nobody expected, through the envelope's `fault`."""
    app.add_exception_handler(FlowledgerError, _told)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _http)  # type: ignore[arg-type]


def problem(status: int, code: str, title: str, **more: Any) -> JSONResponse:
    """`type` is where the code is explained; what is None is left out."""
    facts = {"type": f"/docs/problems#{code}", "title": title, "status": status, "code": code, **more}
    body = {name: value for name, value in facts.items() if value is not None}
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return _Problem(body, status, headers)


class _Problem(JSONResponse):
    """In ASCII: what is wrong with a request may be a character that no encoding has, half a surrogate pair."""

    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


def fault(path: str, error: Exception, request_id: str) -> JSONResponse:
    """What flowledger did not expect. The log has the story, under the request's id."""
    _log.error("request_failed", path=path, request=request_id, exc_info=error)
    return problem(500, "internal", "This is a fault of flowledger's own.", request=request_id)


async def _told(_: Request, error: FlowledgerError) -> JSONResponse:
    return told(error)


def told(error: FlowledgerError) -> JSONResponse:
    """The error as a problem."""
    status = next((status for kind, status in STATUSES if isinstance(error, kind)), 500)
    field = getattr(error, "field", None)
    # With its facts the client makes the same error of it again.
    facts = {fact.name: getattr(error, fact.name) for fact in fields(error)}  # type: ignore[arg-type]
    answer = problem(status, error.code, error.title, remedy=error.hint or None, field=field, facts=facts)
    if status in _PASSING:
        answer.headers["Retry-After"] = str(getattr(error, "seconds", _RETRY_SECONDS))
    return answer


async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    return told_invalid(error)


def told_invalid(error: RequestValidationError) -> JSONResponse:
    """A request that does not fit its schema, as a problem with each field that is wrong."""
    faults = [
        {"field": ".".join(str(part) for part in fault["loc"][1:]) or str(fault["loc"][0]), "what": fault["msg"]}
        for fault in error.errors()
    ]
    return problem(422, "invalid_request", "The request does not fit its schema.", faults=faults)


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    return told_http(request, error)


def told_http(request: Request, error: HTTPException) -> JSONResponse:
    """What no handler was asked, as a problem: the path, the method, or a body that is no text."""
    if error.status_code == 404:
        title, remedy = f"there is nothing at {request.url.path}", "/docs shows what there is."
        return problem(404, "not_found", title, remedy=remedy)
    if error.status_code == 405:
        return _not_allowed(request)
    if error.status_code == 400:
        return problem(400, "unreadable_body", "the body cannot be read", remedy="Send JSON in UTF-8.", field="body")
    answer = problem(error.status_code, f"http_{error.status_code}", str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


def _not_allowed(request: Request) -> JSONResponse:
    """The router knows what the first route allows that has this path; there may be more of it."""
    routes = request.app.router.routes
    allowed = ", ".join(
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    )
    title = f"{request.method} is not for {request.url.path}"
    answer = problem(405, "method_not_allowed", title, remedy=f"Ask with {allowed}.")
    answer.headers["Allow"] = allowed
    return answer
