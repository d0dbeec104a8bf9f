"""Brings what runs report into the ledger, in batches: events of steps and calls, and what flows print."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import structlog

from flowledger.database.session import Connection, Database
from flowledger.domain.timeline import Event, LogLine
from flowledger.errors import FlowledgerError, InvalidInput
from flowledger.ledger import timeline
from flowledger.ledger.timeline import Held
from flowledger.worker.trouble import Trouble

T = TypeVar("T")

_log = structlog.get_logger("flowledger.records")

_BATCH = 2_000
_MOST_WAITING = 100_000
_PAUSE_SECONDS = 0.05


class Records:
    """Everything that waits to be written, of all runs of one worker. What exceeds its bound, or cannot be stored, is
    dropped: the gap in the sequence numbers tells.
    """

    def __init__(self, database: Database) -> None:
        self._events = _Backlog(database, timeline.append)
        self._lines = _Backlog(database, timeline.append_logs)
        self._something = asyncio.Event()
        self._writing = asyncio.Lock()
        self._trouble = Trouble("records_not_written")

    @property
    def held_up(self) -> bool:
        """The database does not take what runs report, for a full disk or because it is away."""
        return self._trouble.lasts

    def of(self, held: Held) -> RunRecords:
        """Where one run reports to."""
        return RunRecords(self, held)

    def add_event(self, held: Held, event: Event) -> None:
        self._events.add((held, event))
        self._something.set()

    def add_line(self, held: Held, line: LogLine) -> None:
        self._lines.add((held, line))
        self._something.set()

    async def keep_writing(self) -> None:
        """Writes what comes, in batches, until it is cancelled."""
        while True:
            await self._something.wait()
            await asyncio.sleep(_PAUSE_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Writes all that waits now. What the database does not take for the moment stays for the next flush."""
        async with self._writing:
            self._something.clear()
            try:
                await self._events.write()
                await self._lines.write()
            except FlowledgerError as error:
                self._something.set()
                self._trouble.met(error)
                await asyncio.sleep(1)
            else:
                self._trouble.over()


class _Backlog(Generic[T]):
    """Items of one kind on their way into the database, in order."""

    def __init__(self, database: Database, append: Callable[[Connection, Sequence[T]], Awaitable[None]]) -> None:
        self._database = database
        self._append = append
        self._items: list[T] = []

    def add(self, item: T) -> None:
        if len(self._items) < _MOST_WAITING:
            self._items.append(item)

    async def write(self) -> None:
        while self._items:
            batch = self._items[:_BATCH]
            await self._write(batch)
            del self._items[: len(batch)]

    async def _write(self, batch: Sequence[T]) -> None:
        """Leaves out what Postgres cannot store, and nothing beside it: halves of a refused batch are tried alone."""
        try:
            async with self._database.service() as connection:
                await self._append(connection, batch)
        except InvalidInput as unfit:
            if len(batch) == 1:
                _log.warning("record_dropped", reason=str(unfit))
                return
            middle = len(batch) // 2
            await self._write(batch[:middle])
            await self._write(batch[middle:])


class RunRecords:
    """The recorder that one run is given."""

    def __init__(self, records: Records, held: Held) -> None:
        self._records = records
        self._held = held

    def event(self, event: Event) -> None:
        self._records.add_event(self._held, event)

    def log(self, line: LogLine) -> None:
        self._records.add_line(self._held, line)
