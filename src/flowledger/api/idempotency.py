"""`Idempotency-Key`: a request that is sent twice, because its answer was lost, starts one execution."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

from fastapi import Header
from pydantic import BaseModel

from flowledger import inputs
from flowledger.api.asking import Asking
from flowledger.database.session import Connection
from flowledger.domain.execution import Execution, NewExecution
from flowledger.ledger import executions, flows, requests

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


async def started(
    asked: Asking, key: str | None, what: str, body: BaseModel, wanted: NewExecution
) -> tuple[Execution, bool]:
    """What is wanted, started as the caller's own, or what the same request started before; and whether it did.

    `what` names the resource that was asked. Raises FlowNotFound, InvalidInput (inputs that the flow does not take, or
    a key that came with another request), and what `executions.record` raises.
    """
    asked = asked.as_user
    async with asked.session() as session:
        if key is None:
            return await _start(session, wanted), False
        digest = _digest(what, body)
        earlier = await requests.answered(session, key, digest)
        if earlier is not None:
            return await executions.find(session, asked.claims, str(earlier)), True
        execution = await _start(session, wanted)
        await requests.remember(session, key, digest, execution.id)
        return execution, False


async def _start(session: Connection, wanted: NewExecution) -> Execution:
    flow = await flows.find_active(session, wanted.flow_key)
    inputs.check(flow.input_schema, wanted.inputs)
    return await executions.record(session, wanted)


def _digest(what: str, body: BaseModel) -> bytes:
    """Of what is asked, not of its spelling: the order of names and left-out defaults make no other request."""
    text = json.dumps([what, body.model_dump()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).digest()
