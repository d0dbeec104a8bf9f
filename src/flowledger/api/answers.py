"""Answers: a shape as bytes, an ETag for those who ask again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel
from pydantic_core import to_json

from flowledger.errors import InvalidInput

JSON = "application/json"


def answered(shape: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The shape as JSON. It was built from its own class and is not judged a second time."""
    return Response(shape.model_dump_json(), status, headers, JSON)


def told(value: Any) -> Response:
    """JSON that somebody else wrote, as JSON again. A number beyond Python's is null, as in a shape."""
    return Response(to_json(value, inf_nan_mode="null"), media_type=JSON)


def unless_known(request: Request, answer: Response) -> Response:
    """The answer with its ETag, or 304 if the caller holds this very one (RFC 9110, 13.1.2)."""
    tag = f'"{hashlib.sha256(answer.body).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache", "Vary": "Authorization, Cookie"}
    known = {one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")}
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    answer.headers.update(headers)
    return answer


async def _no_parameters(request: Request) -> None:
    for name in request.query_params:
        raise InvalidInput(name, "there is no such parameter", "This takes none.")


NoParameters: Any = Annotated[None, Depends(_no_parameters)]
"""A parameter that is not known is a misspelt one: it is refused, and never passed over."""
