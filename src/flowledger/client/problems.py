"""Problems (RFC 9457) become the errors that the server meant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import httpx

from flowledger import errors
from flowledger.errors import FlowledgerError, InvalidInput, UnexpectedAnswer


def error_of(response: httpx.Response) -> FlowledgerError:
    """What the answer tells, which has been read. An error of another kind than is known here is UnexpectedAnswer."""
    problem = _problem(response)
    told = _known(problem) or _invalid(problem) or _unexpected(response, problem)
    if request := response.headers.get("x-request-id"):
        told.add_note(f"request {request}")
    return told


def not_understood(response: httpx.Response, why: object) -> UnexpectedAnswer:
    """An answer that is no problem, and not what was asked for either."""
    return UnexpectedAnswer(
        response.status_code,
        "",
        f"the answer cannot be read: {why}",
        "Check that FLOWLEDGER_URL leads to a flowledger server, of a version like this one.",
        response.headers.get("x-request-id", ""),
    )


def code_of(response: httpx.Response) -> str:
    return str(_problem(response).get("code", ""))


def _problem(response: httpx.Response) -> Mapping[str, Any]:
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) and isinstance(body.get("code"), str) else {}


def _known(problem: Mapping[str, Any]) -> FlowledgerError | None:
    """The error itself, built again from its facts. None: it is not known here, or has other facts."""
    kind, facts = _KINDS.get(problem.get("code", "")), problem.get("facts")
    if kind is None or not isinstance(facts, dict):
        return None
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    given = {name: tuple(fact) if isinstance(fact, list) else fact for name, fact in facts.items() if name in names}
    try:
        return kind(**given)
    except TypeError:
        return None


_KINDS: dict[str, type[FlowledgerError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, FlowledgerError) and kind is not FlowledgerError
}


def _invalid(problem: Mapping[str, Any]) -> InvalidInput | None:
    """A request that does not fit its schema. The first fault gives the field, and all are told."""
    faults = [fault for fault in problem.get("faults") or () if isinstance(fault, dict)]
    if not faults:
        return None
    first, *others = faults
    also = "".join(f"; {fault.get('field')}: {fault.get('what')}" for fault in others)
    return InvalidInput(str(first.get("field")), f"{first.get('what')}{also}")


def _unexpected(response: httpx.Response, problem: Mapping[str, Any]) -> UnexpectedAnswer:
    if response.is_redirect:
        where = response.headers.get("location", "")
        return UnexpectedAnswer(
            response.status_code, "", f"the server is elsewhere: {where}", "Give the address to which this one leads."
        )
    return UnexpectedAnswer(
        response.status_code,
        str(problem.get("code", "")),
        str(problem.get("title") or f"the server answered {response.status_code} {response.reason_phrase}".rstrip()),
        str(problem.get("remedy") or "Check that FLOWLEDGER_URL leads to a flowledger server."),
        response.headers.get("x-request-id", ""),
    )
