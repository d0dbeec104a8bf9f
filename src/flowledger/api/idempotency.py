"""`Idempotency-Key`: a request that is sent twice, because its answer was lost, starts one execution."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Header
from pydantic import BaseModel

from flowledger.api.asking import Asking
from flowledger.database.session import Connection
from flowledger.domain.execution import Execution
from flowledger.ledger import executions, requests

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="Any text of your own. The same key with the same request is answered with the same execution.",
    ),
]


async def once(
    asked: Asking, key: str | None, what: str, body: BaseModel, start: Callable[[Connection], Awaitable[Execution]]
) -> tuple[Execution, bool]:
    """The execution that `start` starts, or the one that the same request started before; and whether it did.

    `what` names the resource that was asked. Raises InvalidInput if the key came with another request.
    """
    async with asked.session() as session:
        if key is None:
            return await start(session), False
        digest = _digest(what, body)
        earlier = await requests.answered(session, key, digest)
        if earlier is not None:
            return await executions.find(session, asked.claims, str(earlier)), True
        execution = await start(session)
        await requests.remember(session, key, digest, execution.id)
        return execution, False


def _digest(what: str, body: BaseModel) -> bytes:
    """Of what is asked, not of its spelling: the order of names and left-out defaults make no other request."""
    text = json.dumps([what, body.model_dump()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).digest()
