"""Who watches a worker, as the settings ask for it: receivers of traces, scrapers of metrics.

They stand beside the work, hear what it logs and read what the ledger holds. What fails here is logged, and the work
goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from flowledger.database.session import Database
from flowledger.errors import InvalidInput
from flowledger.settings import Settings
from flowledger.telemetry.destination import Destination
from flowledger.telemetry.ended import EndedExecutions
from flowledger.worker.ending import ended as ended_tasks
from flowledger.worker.trouble import Trouble

_log = structlog.get_logger("flowledger.observers")


@dataclass(frozen=True)
class _Observer:
    hears: tuple[structlog.typing.Processor, ...]
    watch: Callable[[Database], AbstractAsyncContextManager[None]]


class Observers:
    """Raises InvalidInput for settings that cannot be used. `scraped` False: metrics are not served."""

    def __init__(self, chosen: Settings, *, scraped: bool = True) -> None:
        asked = (_of_traces(chosen), _of_metrics(chosen) if scraped else None)
        self._observers = [observer for observer in asked if observer is not None]

    @property
    def listeners(self) -> list[structlog.typing.Processor]:
        """Those that want to hear every fact that is logged."""
        return [hear for observer in self._observers for hear in observer.hears]

    @property
    def connections(self) -> int:
        """How many connections they hold at one time, at most."""
        return len(self._observers)

    @asynccontextmanager
    async def watching(self, database: Database) -> AsyncIterator[None]:
        """They are at work while the block runs. Raises InvalidInput."""
        async with AsyncExitStack() as stack:
            for observer in self._observers:
                await stack.enter_async_context(observer.watch(database))
            yield


def _of_traces(chosen: Settings) -> _Observer | None:
    if chosen.otlp_endpoint is None:
        return None
    headers = None if chosen.otlp_headers is None else chosen.otlp_headers.get_secret_value()
    destination = Destination.of(chosen.otlp_endpoint, headers)
    try:
        from flowledger.telemetry.exporter import TraceExporter
        from flowledger.telemetry.receiver import Receiver
    except ImportError as missing:
        raise InvalidInput(
            "setting otlp_endpoint", f"{missing.name} is not installed", "Install flowledger[otel]."
        ) from missing
    receiver, ended = Receiver(destination), EndedExecutions()

    @asynccontextmanager
    async def watch(database: Database) -> AsyncIterator[None]:
        trouble = Trouble("traces_not_sent")
        exporter = TraceExporter(
            database, receiver, ended, previews=chosen.otlp_previews, failed=trouble.met, worked=trouble.over
        )
        async with _beside("traces", exporter.keep_exporting()):
            try:
                yield
            finally:
                await exporter.finish()

    return _Observer((ended.hear,), watch)


def _of_metrics(chosen: Settings) -> _Observer | None:
    if chosen.metrics_port is None:
        return None
    from flowledger.telemetry.metrics import Metrics
    from flowledger.telemetry.scrapes import EndCounter, MetricsServer, QueueGauges

    metrics, ended, port = Metrics(), EndedExecutions(), chosen.metrics_port

    @asynccontextmanager
    async def watch(database: Database) -> AsyncIterator[None]:
        trouble = Trouble("ends_not_counted")
        counter = EndCounter(database, metrics, ended, failed=trouble.met, worked=trouble.over)
        metrics.registry.register(QueueGauges(database, asyncio.get_running_loop()))
        with MetricsServer(metrics, chosen.metrics_host, port):
            async with _beside("metrics", counter.keep_counting()):
                yield

    return _Observer((metrics.hear, ended.hear), watch)


@asynccontextmanager
async def _beside(name: str, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """The work goes on while the block runs. A fault in it is told, and ends nothing else."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_tell_fault)
    try:
        yield
    finally:
        await ended_tasks((task,))


def _tell_fault(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (fault := task.exception()):
        _log.error("observer_ended", observer=task.get_name(), exc_info=fault)
