"""Every endpoint that the server has, from its own description, and requests that ask it for what is somebody's."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pyarrow.parquet
from fastapi import FastAPI

from tests.walls.canaries import FLOW_KEY, Owner

Json = dict[str, Any]


def _references(o: Owner) -> list[str]:
    return [str(o.ended), str(o.running), str(o.pending), o.ended.hex[:12], f"{FLOW_KEY}-failed-{o.canary}"]


IN_PATH: dict[str, Callable[[Owner], list[str]]] = {
    "reference": _references,
    "kickoff_id": _references,
    # Of tokens; and the first numbers, of what is counted.
    "id": lambda o: [str(o.token), "1", "2"],
    "key": lambda o: [FLOW_KEY, f"FLOW-{o.canary}"],
}
"""What stands in a path, by the parameter's name: with it, what is the owner's is asked for."""

IN_QUERY: dict[str, Callable[[Owner], list[str]]] = {
    "topics": lambda o: ["executions"],
    "with": lambda o: [str(o.running)],
    "flow": lambda o: [FLOW_KEY, f"FLOW-{o.canary}"],
    "since": lambda o: ["30d"],
    "until": lambda o: ["2999-01-01"],
    "meeting": lambda o: [str(o.meeting)],
    "by": lambda o: [str(o.user), "me"],
    "search": lambda o: [o.canary],
    "model": lambda o: [o.canary],
    "provider": lambda o: [o.canary],
    "path": lambda o: ["metadata.note"],
    "value": lambda o: [],
    "after": lambda o: [],
    "limit": lambda o: ["1000"],
}
"""The same for queries. Nothing: it is no use to ask with it. Where there is a choice, each is asked for."""

BODIES: dict[str, Callable[[Owner], Json]] = {
    "POST /api/v1/executions": lambda o: {"flow": f"FLOW-{o.canary}", "metadata": {"rerun_of": str(o.ended)}},
    "POST /api/v1/tokens": lambda _: {"name": "mine"},
    "PUT /api/v1/budgets": lambda o: {"scope": "user", "user": str(o.user), "period": "month", "usd": "0"},
    "PUT /api/v1/prices": lambda _: {"model": "gpt", "input": "0", "output": "0"},
    "POST /api/v1/crewai/{key}/kickoff": lambda o: {"inputs": {}, "meta": {"rerun_of": str(o.ended)}},
    "POST /api/v1/crewai/{key}/resume": lambda o: {
        "execution_id": str(o.running),
        "task_id": "ask",
        "human_feedback": "yes",
        "is_approve": True,
    },
}
"""What is sent along, where something must be."""

TOLD_TO_ALL = {
    "GET /api/v1/flows": "created_by",
    "GET /api/v1/flows/{key}": "created_by",
    "GET /api/v1/prices": "set_by",
}
"""Fields that name their author to everybody: of flows that all may start, and of what models cost."""


class Unknown(AssertionError):
    """An endpoint has a parameter that nobody said how to fill."""


@dataclass(frozen=True)
class Ask:
    """One request. `said` is everything in it that an answer may repeat."""

    path: str
    query: Json = field(default_factory=dict)

    @property
    def said(self) -> list[str]:
        return [*self.path.split("/")[3:], *map(str, self.query.values())]


@dataclass(frozen=True)
class Endpoint:
    method: str
    template: str
    parameters: tuple[Json, ...]
    is_stream: bool

    def __str__(self) -> str:
        return f"{self.method} {self.template}"

    def asks(self, owner: Owner) -> Iterator[Ask]:
        """Requests for what is the owner's, the plainest first. Raises Unknown."""
        names = re.findall(r"{(\w+)}", self.template)
        fillings = [self._filling(IN_PATH, name, owner) for name in names]
        needed = {one["name"]: IN_QUERY[one["name"]](owner)[0] for one in self._queries if one.get("required")}
        paths = [
            self.template.format(**dict(zip(names, values, strict=True))) for values in itertools.product(*fillings)
        ]
        yield from (Ask(path, needed) for path in paths)
        yield from (Ask(paths[0], needed | choice) for choice in self._choices(owner))

    @property
    def _queries(self) -> list[Json]:
        return [one for one in self.parameters if one["in"] == "query"]

    def _choices(self, owner: Owner) -> Iterator[Json]:
        for one in self._queries:
            choices = _choices(one["schema"]) or self._filling(IN_QUERY, one["name"], owner)
            yield from ({one["name"]: value} for value in choices)

    def _filling(self, known: dict[str, Callable[[Owner], list[str]]], name: str, owner: Owner) -> list[str]:
        if name not in known:
            raise Unknown(f"{self} has a parameter {name}: say in tests/walls/endpoints.py what may stand there")
        return known[name](owner)


def _choices(schema: Json) -> list[str]:
    """What a parameter may be, if it is one of few."""
    if "enum" in schema:
        return [str(one) for one in schema["enum"]]
    if schema.get("type") == "boolean":
        return ["true", "false"]
    named = re.fullmatch(r"\^\(([\w|]+)\)\$", schema.get("pattern", ""))
    listed = re.match(r"\^\(([\w|]+)\)\(,", schema.get("pattern", ""))
    if found := named or listed:
        return found[1].split("|")
    return [choice for one in schema.get("anyOf", []) for choice in _choices(one)]


def described(app: FastAPI) -> list[Endpoint]:
    """Every endpoint that the server describes."""
    document = app.openapi()
    return [
        Endpoint(
            method.upper(),
            template,
            tuple(_resolved(document, one) for one in operation.get("parameters", [])),
            "text/event-stream" in operation["responses"].get("200", {}).get("content", {}),
        )
        for template, operations in document["paths"].items()
        for method, operation in operations.items()
    ]


def _resolved(document: Json, part: Any) -> Any:
    if isinstance(part, list):
        return [_resolved(document, one) for one in part]
    if not isinstance(part, dict):
        return part
    if reference := part.get("$ref"):
        found = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
        return _resolved(document, found)
    return {name: _resolved(document, one) for name, one in part.items()}


def undescribed(app: FastAPI) -> set[str]:
    """Paths that the server answers at and does not describe."""
    return {path for path, is_described in _routes(app.routes) if not is_described}


def _routes(routes: Any) -> Iterator[tuple[str, bool]]:
    for route in routes:
        # A router that was included keeps its own routes.
        inner = getattr(route, "original_router", route)
        if hasattr(inner, "routes") and inner.routes:
            yield from _routes(inner.routes)
        else:
            yield route.path, getattr(route, "include_in_schema", False)


def body_for(endpoint: Endpoint, owner: Owner) -> Json:
    known = BODIES.get(str(endpoint))
    return known(owner) if known else {}


def text_of(answer: httpx.Response) -> str:
    """Everything that the answer says, its headers too."""
    if answer.headers.get("content-type", "").startswith("application/vnd.apache.parquet"):
        body = str(pyarrow.parquet.read_table(io.BytesIO(answer.content)).to_pylist())
    else:
        body = answer.text
    return f"{dict(answer.headers)} {body}"
