"""Serves metrics over HTTP, and reads from the ledger what nobody logs: how executions ended, and the queue."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self
from uuid import UUID

import structlog
from prometheus_client import start_http_server
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flowledger.database.session import Claims, Database
from flowledger.errors import FlowledgerError, InvalidInput
from flowledger.ledger import executions, flows, usage
from flowledger.ledger.executions import Ended
from flowledger.ledger.flows import Backlog
from flowledger.ledger.usage import Spent
from flowledger.telemetry.ended import EndedExecutions
from flowledger.telemetry.metrics import Metrics

_log = structlog.get_logger("flowledger.metrics")

_MOST_AT_A_TIME = 500
_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 5.0
_FRESH_SECONDS = 1.0
"""However many scrape at one time, the queue is read once in so long."""


class MetricsServer:
    """Answers scrapes while the `with` block runs."""

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        """Port 0 is any free one. Raises InvalidInput when it cannot be listened at."""
        try:
            self._server, self._thread = start_http_server(port, host, metrics.registry)
        except OSError as refused:
            raise InvalidInput(
                "setting metrics_port",
                f"{host}:{port} cannot be listened at: {refused.strerror}",
                "Choose another one.",
            ) from refused

    def __enter__(self) -> Self:
        host, port = self._server.server_address[:2]
        _log.info("metrics_served", address=f"http://{host!s}:{port}/metrics")
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class EndCounter:
    """Counts executions by their rows, once they have ended. `failed` is told of each failure to read, `worked` of each
    success.
    """

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        ended: EndedExecutions,
        *,
        failed: Callable[[Exception], None],
        worked: Callable[[], None],
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._ended = ended
        self._failed = failed
        self._worked = worked

    async def keep_counting(self) -> None:
        """Counts until it is cancelled."""
        while True:
            ids = await self._ended.next(_MOST_AT_A_TIME)
            self._metrics.count(*await self._read(ids))
            self._ended.settled(len(ids))

    async def _read(self, ids: list[UUID]) -> tuple[list[Ended], list[Spent]]:
        while True:
            try:
                async with self._database.session(Claims.of_operator()) as session:
                    read = await executions.ended(session, ids), await usage.spent(session, ids)
            except FlowledgerError as trouble:
                self._failed(trouble)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self._worked()
                return read


class QueueGauges(Collector):
    """What waits and runs now in the whole ledger, read when a scrape asks. Every worker says the same."""

    def __init__(self, database: Database, loop: asyncio.AbstractEventLoop) -> None:
        self._database = database
        self._loop = loop
        self._one_at_a_time = threading.Lock()
        self._backlog: list[Backlog] | None = None
        self._read_at = float("-inf")

    def collect(self) -> Iterator[Metric]:
        """Runs in a thread of the server."""
        return of_ledger(self._now())

    def _now(self) -> list[Backlog] | None:
        with self._one_at_a_time:
            if time.monotonic() - self._read_at > _FRESH_SECONDS:
                self._backlog = self._asked()
                self._read_at = time.monotonic()
            return self._backlog

    def _asked(self) -> list[Backlog] | None:
        asking = asyncio.run_coroutine_threadsafe(self._ask(), self._loop)
        try:
            return asking.result(_LOOK_SECONDS)
        except TimeoutError:
            asking.cancel()
            return None

    async def _ask(self) -> list[Backlog] | None:
        try:
            async with self._database.session(Claims.of_operator()) as session:
                return await flows.backlog(session)
        except FlowledgerError:
            return None


def of_ledger(backlog: list[Backlog] | None) -> Iterator[Metric]:
    """What waits and runs, as gauges. None: the ledger did not answer, and nothing else is told."""
    up = GaugeMetricFamily("flowledger_database_up", "1 if the ledger answered this scrape.")
    up.add_metric((), float(backlog is not None))
    yield up
    if backlog is not None:
        yield _by_flow("queue_depth", "Executions that wait.", {one.flow_key: one.waiting for one in backlog})
        oldest = {one.flow_key: one.oldest_seconds for one in backlog}
        yield _by_flow("queue_oldest_age_seconds", "How long the first that may start has waited.", oldest)
        running = {one.flow_key: one.running for one in backlog}
        yield _by_flow("executions_running", "Executions that some worker runs.", running)


def _by_flow(name: str, told: str, values: dict[str, int] | dict[str, float]) -> Metric:
    family = GaugeMetricFamily(f"flowledger_{name}", told, labels=("flow",))
    for flow, value in values.items():
        family.add_metric((flow,), value)
    return family
