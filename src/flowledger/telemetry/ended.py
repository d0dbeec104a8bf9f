"""Which executions this process has brought to their end, as its own log tells, for a reader that may lag behind."""

from __future__ import annotations

import asyncio
from uuid import UUID

import structlog

_Fact = structlog.typing.EventDict

_MOST_WAITING = 10_000


class EndedExecutions:
    """Ids in the order of the ends, for one reader. When it lags too far behind, the oldest are forgotten and counted.

    Those that a worker carried to their end are among them, and those that it reaped from a lost one or expired.
    """

    def __init__(self, most_waiting: int = _MOST_WAITING) -> None:
        self._waiting: asyncio.Queue[UUID] = asyncio.Queue(most_waiting)
        self.forgotten = 0
        self.unsettled = 0
        """What waits, and what `next` gave and nobody has settled."""

    def hear(self, _: object, __: str, fact: _Fact) -> _Fact:
        """A structlog processor: to be called with every fact, in the event loop's thread."""
        if _tells_an_end(fact):
            if self._waiting.full():
                self._waiting.get_nowait()
                self.settled()
                self.forgotten += 1
            self._waiting.put_nowait(UUID(fact["execution"]))
            self.unsettled += 1
        return fact

    async def next(self, most: int = 1) -> list[UUID]:
        """Between one and `most` of them; waits for the first. `settled` is to be called for each."""
        ids = [await self._waiting.get()]
        while len(ids) < most and not self._waiting.empty():
            ids.append(self._waiting.get_nowait())
        return ids

    def settled(self, number: int = 1) -> None:
        """So many that `next` gave are done with."""
        self.unsettled -= number
        for _ in range(number):
            self._waiting.task_done()

    async def all_settled(self) -> None:
        """Waits until none is left."""
        await self._waiting.join()


def _tells_an_end(fact: _Fact) -> bool:
    match fact.get("event"):
        case "execution_ended":
            # Of a lost one, whoever reaped it tells.
            return fact.get("answer") in ("ok", "dup")
        case "execution_reaped" | "execution_expired":
            return True
    return False
