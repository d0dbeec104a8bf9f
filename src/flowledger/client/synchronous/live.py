# Made of client/asynchronous by scripts/synchronous.py: change it there, and `make docs` writes it again.
"""What changes, as it happens: the server's one stream, resumed where it broke off."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from time import sleep
from uuid import UUID

import httpx
from httpx_sse import EventSource, ServerSentEvent, SSEError

from flowledger.client.problems import not_understood
from flowledger.client.retries import Patience, Pauses
from flowledger.client.synchronous.wire import Wire
from flowledger.domain.change import Change, ChangeKind, Topics
from flowledger.errors import (
    DatabaseBusy,
    DatabaseUnreachable,
    KeysUnavailable,
    RateLimited,
    ServerUnreachable,
    TooManyStreams,
    UnexpectedAnswer,
)

QUIET_SECONDS = 25
"""The server's heart beats every 15 seconds. A stream that is silent for longer is taken for broken."""
LONGEST_PAUSE = 15.0
"""Between two looks at an execution while no stream is to be had."""

_NO_STREAM = (
    DatabaseBusy,
    DatabaseUnreachable,
    KeysUnavailable,
    RateLimited,
    ServerUnreachable,
    TooManyStreams,
    UnexpectedAnswer,
)


@dataclass
class _Place:
    """How far the stream has been told: the id to come back with. Empty: not at all."""

    last_id: str = ""


class Live:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def watch(self, topics: Topics) -> Generator[Change]:
        """Changes for as long as they are asked for, from the READY on none is missed. After a connection that broke
        the last ones may be told once more. Raises what a request raises, once it cannot be had for long.
        """
        place, pauses = _Place(), Pauses()
        while True:
            try:
                with closing(self._listen(topics, place)) as changes:
                    for change in changes:
                        if change.kind is not ChangeKind.READY:
                            pauses.reset()
                        yield change
            except _Broken:
                pass
            sleep(pauses.next())

    def nudges(self, execution: UUID, patience: Patience) -> Generator[ChangeKind]:
        """When to look at an execution: at once, and whenever something of it has changed. Where no stream is to be had
        it is at growing pauses, and RESET: nobody knows what changed. Ends with the patience, and one last RESET.
        """
        place, pauses = _Place(), Pauses(longest=LONGEST_PAUSE)
        topics = Topics(frozenset({execution}))
        while patience.left:
            # Silence cannot be interrupted, so the last seconds are waited for without a stream.
            if patience.left > QUIET_SECONDS:
                try:
                    with closing(self._listen(topics, place, once=True)) as changes:
                        for change in changes:
                            if change.kind is not ChangeKind.READY:
                                pauses.reset()
                            yield change.kind
                            if patience.left <= QUIET_SECONDS:
                                break
                except (*_NO_STREAM, _Broken):
                    pass
            yield ChangeKind.RESET
            sleep(min(pauses.next(), patience.left))
        yield ChangeKind.RESET

    def _listen(self, topics: Topics, place: _Place, *, once: bool = False) -> Generator[Change]:
        """One connection's changes. It ends when the server lets it end, and raises _Broken when it breaks."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": place.last_id} if place.last_id else {})}
        with self._wire.stream(
            "live", params={"topics": str(topics)}, headers=headers, quiet_seconds=QUIET_SECONDS, once=once
        ) as answer:
            try:
                for message in EventSource(answer).iter_sse():
                    if (change := _change(message)) is not None:
                        yield change
                    # Of a page only the last message bears a new id: whoever got a part of it is told all of it again.
                    place.last_id = message.id
            except SSEError as unfit:
                raise not_understood(answer, unfit) from unfit
            except httpx.RequestError as lost:
                raise _Broken from lost


class _Broken(Exception):
    """The connection was there, and is no more."""


def _change(message: ServerSentEvent) -> Change | None:
    """None for a heartbeat, and for what a later version tells of."""
    try:
        told = json.loads(message.data)
        named = told.get("execution")
        return Change(ChangeKind(told["kind"]), None if named is None else UUID(named))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
