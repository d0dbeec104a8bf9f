"""The OpenAPI document: what the routes themselves say, in the form that their readers need.

Each operation has a name of its own, tells every status that it may answer with, and has no alternative for a parameter
that cannot be sent. What all operations share is said once, in front.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from flowledger.api.catalog import Told, catalog
from flowledger.api.problems import MEDIA_TYPE
from flowledger.api.shapes import ANY_TEXT

TAGS = {
    "executions": "Runs of flows: started, listed, searched, compared, cancelled, run again, exported.",
    "flows": "What may be started, what each takes and how it hangs together; pausing is for operators.",
    "crewai": "One flow in the shape of CrewAI's hosted product, whose clients move here by changing their URL.",
    "costs": "What was spent, in sums.",
    "errors": "What failed, in groups.",
    "budgets": "What may be spent in a day or a month.",
    "prices": "What models cost.",
    "tokens": "The caller's own personal tokens.",
    "live": "What changes, as it changes.",
    "health": "For whoever starts, stops and routes to servers. No token is needed.",
    "metrics": "For Prometheus.",
}

DESCRIPTION = """
The control plane and execution ledger for CrewAI Flows.

**Who asks.** Send `Authorization: Bearer TOKEN`: a JWT of your identity provider, or a personal token
(`flowledger tokens create`). Every request is one transaction in Postgres under the user and role of its token: users
meet what is theirs, operators (role `service_role`) meet all. What is somebody else's is answered like what is not
there. This document, health and readiness need no token: they tell of the software, and of nobody's work.

**Values.** JSON in UTF-8; times are UTC in ISO 8601, money is text in USD with every digit. No text may hold a NUL
character, which Postgres cannot store. A field or parameter that does not exist is refused by its name.

**Pages.** Lists answer `next`; send it as `after` for the page that follows. What it is made of is not for reading. It
stays good while rows come and go: none is told twice or left out.

**Once.** What starts an execution takes an `Idempotency-Key`: the same key with the same request is answered with the
same execution, and `Idempotency-Replayed: true`.

**Only if it is new.** One execution comes with an `ETag`, and so does one flow; `If-None-Match` is answered by 304
while nothing has changed.

**Problems.** Every refusal is `application/problem+json` (RFC 9457): a stable `code`, a `title` for people, and where
there is one the `field`, its limit, and the `remedy`. `type` leads to what the code means.

**Limits.** A body has 1 MiB and 100 levels of JSON, request line and headers 32 KiB together, unless the server was set
up otherwise. An identity may ask 500 times a second and hold 16 live streams; 429 and 503 say in `Retry-After` when to
come back.

**Ids.** Each answer has an `X-Request-Id`: your own, if you sent one of 1 to 128 letters, digits, `.`, `_` and `-`.
""".strip()

_NAMES = {
    ("executions", "export"): "export_executions",
    ("costs", "show"): "show_costs",
    ("live", "live"): "watch_changes",
    ("health", "health"): "show_health",
    ("health", "readiness"): "show_readiness",
    ("metrics", "metrics"): "show_metrics",
}
"""Of operations whose function and tag do not make one."""

_DONE = {
    "200": "The answer.",
    "201": "It is made.",
    "202": "It is taken.",
    "204": "It is done; there is nothing to tell.",
    "304": "It is what `If-None-Match` names.",
}

ALWAYS = (421, 431, 500)
"""With which any operation may be refused."""

_OF_BODIES = (400, 408, 413, 415, 422)
_OF_ASKING = (401, 403, 422, 429, 503)


def document(app: FastAPI) -> dict[str, Any]:
    """Made anew each time."""
    made: dict[str, Any] = _plain(
        get_openapi(title="flowledger", version=app.version, description=DESCRIPTION, routes=app.routes)
    )
    used: set[str] = set()
    for _, operation in operations(made):
        _correct(operation)
        used.update(operation["tags"])
    made["tags"] = [{"name": name, "description": told} for name, told in TAGS.items() if name in used]
    _link(made)
    components = made["components"]
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    components["responses"] = _responses()
    return made


def text(app: FastAPI) -> str:
    """As openapi.json holds it."""
    return json.dumps(document(app), indent=2, ensure_ascii=False) + "\n"


def operation_id(route: APIRoute) -> str:
    """`list_executions`, `show_execution`, `show_execution_timeline`: by the function's name and its first tag."""
    tag, function = str(route.tags[0]) if route.tags else "", route.name.rstrip("_")
    if (tag, function) in _NAMES:
        return _NAMES[tag, function]
    verb, _, part = function.partition("_")
    noun = tag if verb == "list" else tag.removesuffix("s")
    return "_".join(word for word in (verb, noun, part) if word)


def operations(made: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each with its method and path, like `GET /api/v1/executions`."""
    for path, item in made["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def _correct(operation: dict[str, Any]) -> None:
    operation["summary"] = operation["description"].partition(". ")[0].rstrip(".").replace("\n", " ")
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = _sendable(parameter["schema"])
        # It stands beside the schema as well.
        parameter["schema"].pop("description", None)
    answers = operation["responses"]
    if "304" in answers:
        operation["parameters"] = [*operation.get("parameters", ()), _IF_NONE_MATCH]
        answers["200"]["headers"] = {"ETag": {"required": True, "schema": {"type": "string"}}}
    told = {int(status) for status in answers if status >= "400"} | set(ALWAYS)
    told |= set(_OF_ASKING) if "security" in operation else set()
    told |= set(_OF_BODIES) if "requestBody" in operation else set()
    for status, answer in answers.items():
        if answer.get("description") in (None, "Successful Response"):
            answer["description"] = _DONE[status]
    refusals = {str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in told}
    operation["responses"] = dict(sorted({**answers, **refusals}.items()))


def _link(made: dict[str, Any]) -> None:
    """From what tells of something to all that can be asked about it."""
    named = {operation["operationId"]: operation for _, operation in operations(made)}
    for name, (status, parameter, place, below) in _LEADS.items():
        if name in named:
            named[name]["responses"][status]["links"] = {
                operation["operationId"]: {"operationId": operation["operationId"], "parameters": {parameter: place}}
                for where, operation in operations(made)
                if f"{below}{{{parameter}}}" in where
            }


_LEADS = {
    "create_execution": ("201", "reference", "$response.body#/id", "/"),
    "list_executions": ("200", "reference", "$response.body#/executions/0/id", "/"),
    "list_flows": ("200", "key", "$response.body#/flows/0/flow_key", "/"),
    "create_token": ("201", "id", "$response.body#/id", "/tokens/"),
}
"""Operation -> the answer that tells of something, the parameter that takes it, where it stands, below which path."""


def _sendable(schema: dict[str, Any]) -> dict[str, Any]:
    """No query and no header can say null: whoever means it leaves the parameter out."""
    left = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
    if len(left) != 1:
        return schema
    return {**{name: value for name, value in schema.items() if name != "anyOf"}, **left[0]}


def _responses() -> dict[str, Any]:
    return {
        f"Problem{status}": _response(status, list(told))
        for status, told in groupby(catalog(), key=lambda told: told.status)
    }


def _response(status: int, told: list[Told]) -> dict[str, Any]:
    response = {
        "description": "; ".join(f"`{one.code}`: {_sentence(one.meaning)}" for one in told) + ".",
        "content": {
            MEDIA_TYPE: {
                "schema": {"$ref": "#/components/schemas/ProblemShape"},
                "examples": {one.code: {"value": _problem(one)} for one in told},
            }
        },
    }
    if headers := _HEADERS.get(status):
        response["headers"] = headers
    return response


def _sentence(meaning: str) -> str:
    first = meaning.partition(". ")[0].rstrip(".").replace("\n", " ")
    return first[0].lower() + first[1:]


def _problem(told: Told) -> dict[str, Any]:
    facts = {"type": f"/docs/problems#{told.code}", "title": told.title, "status": told.status, "code": told.code}
    return {**facts, "remedy": told.remedy} if told.remedy else facts


_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "The last `ETag`.",
}
_RETRY = {"Retry-After": {"description": "Seconds.", "required": True, "schema": {"type": "integer", "minimum": 1}}}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}},
    429: _RETRY,
    503: _RETRY,
}


def _plain(value: Any) -> Any:
    """Without what says nothing: pydantic's titles are the names once more, and no text holds a NUL character."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    is_titled = isinstance(value.get("title"), str) and bool(value.keys() & _OF_SCHEMAS)
    return {
        name: _plain(item)
        for name, item in value.items()
        if not (name == "title" and is_titled) and not (name == "pattern" and item == ANY_TEXT)
    }


_OF_SCHEMAS = {"type", "anyOf", "$ref", "const", "enum", "properties", "allOf", "additionalProperties"}
