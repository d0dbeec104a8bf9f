"""The HTTP side: routes, server-sent events, faults and the server's own count of what it served.

What an answer says and what it costs is decided in `answers.py`.
"""

import json
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from stub_llm.answers import Answer, Usage, answer

DUMMY_KEY = "stub-key-no-secret"
FAULT_HEADER = "X-Stub-Fault"
MODELS = ("gpt-4o-mini", "gpt-4o", "gpt-4.1-mini")

_FAULT_IN_MODEL = re.compile(r"stub-((?:slow|trickle)-[\d.]+s|no-usage|drop|\d{3}(?:-once)?)")
_WORDS = {400: "invalid_request_error", 401: "invalid_api_key", 429: "rate_limit_exceeded"}


def environment(url: str) -> dict[str, str]:
    """The variables that send every OpenAI client, CrewAI's included, to this server."""
    return {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": DUMMY_KEY}


class StubServer:
    """Serves in a thread while the `with` block runs; entering it gives the base URL, `http://host:port/v1`."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._http = _Http((host, port), _Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name="stub-llm", daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return self.url

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        host, port = self._http.server_address[:2]
        return f"http://{host!s}:{port}/v1"

    def settle(self) -> None:
        """Waits until no request is being answered: then the counts are whole, also of clients that hung up."""
        counts = self._http.counts
        with counts.lock:
            counts.lock.wait_for(lambda: counts.under_way == 0)

    def stats(self) -> dict[str, Any]:
        """What GET /stats says: calls, failures and tokens, in all and by model."""
        return self._http.counts.told()


# -- Counting ----------------------------------------------------------------------------------------------------------


@dataclass
class Count:
    """`calls` counts every request, `failed` those that got an error or were cut, `untold` those that were answered
    without the client hearing what it cost: it did not ask, was not to be told, or hung up. Tokens are of the others.
    """

    calls: int = 0
    failed: int = 0
    untold: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0

    def fail(self) -> None:
        self.calls += 1
        self.failed += 1

    def answer(self, usage: Usage | None) -> None:
        """None: the client was not told."""
        self.calls += 1
        if usage is None:
            self.untold += 1
            return
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.completion_tokens += usage.completion_tokens
        self.reasoning_tokens += usage.reasoning_tokens


@dataclass
class Counts:
    total: Count = field(default_factory=Count)
    by_model: dict[str, Count] = field(default_factory=dict)
    lock: threading.Condition = field(default_factory=threading.Condition)
    spent_faults: set[str] = field(default_factory=set)
    under_way: int = 0

    def failed(self, model: str) -> None:
        with self.lock:
            for count in self._of(model):
                count.fail()

    def answered(self, model: str, usage: Usage | None) -> None:
        with self.lock:
            for count in self._of(model):
                count.answer(usage)

    @contextmanager
    def answering(self) -> Iterator[None]:
        with self.lock:
            self.under_way += 1
        try:
            yield
        finally:
            with self.lock:
                self.under_way -= 1
                self.lock.notify_all()

    def _of(self, model: str) -> tuple[Count, Count]:
        return self.total, self.by_model.setdefault(model, Count())

    def is_first(self, fault: str) -> bool:
        with self.lock:
            first = fault not in self.spent_faults
            self.spent_faults.add(fault)
            return first

    def told(self) -> dict[str, Any]:
        with self.lock:
            return {**asdict(self.total), "by_model": {model: asdict(count) for model, count in self.by_model.items()}}

    def forget(self) -> None:
        with self.lock:
            self.total = Count()
            self.by_model.clear()
            self.spent_faults.clear()


# -- HTTP --------------------------------------------------------------------------------------------------------------


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self.counts = Counts()
        super().__init__(*arguments)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up, as a killed flow does, is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    protocol_version = "HTTP/1.1"
    # Without this each small chunk of a stream waits for the client's delayed acknowledgement.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path == "/stats":
            self._say(200, self.server.counts.told())
        elif self.path == "/v1/models":
            models = [{"id": name, "object": "model", "created": 0, "owned_by": "stub"} for name in MODELS]
            self._say(200, {"object": "list", "data": models})
        else:
            self._fail(404, f"there is no {self.path} here")

    def do_DELETE(self) -> None:
        if self.path != "/stats":
            self._fail(404, f"there is no {self.path} here")
            return
        self.server.counts.forget()
        self._say(200, self.server.counts.told())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/v1/chat/completions":
            self._fail(404, f"there is no {self.path} here")
            return
        try:
            request = json.loads(body)
            model, messages = str(request["model"]), request["messages"]
        except (ValueError, KeyError, TypeError) as error:
            self._fail(400, f"the request is not a chat completion: {error!r}")
            return
        with self.server.counts.answering():
            self._complete(request, model, messages)

    def _complete(self, request: dict[str, Any], model: str, messages: list[dict[str, Any]]) -> None:
        fault, counts = self._fault(model), self.server.counts
        if fault.startswith("slow-") and self._hangs_up_within(_seconds(fault)):
            counts.answered(model, None)
            self.close_connection = True
            return
        if fault[:3].isdigit():
            counts.failed(model)
            self._fail(int(fault[:3]), f"the stub was asked to fail with {fault[:3]} by {model}")
            return
        given = answer(
            model, messages, request.get("tools") or [], request.get("response_format"), _most_tokens(request)
        )
        tells = fault != "no-usage"
        if request.get("stream"):
            tells = tells and bool((request.get("stream_options") or {}).get("include_usage"))
            self._stream(given, model, fault, tells=tells)
        elif fault == "drop":
            counts.failed(model)
            self.close_connection = True
        else:
            counts.answered(model, given.usage if tells else None)
            self._say(200, given.completion(with_usage=tells))

    def _hangs_up_within(self, seconds: float) -> bool:
        readable, _, _ = select.select([self.connection], [], [], seconds)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def _fault(self, model: str) -> str:
        """From the header, else from the model's name; empty when all is to go well."""
        named = _FAULT_IN_MODEL.search(model)
        fault = self.headers.get(FAULT_HEADER) or (named.group(1) if named else "")
        if fault.endswith("-once") and not self.server.counts.is_first(f"{model} {fault}"):
            return ""
        return fault

    def _stream(self, given: Answer, model: str, fault: str, *, tells: bool) -> None:
        """The last piece tells the usage. Who hangs up before has not heard it."""
        counts = self.server.counts
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        pieces = list(given.chunks(with_usage=tells))
        try:
            for number, piece in enumerate(pieces, 1):
                if fault == "drop" and number == 3:
                    counts.failed(model)
                    self.close_connection = True
                    return
                if fault.startswith("trickle-"):
                    time.sleep(_seconds(fault))
                if number == len(pieces):
                    # Before it is sent: whoever has heard it may ask for the count at once.
                    counts.answered(model, given.usage if tells else None)
                self._event(json.dumps(piece))
        except OSError:
            if number < len(pieces):
                counts.answered(model, None)
            raise
        self._event("[DONE]")
        self._chunk(b"")

    def _event(self, data: str) -> None:
        self._chunk(f"data: {data}\n\n".encode())

    def _chunk(self, piece: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

    def _fail(self, status: int, message: str) -> None:
        kind = _WORDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self._say(status, {"error": {"message": message, "type": kind, "param": None, "code": kind}})

    def _say(self, status: int, told: dict[str, Any]) -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the signature is http.server's
        """Silent: what was served is in /stats."""


def _seconds(fault: str) -> float:
    return float(fault.partition("-")[2].removesuffix("s"))


def _most_tokens(request: dict[str, Any]) -> int | None:
    most = request.get("max_completion_tokens") or request.get("max_tokens")
    return most if isinstance(most, int) and most > 0 else None
