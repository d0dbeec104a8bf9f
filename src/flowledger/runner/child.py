"""Inside the fork: load the flow, kick it off, report how it went. Knows no database.

Everything here runs in the flow's own process, so nothing here is trusted by the worker: the report is believed only
as far as the end of the process agrees with it.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import hashlib
import importlib
import inspect
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from flowledger.runner import encode, stack, wire
from flowledger.runner.gate import Gate, let_async_calls_wait
from flowledger.runner.listener import Listener, Terms
from flowledger.runner.redact import Known, Redactor

_LEAVE_SECONDS = 2.0
_LARGEST_STATE = 1 << 18
_FREE_SECONDS = 0.02
_LONGEST_MESSAGE = 16_384
_LONGEST_TYPE = 100
_OWN_WORDS = ("kind", "event", "usage")


@dataclass(frozen=True)
class Channels:
    """Descriptors of one run, in the order in which the worker sends them (after the supervisor's)."""

    control: int
    frames: int
    stdout: int
    stderr: int


class HumanNeeded(RuntimeError):
    """The flow asks a person, and nobody can answer in a headless run."""


def main(channels: Channels, redactor: Redactor) -> NoReturn:
    """The flow's process, from its first instruction to its last. `redactor` learns what is set in the environment."""
    reporter = _Reporter(channels.frames, redactor)
    try:
        _take_over_standard_streams(channels)
        control = socket.socket(fileno=channels.control)
        received = wire.receive(control)
        if received is None:
            os._exit(1)
        order = received[0]
        _run(order, reporter, control)
    except SystemExit as exit_request:
        _leave(_report_exit(reporter, exit_request))
    except BaseException as error:
        reporter.fail(error)
        _leave(1)
    _leave(0)


def _run(order: dict[str, Any], reporter: _Reporter, control: socket.socket) -> None:
    reporter.keep_secrets(order["redact"])
    reporter.roots = tuple(order["roots"])
    reporter.most_bytes = order["max_output_bytes"]
    gc.enable()
    _reseed()
    gate = Gate(control, reporter.send, asks=order.get("asks", False))
    _prepare_crewai(order["execution_id"], gate)
    flow = build(order["entry_point"], order["inputs"])
    reporter.flow = flow
    terms = Terms(order["max_events"], order["preview_characters"])
    reporter.listener = listener = Listener(reporter.send, reporter.keep_state, gate, terms, reporter.redactor.cut)
    if not listener.attach(flow):
        listener.begin()
    reporter.complete(_kickoff(flow, order["inputs"]))


def _take_over_standard_streams(channels: Channels) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (channels.stdout, 1), (channels.stderr, 2)):
        os.dup2(source, target, inheritable=True)
        os.close(source)
    for stream in (sys.stdout, sys.stderr):
        # Python made them while descriptors 1 and 2 were the template's; whole lines are what a reader wants to see.
        with contextlib.suppress(Exception):
            stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]
    faulthandler.enable(file=2)


def _reseed() -> None:
    """Python reseeds `random` after a fork; numpy does not, and parallel runs would draw the same numbers."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


# -- CrewAI, made fit for a run without a person ----------------------------------------------------------------------


def _prepare_crewai(execution_id: str, gate: Gate) -> None:
    import crewai  # noqa: F401 - the parts below may not be imported before it

    for prepare in (_quieten, _keep_memory_lazy, _refuse_questions):
        with contextlib.suppress(ImportError, AttributeError):
            prepare()
    with contextlib.suppress(ImportError):
        from crewai.execution import set_execution_uuid

        set_execution_uuid(execution_id)
    with contextlib.suppress(ImportError, AttributeError):
        _stop_when_asked(gate)
    with contextlib.suppress(ImportError, AttributeError):
        let_async_calls_wait()


def _quieten() -> None:
    from crewai_core.printer import set_suppress_console_output

    set_suppress_console_output(True)


class _LazyMemory:
    """Stands for the LanceDB store that every Flow() opens, until memory is really used: it starts threads and
    takes seconds to import.
    """

    def __getattr__(self, name: str) -> Any:
        from crewai.memory.storage.lancedb_storage import LanceDBStorage

        if name.startswith("__"):
            raise AttributeError(name)
        store = self.__dict__.get("_store")
        if store is None:
            store = self.__dict__["_store"] = LanceDBStorage()
        return getattr(store, name)


def _keep_memory_lazy() -> None:
    from crewai.memory.storage import factory

    if getattr(factory, "_factory", None) is None:
        factory.set_memory_storage_factory(lambda spec: _LazyMemory() if spec == "lancedb" else None)


def _refuse_questions() -> None:
    from crewai.flow import Flow
    from crewai.flow.flow_config import flow_config

    if flow_config.hitl_provider is None:
        flow_config.hitl_provider = _NobodyThere()
    ask = Flow.ask

    def ask_or_refuse(self: Any, message: str, *arguments: Any, **options: Any) -> Any:
        if self.input_provider is None and flow_config.input_provider is None:
            raise HumanNeeded(_nobody(f"Flow.ask() in {_current_method()}", "input_provider"))
        return ask(self, message, *arguments, **options)

    Flow.ask = ask_or_refuse


class _NobodyThere:
    def request_feedback(self, context: Any, flow: Any) -> str:  # noqa: ARG002 - the signature is CrewAI's
        raise HumanNeeded(_nobody(f"@human_feedback on {context.method_name}()", "hitl_provider"))


def _nobody(what: str, setting: str) -> str:
    return (
        f"{what} asks a person, but nobody can answer in a run without a terminal. Set "
        f"crewai.flow.flow_config.flow_config.{setting} in the flow's module, or pass the answer as an input."
    )


def _current_method() -> str:
    from crewai.flow.flow_context import current_flow_method_name

    return f"{current_flow_method_name.get('a method')}()"


def _stop_when_asked(gate: Gate) -> None:
    from crewai.hooks.dispatch import HookAborted, InterceptionPoint, register

    def stop_when_asked(_context: Any) -> None:
        if gate.stop is not None:
            raise HookAborted(reason=gate.stop, source="flowledger")

    register(InterceptionPoint.PRE_STEP, stop_when_asked)
    register(InterceptionPoint.PRE_MODEL_CALL, stop_when_asked)


# -- The flow ---------------------------------------------------------------------------------------------------------


def build(entry_point: str, inputs: Mapping[str, Any]) -> Any:
    """The flow object: `module:Class`, or the path of a declarative YAML file."""
    if entry_point.endswith((".yaml", ".yml")):
        from crewai.flow import Flow

        return Flow.from_declaration(path=Path(entry_point))
    module, _, name = entry_point.partition(":")
    kind: Any = importlib.import_module(module)
    for part in name.split("."):
        kind = getattr(kind, part)
    return _instantiate(kind, inputs)


def _instantiate(kind: Any, inputs: Mapping[str, Any]) -> Any:
    """`Flow()` builds its state before the inputs arrive, so a state with required fields is built from them here."""
    model = getattr(kind, "_initial_state_t", None)
    if not isinstance(model, type) or not hasattr(model, "model_fields"):
        model = getattr(kind, "initial_state", None)
    fields = getattr(model, "model_fields", None)
    if not isinstance(model, type) or not fields or not any(field.is_required() for field in fields.values()):
        return kind()
    return kind(initial_state=model(**inputs))


def _kickoff(flow: Any, inputs: dict[str, Any]) -> Any:
    result = flow.kickoff(inputs=inputs or None)
    if inspect.iscoroutine(result):
        import asyncio

        result = asyncio.run(result)
    if getattr(flow, "stream", False) and hasattr(type(result), "result") and hasattr(result, "__iter__"):
        for _ in result:
            pass
        result = result.result
    if type(result).__name__ == "HumanFeedbackPending":
        raise HumanNeeded(
            "the flow paused to wait for a person's feedback, and flowledger cannot resume a flow yet. "
            "Use a provider that answers at once, or pass the answer as an input."
        )
    return result


# -- The report -------------------------------------------------------------------------------------------------------


class _Reporter:
    """Writes frames; one at a time, whole, from whichever thread. Nothing leaves unredacted."""

    def __init__(self, frames: int, redactor: Redactor) -> None:
        self._frames = frames
        self._pid = os.getpid()
        self.redactor = redactor
        self._lock = threading.Lock()
        self.flow: Any = None
        self.listener: Listener | None = None
        self.roots: tuple[str, ...] = ()
        self.most_bytes = 1 << 20
        self._kept = b""
        self._keeping = _Allowance()

    def keep_secrets(self, patterns: list[str]) -> None:
        """Tells the worker, who reads what the run prints, what to leave out of it: now and whenever there is more."""
        self.redactor.also(patterns)
        self.redactor.learn_all(os.environ)
        self._tell_secrets(self.redactor.known)
        self.redactor.on_learn = self._tell_secrets

    def _tell_secrets(self, known: Known) -> None:
        # A process that the flow forked learns for itself, and would write into our pipe.
        if known and os.getpid() == self._pid:
            self._write(wire.pack({"kind": "secrets", "known": known}))

    def send(self, message: dict[str, Any]) -> None:
        frame = wire.pack(message)
        if self.redactor.suspects(frame[wire.HEADER_SIZE :].decode("ascii")):
            frame = wire.pack(_redacted(message, self.redactor))
        self._write(frame)

    def keep_state(self, state: Any) -> Any:
        """What there is to show if the flow is killed before it ends; answers with it as plain data.

        Left out, and answered with None, when it would slow the flow down.
        """
        if state is None or self._keeping.is_used_up:
            return None
        with self._keeping:
            value, changes = encode.encode({"state": state}, self.redactor)
            # Redacted before it is compared: what a comparison shortens and escapes would not be found any more.
            value, text = encode.redacted(value, self.redactor)
            body, left_out = encode.bounded(text, min(self.most_bytes, _LARGEST_STATE))
            if body != self._kept:
                self._kept = body
                self._send_with_output("state", body, {"changes": changes, "left_out": left_out})
            return value["state"]

    def complete(self, result: Any) -> None:
        value, changes = encode.encode({"state": _state(self.flow), "result": result}, self.redactor)
        self._finish("result", value, {"changes": changes})

    def fail(self, error: BaseException, **facts: Any) -> None:
        state = {"state": _state(self.flow)} if self.flow is not None else None
        value, changes = encode.encode(state, self.redactor)
        described = _describe(error, self.roots, self.redactor)
        if self.listener is not None:
            first_line = described["error_message"].strip().split("\n", 1)[0][:500]
            self.listener.tell_error({"type": described["error_type"], "message": first_line, **described})
        self._finish("error", value, {"changes": changes, **described, **facts})

    def _finish(self, kind: str, value: Any, facts: dict[str, Any]) -> None:
        """The output is its own JSON text, put into the frame as it is: it may be long, and was measured already."""
        body, left_out = encode.dump(value, self.most_bytes, self.redactor)
        events = 0 if self.listener is None else self.listener.heard
        with contextlib.suppress(OSError):
            self._send_with_output(kind, body, {"left_out": left_out, "events": events, **facts})
            return
        os.write(2, b"flowledger: the flow closed a descriptor that it had not opened; its result is lost\n")

    def _send_with_output(self, kind: str, body: bytes, facts: dict[str, Any]) -> None:
        head = wire.pack({"kind": kind, **facts})[wire.HEADER_SIZE :]
        self._write(wire.pack_json(head[:-1] + b',"output":' + body + b"}"))

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        with self._lock:
            while view:
                view = view[os.write(self._frames, view) :]


class _Allowance:
    """A share of the flow's time for work that it did not ask for: a little at once, a twentieth from then on."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._spent = 0.0
        self._entered = 0.0

    @property
    def is_used_up(self) -> bool:
        return self._spent > _FREE_SECONDS + (time.monotonic() - self._begun) / 20

    def __enter__(self) -> None:
        self._entered = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._spent += time.monotonic() - self._entered


def _state(flow: Any) -> Any:
    try:
        state = flow.state
        # CrewAI hands out a proxy with locks in front of the real thing.
        return getattr(flow, "_state", state)
    except Exception:
        return None


def _redacted(message: dict[str, Any], redactor: Redactor) -> dict[str, Any]:
    """Its own words, such as the names of fields and of classes of tokens, stay, whatever the secrets are."""
    told = {key: value if key in _OWN_WORDS else redactor.data(value, keys=False) for key, value in message.items()}
    if isinstance(fields := message.get("fields"), dict):
        told["fields"] = {name: part if name in _OWN_WORDS else _field(part, redactor) for name, part in fields.items()}
    return told


def _field(part: Any, redactor: Redactor) -> Any:
    """A number alone is a count of ours; inside of data it may be anything."""
    return redactor.data(part, numbers=isinstance(part, (dict, list)))


def _describe(error: BaseException, roots: tuple[str, ...], redactor: Redactor) -> dict[str, Any]:
    name = redactor.text(encode.clean(stack.qualified_name(type(error))))
    message = redactor.text(encode.clean(stack.message_of(error)))
    clamped: dict[str, Any] = {}
    if len(name) > _LONGEST_TYPE:
        clamped["error_type"] = name[:10_000]
    if len(message) > _LONGEST_MESSAGE:
        body = message.encode()
        clamped["error_message"] = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    return {
        "error_type": name[:_LONGEST_TYPE],
        "error_message": message[:_LONGEST_MESSAGE],
        "error_stack": stack.describe(error, roots, redactor),
        "fingerprint": stack.fingerprint(error, roots),
        "place": stack.place(error, roots),
        "clamped": clamped,
        "stopped": type(error).__name__ == "HookAborted" and getattr(error, "source", None) == "flowledger",
    }


def _report_exit(reporter: _Reporter, request: SystemExit) -> int:
    code = request.code
    if code is not None and not isinstance(code, int):
        with contextlib.suppress(Exception):
            print(code, file=sys.stderr)  # noqa: T201 - what the interpreter does with it
    status = code if isinstance(code, int) else int(code is not None)
    reporter.fail(request, exit_status=status & 0xFF)
    return status & 0xFF


def _leave(status: int) -> NoReturn:
    """Gives libraries that flush at exit a moment, and goes; threads of the flow that still run end here."""
    _after(_LEAVE_SECONDS, lambda: os._exit(status))
    for step in (_flush, atexit._run_exitfuncs, _flush):  # noqa: SLF001 - os._exit skips them, users count on them
        with contextlib.suppress(BaseException):
            step()
    os._exit(status)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _after(seconds: float, action: Callable[[], object]) -> None:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    with contextlib.suppress(RuntimeError):
        timer.start()
