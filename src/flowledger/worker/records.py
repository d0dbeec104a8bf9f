"""Brings what runs report into the ledger, in batches: events of steps, what flows print, and LLM calls."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Generic, TypeVar

import structlog

from flowledger.database.session import Connection, Database
from flowledger.domain.execution import Outcome
from flowledger.domain.timeline import Event, LogLine
from flowledger.domain.usage import PricedCall
from flowledger.errors import FlowledgerError, InvalidInput
from flowledger.ledger import timeline, usage
from flowledger.ledger.timeline import Held
from flowledger.worker.trouble import Trouble

T = TypeVar("T")

_log = structlog.get_logger("flowledger.records")

_BATCH = 2_000
_MOST_WAITING = 100_000
"""Of one kind; each run with something waiting has the same share."""
_PAUSE_SECONDS = 0.05


class Records:
    """Everything that waits to be written, of all runs of one worker, and each run's fair share of it: of many that
    wait, the same number is written at a time. What exceeds the bound, or cannot be stored, is dropped: the gap in the
    sequence numbers tells.
    """

    def __init__(self, database: Database) -> None:
        self._events = _Backlog(database, timeline.append)
        self._lines = _Backlog(database, timeline.append_logs)
        self._calls = _Backlog(database, usage.append)
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

    def add_event(self, held: Held, event: Event) -> bool:
        """False: there was no room left for it."""
        self._something.set()
        return self._events.add(held, event)

    def add_line(self, held: Held, line: LogLine) -> bool:
        """False: there was no room left for it."""
        self._something.set()
        return self._lines.add(held, line)

    def add_call(self, held: Held, call: PricedCall) -> None:
        """There is always room: what is spent is never dropped."""
        self._something.set()
        self._calls.add(held, call, bounded=False)

    async def write_calls(self, held: Held) -> None:
        """Writes the calls of one run that still wait. Raises the trouble that the database has with that."""
        while self._calls.waits(held):
            async with self._writing:
                await self._calls.write_some(held)

    async def keep_writing(self) -> None:
        """Writes what comes, in batches, until it is cancelled."""
        while True:
            await self._something.wait()
            await asyncio.sleep(_PAUSE_SECONDS)
            await self.flush()

    async def flush(self, run: Held | None = None) -> None:
        """Writes what waits now, of one run or of all. What the database does not take for the moment stays."""
        if run is None:
            self._something.clear()
        try:
            for backlog in (self._events, self._lines, self._calls):
                while backlog.waits(run):
                    # For one batch only: a run that ends is not held up by another that floods.
                    async with self._writing:
                        await backlog.write_some(run)
        except FlowledgerError as error:
            self._something.set()
            self._trouble.met(error)
            await asyncio.sleep(1)
        else:
            self._trouble.over()


class _Backlog(Generic[T]):
    """Items of one kind on their way into the database, in order within each run."""

    def __init__(
        self, database: Database, append: Callable[[Connection, Sequence[tuple[Held, T]]], Awaitable[None]]
    ) -> None:
        self._database = database
        self._append = append
        self._waiting: dict[Held, deque[T]] = {}

    def add(self, run: Held, item: T, *, bounded: bool = True) -> bool:
        waiting = self._waiting.setdefault(run, deque())
        if bounded and len(waiting) >= _MOST_WAITING // len(self._waiting):
            return False
        waiting.append(item)
        return True

    def waits(self, run: Held | None) -> bool:
        return bool(self._waiting) if run is None else run in self._waiting

    async def write_some(self, run: Held | None) -> None:
        """Nothing if what waited has been written meanwhile."""
        runs = [one for one in self._waiting if run in (None, one)]
        share = max(1, _BATCH // max(1, len(runs)))
        taken = {one: list(islice(self._waiting[one], share)) for one in runs[:_BATCH]}
        batch = [(one, item) for one, items in taken.items() for item in items]
        if batch:
            await self._write(batch)
        for one, items in taken.items():
            self._forget(one, len(items))

    def _forget(self, run: Held, number: int) -> None:
        waiting = self._waiting.pop(run)
        for _ in range(number):
            waiting.popleft()
        if waiting:
            # At the end, so that of more runs than a batch holds each has its turn.
            self._waiting[run] = waiting

    async def _write(self, batch: Sequence[tuple[Held, T]]) -> None:
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
        self._dropped: Counter[str] = Counter()

    def event(self, event: Event) -> None:
        if not self._records.add_event(self._held, event):
            self._dropped["events_dropped"] += 1

    def log(self, line: LogLine) -> None:
        if not self._records.add_line(self._held, line):
            self._dropped["log_bytes_dropped"] += len(line.text.encode())

    def call(self, call: PricedCall) -> None:
        self._records.add_call(self._held, call)

    def told_in(self, outcome: Outcome) -> Outcome:
        """The outcome with what was dropped here beside what was dropped before."""
        return replace(outcome, metadata={**outcome.metadata, **(self._dropped + Counter(_dropped_in(outcome)))})


def _dropped_in(outcome: Outcome) -> dict[str, int]:
    return {
        name: outcome.metadata[name] for name in ("events_dropped", "log_bytes_dropped") if name in outcome.metadata
    }
