"""Keeps the worker's leases: renews them in time, carries cancel wishes in, and gives up what cannot be kept.

The database judges a lease by its own clock; the holder judges by its own, taken before each renewal is sent, and
stops its child a margin before the lease could have ended. So the two never believe in two holders.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import structlog

from flowledger.database.session import Database
from flowledger.domain.execution import Claim
from flowledger.errors import FlowledgerError
from flowledger.ledger import executions
from flowledger.runner.limits import Limits
from flowledger.worker.trouble import Trouble

_log = structlog.get_logger("flowledger.leases")
_LARGEST_MARGIN_SECONDS = 5.0


@dataclass
class _Holding:
    fence: int
    limits: Limits
    sure_until: float
    """By CLOCK_BOOTTIME, which goes on while the machine sleeps."""
    given_up: bool = False


class LeaseKeeper:
    """The leases of one worker."""

    def __init__(self, database: Database, worker: UUID, *, lease_seconds: float) -> None:
        self._database = database
        self._worker = worker
        self._lease = timedelta(seconds=lease_seconds)
        self._pause = lease_seconds / 4
        self._patience = lease_seconds / 8
        """For the answer to one renewal."""
        self._retry_pause = lease_seconds / 16
        self._margin = min(_LARGEST_MARGIN_SECONDS, lease_seconds / 4)
        self._held: dict[UUID, _Holding] = {}
        self._wake = asyncio.Event()
        self._trouble = Trouble("leases_not_renewed")

    def wake(self) -> None:
        """A cancel wish was written: renew now, the answer brings it."""
        self._wake.set()

    @contextmanager
    def holding(self, claim: Claim, limits: Limits, claimed_at: float) -> Iterator[None]:
        """Keeps the claim's lease for as long as the block lasts. `claimed_at`: CLOCK_BOOTTIME before the claim."""
        holding = self._held[claim.execution_id] = _Holding(claim.fence, limits, self._sure_until(claimed_at))
        limits.held_while(lambda: boottime() <= holding.sure_until)
        try:
            yield
        finally:
            del self._held[claim.execution_id]

    async def keep(self) -> None:
        """Renews every quarter of a lease, sooner after a failure and at once when woken, until it is cancelled."""
        while True:
            self._wake.clear()
            pause = self._pause if await self._renew() else self._retry_pause
            self._give_up_what_is_unsure(boottime() + pause + self._patience)
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _renew(self) -> bool:
        asked_at = boottime()
        asked = {execution: holding.fence for execution, holding in self._held.items()}
        try:
            async with self._database.service(self._patience) as connection:
                answered = await executions.renew(connection, self._worker, asked, self._lease)
        except FlowledgerError as error:
            if asked:
                self._trouble.met(error)
            return False
        self._trouble.over()
        if answered:
            _log.debug("leases_renewed", number=len(answered))
        for held in answered:
            self._renewed(held, asked_at)
        for lost in asked.keys() - {held.execution_id for held in answered}:
            if lost in self._held:
                self._give_up(lost, "lease_lost")
        return True

    def _renewed(self, held: executions.Held, asked_at: float) -> None:
        holding = self._held.get(held.execution_id)
        if holding is None:
            return
        holding.sure_until = self._sure_until(asked_at)
        holding.limits.tick()
        if held.cancel_wished:
            holding.limits.cancel(held.cancel_reason)

    def _give_up_what_is_unsure(self, next_look_at: float) -> None:
        for execution, holding in self._held.items():
            if next_look_at > holding.sure_until:
                self._give_up(execution, "lease_unsure")

    def _give_up(self, execution: UUID, event: str) -> None:
        """Once, and told once: a run whose lease is lost may take a moment to die."""
        holding = self._held[execution]
        if not holding.given_up:
            holding.given_up = True
            _log.warning(event, execution=str(execution))
            holding.limits.lose()

    def _sure_until(self, asked_at: float) -> float:
        return asked_at + self._lease.total_seconds() - self._margin


def boottime() -> float:
    """Seconds since boot, time asleep included where the system counts it."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
