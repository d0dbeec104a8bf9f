"""`/live`: server-sent events that say what has changed. Ids and kinds only: the guarded GET tells the rest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse, SendTimeoutError

from flowledger.api.asking import Asked
from flowledger.api.shapes import refusals
from flowledger.domain.change import MOST_TOPICS, Change, ChangeKind, Topics
from flowledger.errors import FlowledgerError
from flowledger.feed import Page, Stream

_log = structlog.get_logger("flowledger.api")

router = APIRouter(prefix="/live", tags=["live"])

HEARTBEAT_SECONDS = 15
STALLED_SECONDS = 20.0
"""A client that takes nothing for so long is left; it resumes when it reads again."""
RETRY_MILLISECONDS = 1_000
"""After which a browser comes back by itself."""


_UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_TOPIC = f"(executions|flows|execution:{_UUID})"
_TOPICS = f"^{_TOPIC}(,{_TOPIC}){{0,{MOST_TOPICS - 1}}}$"
"""For the document: what is wrong is told by `Topics` itself."""


_EVENT = {
    "description": "One event. `data` is JSON: its `kind`, and of an execution's its id as `execution`.",
    "type": "object",
    "properties": {
        "event": {"enum": ["execution", *(kind for kind in ChangeKind if kind in ("ready", "reset", "flows"))]},
        "id": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}


class LiveResponse(EventSourceResponse):
    """A stream as it goes over the wire. However the response ends, the stream's place is free again."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        super().__init__(
            _messages(stream),
            ping=HEARTBEAT_SECONDS,
            ping_message_factory=self._heartbeat,
            send_timeout=STALLED_SECONDS,
            headers={"Cache-Control": "no-store, no-transform"},
        )

    def _heartbeat(self) -> ServerSentEvent:
        """A comment, which nobody is told of, with the id to come back with: a quiet stream moves on too."""
        return ServerSentEvent(comment="", id=str(self._stream.position), sep="\n")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            _log.info("stream_stalled", seconds=STALLED_SECONDS)
            # What is on its way to it would keep the connection for as long as it does not read.
            scope["state"]["hang_up"]()
            await asyncio.sleep(0)
        finally:
            self._stream.close()


@router.get(
    "",
    response_class=StreamingResponse,
    responses={**refusals(404), 200: {"content": {"text/event-stream": {"schema": _EVENT}}}},
)
async def live(
    asked: Asked,
    request: Request,
    topics: Annotated[
        str,
        Query(
            description="`executions`, `execution:ID`, `flows`; up to 32 between commas.",
            examples=["executions,flows"],
            json_schema_extra={"pattern": _TOPICS},
        ),
    ],
    after: Annotated[str | None, Query(description="As Last-Event-ID, for whoever cannot send the header.")] = None,
    last_event_id: Annotated[
        str | None,
        Header(alias="Last-Event-ID", description="Goes on after this message. One that is not known means a reset."),
    ] = None,
) -> LiveResponse:
    """What changes from now on, or has changed since the message that Last-Event-ID names."""
    stream = await request.app.state.feed.open(asked.claims, Topics.parse(topics), last_event_id or after)
    return LiveResponse(stream)


async def _messages(stream: Stream) -> AsyncIterator[bytes]:
    yield f"retry: {RETRY_MILLISECONDS}\n\n".encode()
    try:
        async for page in stream.pages():
            yield _encoded(page)
    except FlowledgerError as trouble:
        # The client comes back, and is told then if it lasts.
        _log.warning("stream_ended", reason=trouble.title)


def _encoded(page: Page) -> bytes:
    """Only the last message bears the id: whoever got a part of the page is told all of it again."""
    messages = [_message(change) for change in page.changes]
    messages[-1] = f"id: {page.position}\n{messages[-1]}"
    return "".join(messages).encode()


def _message(change: Change) -> str:
    event, data = str(change.kind), {"kind": str(change.kind)}
    if change.execution is not None:
        event, data["execution"] = "execution", str(change.execution)
    return f"event: {event}\ndata: {json.dumps(data)}\n\n"
