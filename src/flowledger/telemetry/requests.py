"""What a server counts of its requests, and what is open in it now, as Prometheus reads it.

Labels are bounded: routes are templates, `/executions/{reference}`, and nothing of them tells who asked for what.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowledger.database.session import PoolUse
from flowledger.ledger.flows import Backlog
from flowledger.telemetry.scrapes import of_ledger

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_NO_ROUTE = "none"
_NO_ANSWER = "none"
_OTHER_METHOD = "other"
_PREFIX = "/api/v1"


class RequestMetrics:
    """The counters of one server process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "flowledger_api_requests",
            "Requests by their route's template.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._durations = Histogram(
            "flowledger_api_request_duration_seconds",
            "Until the answer begins: a stream goes on for as long as its client likes.",
            ("method", "route"),
            buckets=_SECONDS,
            registry=self.registry,
        )

    def count(self, method: str, route: str, status: int | None, seconds: float) -> None:
        """One request. `status` None: it was not answered."""
        known = method if method in _METHODS else _OTHER_METHOD
        self._requests.labels(known, route, _NO_ANSWER if status is None else str(status)).inc()
        self._durations.labels(known, route).observe(seconds)

    def exposition(self, backlog: list[Backlog] | None, pool: PoolUse, streams: int) -> bytes:
        """In Prometheus' text format, with how things are now. `backlog` None: the database did not answer."""
        return generate_latest(self.registry) + generate_latest(_Now(backlog, pool, streams))


class _Now(Collector):
    def __init__(self, backlog: list[Backlog] | None, pool: PoolUse, streams: int) -> None:
        self._backlog, self._pool, self._streams = backlog, pool, streams

    def collect(self) -> Iterable[Metric]:
        yield from of_ledger(self._backlog)
        yield from gauges(self._pool, self._streams)


def gauges(pool: PoolUse, streams: int) -> Iterator[Metric]:
    """What is open in this process."""
    yield _gauge("api_streams", "Live streams that are open.", streams)
    yield _gauge("pool_connections_open", "Connections of the pool to the database.", pool.open)
    yield _gauge("pool_connections_busy", "Those that a request uses now.", pool.open - pool.idle)
    yield _gauge("pool_connections_limit", "Connections that the pool may have.", pool.most)
    yield _gauge("pool_requests_waiting", "Requests that wait for a connection.", pool.waiting)


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(f"flowledger_{name}", told, value=value)


class Counted:
    """Counts every request that passes. Outermost, so that refusals and faults are counted as well."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, ended, status = time.monotonic(), None, None

        async def sending(message: Message) -> None:
            nonlocal ended, status
            if message["type"] == "http.response.start":
                ended, status = time.monotonic(), message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            self._metrics.count(scope["method"], _route(scope), status, (ended or time.monotonic()) - began)


def _route(scope: Scope) -> str:
    """Known once the request was routed."""
    path = getattr(scope.get("route"), "path", None)
    return _NO_ROUTE if path is None else str(path).removeprefix(_PREFIX)
