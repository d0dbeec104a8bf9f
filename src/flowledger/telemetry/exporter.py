"""Exports the trace of each execution that this process has brought to its end.

It stands beside the work: it reads what the ledger holds, and a receiver that is away, slow or broken costs traces and
nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from uuid import UUID

import structlog

from flowledger.database.session import Claims, Connection, Database
from flowledger.domain.timeline import Event
from flowledger.errors import ExecutionNotFound, FlowledgerError
from flowledger.ledger import executions, timeline, usage
from flowledger.telemetry.ended import EndedExecutions
from flowledger.telemetry.receiver import Receiver
from flowledger.telemetry.traces import TraceSpan, trace

_log = structlog.get_logger("flowledger.traces")

_MOST_EVENTS = 20_000
"""Of one trace, from its begin: no receiver shows more, and the worker's memory is not for them."""
_EVENTS_OF_A_PAGE = 1_000
_PAUSES = (1.0, 5.0, 20.0)
"""Seconds before each further attempt. After the last one the trace is dropped."""
_FAREWELL_SECONDS = 5.0


class TraceExporter:
    """`failed` is told of each failure, `worked` of each trace that was sent. `previews`: see `traces.trace`."""

    def __init__(
        self,
        database: Database,
        receiver: Receiver,
        ended: EndedExecutions,
        *,
        previews: bool,
        failed: Callable[[Exception], None],
        worked: Callable[[], None],
    ) -> None:
        self._database = database
        self._receiver = receiver
        self._ended = ended
        self._previews = previews
        self._failed = failed
        self._worked = worked
        self._dropped = 0
        self._forgotten = 0

    async def keep_exporting(self) -> None:
        """Exports one after another until it is cancelled."""
        while True:
            for execution in await self._ended.next():
                await self._export(execution)
                self._ended.settled()
            self._count_forgotten()

    async def finish(self) -> None:
        """Gives what still waits a moment to be sent, and tells what will not be."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await self._ended.all_settled()
        self._count_forgotten()
        self._drop(self._ended.unsettled)
        self._tell_dropped()

    async def _export(self, execution: UUID) -> None:
        for pause in (*_PAUSES, None):
            try:
                await self._receiver.send(execution, await self._trace(execution))
            except ExecutionNotFound:
                # Pruned meanwhile.
                return
            except (ConnectionError, FlowledgerError) as trouble:
                self._failed(trouble)
            except Exception:
                _log.exception("trace_mishandled", execution=str(execution))
                return
            else:
                self._worked()
                self._tell_dropped()
                return
            if pause is not None:
                await asyncio.sleep(pause)
        self._drop(1)

    async def _trace(self, execution: UUID) -> list[TraceSpan]:
        operator = Claims.of_operator()
        async with self._database.session(operator) as session:
            row = await executions.find(session, operator, str(execution))
            events = await _first_events(session, execution)
            calls = await usage.read(session, execution)
        # In a thread: of a long timeline it takes longer than the worker's loop may stand still.
        return await asyncio.to_thread(trace, row, events, calls, previews=self._previews)

    def _count_forgotten(self) -> None:
        self._drop(self._ended.forgotten - self._forgotten)
        self._forgotten = self._ended.forgotten

    def _drop(self, number: int) -> None:
        if number:
            self._dropped += number
            _log.debug("traces_dropped", number=number)

    def _tell_dropped(self) -> None:
        if self._dropped:
            _log.warning("traces_lost", number=self._dropped)
            self._dropped = 0


async def _first_events(session: Connection, execution: UUID) -> list[Event]:
    """Page by page: the worker's loop has its turn between them."""
    events: list[Event] = []
    while len(events) < _MOST_EVENTS:
        after = events[-1].sequence if events else 0
        page = await timeline.read(session, execution, after=after, most=_EVENTS_OF_A_PAGE)
        events += page
        if len(page) < _EVENTS_OF_A_PAGE:
            break
    return events
