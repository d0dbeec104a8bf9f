"""The ledger's own queue: claimed in batches of the worker's free slots, woken by notification.

Any number of workers on any number of machines may claim from one Postgres. A slow poll is the safety net: with every
notification lost an execution starts one poll later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from uuid import UUID

from flowledger.database.session import Database
from flowledger.domain.execution import Claim
from flowledger.ledger import executions

QUEUE_CHANNEL = "flowledger_queue"
_SECOND_LOOK_SECONDS = 0.1


class PostgresEngine:
    """Claims for one worker. `answered` is called after each look at the queue, whether it found anything or not.
    `among`, unless None, narrows it to these executions.
    """

    def __init__(
        self,
        database: Database,
        worker: UUID,
        *,
        lease_seconds: float,
        poll_seconds: float,
        clock: Callable[[], float],
        answered: Callable[[], None] = lambda: None,
        among: Sequence[UUID] | None = None,
    ) -> None:
        self._database = database
        self._worker = worker
        self._lease = timedelta(seconds=lease_seconds)
        self._poll_seconds = poll_seconds
        self._among = None if among is None else list(among)
        self._wake = asyncio.Event()
        self._marked_waiting = False
        self._pause = min(_SECOND_LOOK_SECONDS, poll_seconds)
        self._closed = False
        self._clock = clock
        self._answered = answered
        self.asked_at = 0.0
        """By `clock`, just before the latest claim was sent: its leases began no earlier."""

    def wake(self) -> None:
        """Something was queued, or may have been: look now."""
        self._wake.set()

    def admit(self, execution: UUID) -> None:
        """Adds to the executions that this engine is narrowed to."""
        assert self._among is not None
        self._among.append(execution)
        self.wake()

    def close(self) -> None:
        """Claim nothing more: a `next` that waits answers with an empty list."""
        self._closed = True
        self._wake.set()

    async def next(self, timeouts: Callable[[], Mapping[UUID, float]], slots: int) -> list[Claim]:
        """Between one and `slots` executions of the flows that `timeouts` gives (flow id -> seconds); waits for the
        first. It is asked before each look, since flows come and go while the queue is empty.

        It is never cancelled half-way, since what it has claimed must run; `close` ends it. Raises DatabaseUnreachable.
        """
        while not self._closed:
            self._wake.clear()
            may_sleep = self._marked_waiting
            async with self._database.service() as connection:
                self.asked_at = self._clock()
                claims = await executions.claim(connection, self._worker, timeouts(), slots, self._lease, self._among)
            self._answered()
            # What was committed while this worker was not yet marked as waiting has notified nobody: the first short
            # claim marks it, the one after sees everything.
            self._marked_waiting = len(claims) < slots
            if claims:
                # An insert that was under way during both looks has notified nobody either: look once more soon.
                self._pause = min(_SECOND_LOOK_SECONDS, self._poll_seconds)
                return claims
            if may_sleep:
                await self._woken_within(self._pause)
                self._pause = self._poll_seconds
        return []

    async def _woken_within(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass
