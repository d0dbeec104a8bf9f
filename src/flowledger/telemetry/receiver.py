"""Sends spans to an OTLP receiver, over HTTP. The only module that meets OpenTelemetry; needs the extra `otel`."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from uuid import UUID

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from flowledger import __version__
from flowledger.telemetry.destination import Destination
from flowledger.telemetry.traces import Moment, TraceSpan, trace_id

_POST_SECONDS = 10.0
_ANSWER_SECONDS = 30.0
"""For all of one trace. Who answers byte by byte is given up too."""
_SPANS_OF_A_POST = 500
_SCOPE = InstrumentationScope("flowledger", __version__)


class Receiver:
    """One receiver. It sends one trace at a time, in a thread that no exit of the process waits for."""

    def __init__(self, destination: Destination) -> None:
        self._complaints = _Complaints()
        self._exporter = OTLPSpanExporter(
            endpoint=destination.url,
            headers=destination.headers,
            timeout=_POST_SECONDS,
            compression=Compression.Gzip,
        )
        self._resource = _resource()
        self._sending: threading.Thread | None = None

    async def send(self, execution: UUID, spans: Sequence[TraceSpan]) -> None:
        """Raises ConnectionError if the receiver did not take them. To send the same spans twice does no harm."""
        if self._sending is not None and self._sending.is_alive():
            raise ConnectionError("the receiver still has not answered to an earlier trace")
        answered: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._sending = threading.Thread(
            target=self._post, args=(execution, spans, _answering(answered)), name="traces", daemon=True
        )
        self._sending.start()
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                refusal = await answered
        except TimeoutError:
            raise ConnectionError("the receiver does not answer in time") from None
        if refusal is not None:
            raise ConnectionError(refusal)

    def _post(self, execution: UUID, spans: Sequence[TraceSpan], answer: Callable[[str | None], None]) -> None:
        """Runs in the thread. Answers with what went wrong, or None."""
        try:
            answer(self._posted([_readable(execution, span, self._resource) for span in spans]))
        except Exception as fault:
            answer(f"{type(fault).__name__}: {fault}")

    def _posted(self, spans: list[ReadableSpan]) -> str | None:
        for begin in range(0, len(spans), _SPANS_OF_A_POST):
            self._complaints.clear()
            if self._exporter.export(spans[begin : begin + _SPANS_OF_A_POST]) is not SpanExportResult.SUCCESS:
                return self._complaints.first or "the receiver did not take it"
        return None


class _Complaints(logging.Handler):
    """What the exporter says of failures, which it tells its log only. Nobody else is to be told at each attempt."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first: str | None = None
        log = logging.getLogger("opentelemetry")
        log.propagate = False
        log.addHandler(self)

    def clear(self) -> None:
        self.first = None

    def emit(self, record: logging.LogRecord) -> None:
        self.first = self.first or record.getMessage()[:300]


def _answering(answered: asyncio.Future[str | None]) -> Callable[[str | None], None]:
    """Brings an answer from a thread into the loop, unless nobody waits for it any more."""
    loop = answered.get_loop()

    def settle(refusal: str | None) -> None:
        if not answered.done():
            answered.set_result(refusal)

    def answer(refusal: str | None) -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, refusal)

    return answer


def _resource() -> Resource:
    """Who sends. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come first."""
    told = Resource.create({SERVICE_VERSION: __version__})
    if str(told.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return told.merge(Resource({SERVICE_NAME: "flowledger"}))
    return told


def _readable(execution: UUID, span: TraceSpan, resource: Resource) -> ReadableSpan:
    return ReadableSpan(
        name=span.name,
        context=_context(execution, span.id),
        parent=None if span.parent is None else _context(execution, span.parent),
        resource=resource,
        attributes=span.attributes,
        events=[_event(moment) for moment in span.moments],
        kind=SpanKind.CLIENT if span.leaves else SpanKind.INTERNAL,
        instrumentation_scope=_SCOPE,
        status=Status(StatusCode.UNSET) if span.failure is None else Status(StatusCode.ERROR, span.failure),
        start_time=_nanoseconds(span.started_at),
        end_time=_nanoseconds(span.ended_at),
    )


def _context(execution: UUID, span: int) -> SpanContext:
    return SpanContext(trace_id(execution), span, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _event(moment: Moment) -> Event:
    return Event(moment.name, moment.attributes, _nanoseconds(moment.at))


def _nanoseconds(at: datetime) -> int:
    # Not by a float, which has no digits left for microseconds.
    seconds = int(at.replace(microsecond=0).timestamp())
    return seconds * 1_000_000_000 + at.microsecond * 1_000
