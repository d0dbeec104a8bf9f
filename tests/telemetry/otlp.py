"""An OTLP receiver for tests: real HTTP, real protobuf, and a mood."""

from __future__ import annotations

import gzip
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True)
class Received:
    """A span as the receiver has it. `parent` None: a root. Times are Unix nanoseconds."""

    execution: UUID
    id: bytes
    parent: bytes | None
    name: str
    kind: str
    began: int
    ended: int
    failure: str | None
    attributes: dict[str, Any]
    events: tuple[str, ...]
    service: str


class OtlpReceiver:
    """Listens while the `with` block runs. `mood`: `takes`, `refuses` (answers 500) or `hangs` (answers nothing)."""

    def __init__(self, mood: str = "takes") -> None:
        self.mood = mood
        self.asked = 0
        self.headers: dict[str, str] = {}
        self.path = ""
        self._spans: list[Received] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._take(self)

            def log_message(self, *_: object) -> None:
                """Silent."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def spans_of(self, execution: object) -> list[Received]:
        """Those of the execution, in the order in which they came; the same span twice counts once."""
        with self._lock:
            return list({span.id: span for span in self._spans if str(span.execution) == str(execution)}.values())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _take(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        with self._lock:
            self.asked += 1
            self.headers, self.path = dict(request.headers), request.path
        if self.mood == "hangs":
            self._closing.wait(60)
            request.close_connection = True
            return
        if self.mood == "takes":
            spans = decoded(gzip.decompress(body))
            with self._lock:
                self._spans += spans
        answer = ExportTraceServiceResponse().SerializeToString()
        request.send_response(200 if self.mood == "takes" else 500)
        request.send_header("Content-Type", "application/x-protobuf")
        request.send_header("Content-Length", str(len(answer)))
        request.end_headers()
        request.wfile.write(answer)


def decoded(body: bytes) -> list[Received]:
    """The spans of an ExportTraceServiceRequest."""
    request = ExportTraceServiceRequest.FromString(body)
    return [
        _received(span, _attributes(resource.resource.attributes).get("service.name", ""))
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _received(span: trace_pb2.Span, service: str) -> Received:
    failed = span.status.code == trace_pb2.Status.STATUS_CODE_ERROR
    return Received(
        execution=UUID(bytes=span.trace_id),
        id=span.span_id,
        parent=span.parent_span_id or None,
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind),
        began=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
        failure=span.status.message if failed else None,
        attributes=_attributes(span.attributes),
        events=tuple(event.name for event in span.events),
        service=service,
    )


def _attributes(given: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in given}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return None if kind is None else getattr(value, kind)
