"""Looks at a project's modules and says which flows they hold; runs under the project's interpreter, thrown away after.

There are two ways to be started: `main` in an interpreter of its own, `become_describer` in a fork of the base, which
holds CrewAI already. Every module is imported in one more fork, so that one which raises, exits, crashes or hangs costs
only itself. No flow is ever instantiated: `Flow()` starts threads and opens stores. Who asks is left to `templates.py`
and `registry.py`, what becomes of the answer to `registry.py`; starting flows is left to `template.py` and `child.py`.

The report is a JSON object a line, over a socket: `environment`, which is answered with the variables to drop; `ready`;
`looked` for each module or declaration; `end`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import math
import os
import platform
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn
from uuid import uuid4

from flowledger.runner import namespace, redact, supervisor

if TYPE_CHECKING:
    from collections.abc import Iterator

JsonObject = dict[str, Any]

_OLDEST_PYTHON = (3, 10)
_SIDE_BY_SIDE = 8
_POLL_SECONDS = 0.02
_KEPT_OUTPUT = 8_192
_SURROGATES_AND_NUL = re.compile("[\x00\ud800-\udfff]")
_redactor = redact.Redactor()
"""This process looks once: what it tells is free of the secrets of its environment."""


@dataclass(frozen=True)
class Order:
    """What to look at: modules by dotted name, declarations by path. `seconds` bounds all of it, CrewAI not counted."""

    root: str
    import_paths: list[str]
    modules: list[str]
    declarations: list[str]
    seconds: float


def main() -> None:
    """Entry of an interpreter of its own: `ORDER DESCRIPTOR` in argv."""
    order, channel = Order(**json.loads(sys.argv[1])), socket.socket(fileno=int(sys.argv[2]))
    if sys.version_info < _OLDEST_PYTHON:
        sys.exit(f"CrewAI flows need Python 3.10 or later; this is {platform.python_version()}")
    channel.set_inheritable(False)
    signal.signal(signal.SIGTERM, _leave)
    namespace.become_subreaper()
    try:
        _load_dotenv(order.root)
        _import_crewai()
        _report(order, channel)
    finally:
        _sweep()
    # Python's own way out takes its time with CrewAI loaded, and nothing here needs it.
    os._exit(0)


def become_describer(order: Order, channel: socket.socket, isolation: str) -> NoReturn:
    """The rest of a process that was forked from the base: nothing of it, or that a module started, is left behind."""
    try:
        signal.signal(signal.SIGTERM, _leave)
        _isolate(isolation)
        # A module that signals its process group shall not hit the base.
        os.setsid()
        gc.enable()
        with contextlib.suppress(OSError):
            os.chdir(order.root)
        _load_dotenv(order.root)
        _report(order, channel)
    finally:
        if isolation == namespace.SUBREAPER:
            _sweep()
        os._exit(0)


def _leave(*_: object) -> NoReturn:
    sys.exit(1)


def _isolate(isolation: str) -> None:
    if isolation == namespace.NAMESPACE:
        namespace.die_with_parent(signal.SIGKILL)
        namespace.become_init()
        return
    namespace.die_with_parent(signal.SIGTERM)
    namespace.become_subreaper()
    # Should this process be killed before it can sweep, a worker that starts later finds what it has left.
    namespace.rename_process(namespace.SUPERVISOR_NAME)
    namespace.Marker().write(str(uuid4()))


def _sweep() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    supervisor.sweep()


def _report(order: Order, channel: socket.socket) -> None:
    with channel, channel.makefile("rw", encoding="utf-8", newline="\n") as report:
        _forget_what_is_the_ledgers(report)
        versions = {"crewai_version": importlib.metadata.version("crewai"), "python_version": platform.python_version()}
        _tell(report, {"kind": "ready", **versions})
        for looked in _look_at_each(order, channel.fileno()):
            _tell(report, {"kind": "looked", **looked})
        _tell(report, {"kind": "end"})


def _tell(report: IO[str], line: JsonObject) -> None:
    report.write(json.dumps(line) + "\n")
    report.flush()


def _load_dotenv(root: str) -> None:
    """Modules may read the project's .env at import, as they may under `crewai run`."""
    try:
        from dotenv import load_dotenv  # CrewAI's own dependency
    except ImportError:
        return
    load_dotenv(Path(root) / ".env")


def _import_crewai() -> None:
    """Before the project's folders are on the path: a project's `json.py` must not break CrewAI itself."""
    importlib.import_module("crewai.flow")


def _forget_what_is_the_ledgers(report: IO[str]) -> None:
    """A .env may speak of the ledger too. Only the worker knows its secrets, so it is the one to name what must go."""
    _tell(report, {"kind": "environment", "environment": dict(os.environ)})
    for name in json.loads(report.readline())["drop"]:
        os.environ.pop(name, None)
    _redactor.learn_all(os.environ)
    redact.watch(_redactor.learn)


# -- One fork for each module ------------------------------------------------------------------------------------------


@dataclass
class _Look:
    """A fork that imports one module. `printed` holds what the module wrote, for the reports of those that die."""

    subject: str
    pid: int
    pipe: int
    printed: IO[bytes]
    answer: bytearray = field(default_factory=bytearray)


def _look_at_each(order: Order, channel: int) -> Iterator[JsonObject]:
    deadline = time.monotonic() + order.seconds
    waiting = [*order.modules, *order.declarations]
    looks: list[_Look] = []
    while waiting or looks:
        while waiting and len(looks) < _SIDE_BY_SIDE:
            looks.append(_start_look(waiting.pop(0), order, channel, deadline))
        for look in list(looks):
            _drain(look)
            status = _exit_status(look.pid)
            if status is None and time.monotonic() > deadline:
                status = _kill(look.pid)
            if status is not None:
                looks.remove(look)
                yield _conclude(look, status, hung=time.monotonic() > deadline, seconds=order.seconds)
        if looks:
            time.sleep(_POLL_SECONDS)


def _start_look(subject: str, order: Order, channel: int, deadline: float) -> _Look:
    pipe, answer = os.pipe()
    os.set_blocking(pipe, False)
    printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the look is concluded
    pid = os.fork()
    if pid == 0:
        # Whatever happens in here, nobody but the parent goes on with the parent's work.
        try:
            os.close(pipe)
            os.close(channel)
            _look(subject, order, answer, printed, deadline)
        finally:
            os._exit(1)
    os.close(answer)
    return _Look(subject, pid, pipe, printed)


def _drain(look: _Look) -> None:
    try:
        while piece := os.read(look.pipe, 65_536):
            look.answer += piece
    except BlockingIOError:
        pass


def _exit_status(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _kill(pid: int) -> int:
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _conclude(look: _Look, status: int, *, hung: bool, seconds: float) -> JsonObject:
    """The fork's own answer if it is whole; else what can be said from outside about how the fork ended."""
    _drain(look)
    os.close(look.pipe)
    try:
        if look.answer.endswith(b"\n"):
            answer: JsonObject = json.loads(look.answer)
            return answer
        if hung and status == -signal.SIGKILL:
            kind, message = "ImportTimeout", f"importing it took longer than {seconds:g} s"
        elif status < 0:
            kind, message = "ProcessKilled", f"importing it killed the process: {signal.Signals(-status).name}"
        else:
            kind, message = "ProcessExited", f"importing it ended the process: exit status {status}"
        return _lost(look.subject, kind, message, _tail(look.printed))
    finally:
        look.printed.close()


def _tail(printed: IO[bytes]) -> str:
    size = printed.seek(0, os.SEEK_END)
    printed.seek(max(0, size - _KEPT_OUTPUT))
    return printed.read().decode("utf-8", "replace")


def _lost(subject: str, kind: str, message: str, printed: str) -> JsonObject:
    return _looked_in_vain(
        {"module": subject, "error_type": kind, "error_message": message, "error_stack": _plain(printed)}
    )


def _looked_in_vain(broken: JsonObject) -> JsonObject:
    return {"subject": broken["module"], "flows": [], "warnings": [], "broken": [broken]}


# -- Inside the fork ---------------------------------------------------------------------------------------------------


def _look(subject: str, order: Order, answer: int, printed: IO[bytes], deadline: float) -> NoReturn:
    """Imports the subject, writes the answer, and leaves without running anything the module registered for exit."""
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(printed.fileno(), 1)
    os.dup2(printed.fileno(), 2)
    _become_ordinary()
    faulthandler.enable(file=2)
    faulthandler.dump_traceback_later(max(0.1, deadline - time.monotonic() - 0.2), file=2)
    try:
        sys.path[:0] = order.import_paths
        os.chdir(order.root)
        looked = _describe(subject, order)
    except BaseException as error:
        looked = _looked_in_vain(_failure(subject, error))
    with os.fdopen(answer, "wb") as pipe:
        pipe.write(json.dumps(looked).encode() + b"\n")
    os._exit(0)


def _become_ordinary() -> None:
    """What the describer is to the system, a module shall not be."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    namespace.rename_process(os.path.basename(sys.executable))  # noqa: PTH119 - one name
    namespace.drop_namespace_capabilities()
    namespace.die_with_parent(signal.SIGKILL)
    del sys.argv[1:]


def _describe(subject: str, order: Order) -> JsonObject:
    looked: JsonObject = {"subject": subject, "flows": [], "warnings": [], "broken": []}
    if subject in order.declarations:
        looked["flows"].append(_describe_declaration(Path(subject), order))
        return looked
    module = importlib.import_module(subject)
    looked["warnings"] += _threads_started(subject)
    for found in _flow_classes(module, order):
        try:
            if not found.flow_definition().methods:
                continue  # a base class for others, not a flow of its own
            looked["flows"].append(_describe_class(found, order, looked["warnings"]))
        except Exception as error:
            looked["broken"].append(_failure(_entry_point(found), error))
    return looked


def _threads_started(subject: str) -> list[str]:
    names = sorted(thread.name for thread in threading.enumerate() if thread is not threading.main_thread())
    if not names:
        return []
    listed = ", ".join(names)
    warning = (
        f"{subject} starts threads when it is imported ({listed}): a warm process cannot fork with them, so its flows"
    )
    return [f"{warning} start slowly. Start the threads in the flow's first step instead."]


def _flow_classes(module: Any, order: Order) -> list[Any]:
    """Flow classes that the module defines, or imports from elsewhere in the project."""
    from crewai.flow import Flow

    found = {
        value: None  # a dict for its order: the module's own
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Flow) and value is not Flow
    }
    return [
        flow
        for flow in found
        if "<locals>" not in flow.__qualname__ and (flow.__module__ == module.__name__ or _is_of_project(flow, order))
    ]


def _is_of_project(found: type, order: Order) -> bool:
    path = getattr(sys.modules.get(found.__module__), "__file__", None)
    if not path:
        return False
    real = Path(path).resolve()
    roots = [Path(root).resolve() for root in (order.root, *order.import_paths)]
    return "site-packages" not in real.parts and any(real.is_relative_to(root) for root in roots)


def _describe_class(flow: Any, order: Order, warnings: list[str]) -> JsonObject:
    entry_point = _entry_point(flow)
    declared_name = flow.model_fields["name"].default
    return _flow(
        key=_slug(declared_name) if declared_name else _slug(_snake_case(flow.__name__)),
        name=declared_name or flow.__name__,
        description=inspect.cleandoc(flow.__dict__.get("__doc__") or ""),
        entry_point=entry_point,
        input_schema=_schema_of_class(flow, entry_point, warnings),
        graph=_graph(flow, accepts_trigger_payload=_takes_trigger_payload(flow)),
        source=_source(flow, order),
    )


def _entry_point(flow: type) -> str:
    return f"{flow.__module__}:{flow.__qualname__}"


def _describe_declaration(path: Path, order: Order) -> JsonObject:
    from crewai.flow.flow_definition import FlowDefinition

    definition = FlowDefinition.from_declaration(path=path)
    relative = os.path.relpath(path, order.root)
    return _flow(
        key=_slug(definition.name),
        name=definition.name,
        description=definition.description or "",
        entry_point=str(path) if relative.startswith("..") else relative,
        input_schema=_schema_of_declaration(definition),
        graph=_graph(definition, accepts_trigger_payload=False),
        source=path.read_text(encoding="utf-8"),
    )


def _flow(**facts: Any) -> JsonObject:
    """The fingerprint covers what decides how the flow runs: not its key, its place or the rest of its module."""
    flow: JsonObject = {**_plain(facts), **{name: _name(facts[name]) for name in ("key", "name", "entry_point")}}
    covered = [flow["source"], flow["graph"], flow["input_schema"]]
    canonical = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    return {**flow, "fingerprint": hashlib.sha256(canonical.encode()).hexdigest()}


# -- Names and source --------------------------------------------------------------------------------------------------


def _snake_case(class_name: str) -> str:
    """`HTTPIngestFlow` becomes `http_ingest`."""
    short = class_name[:-4] if class_name.endswith("Flow") and class_name != "Flow" else class_name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", short)


def _slug(name: str) -> str:
    """Empty when the name holds no letter or digit; `registry.py` refuses what cannot be a key."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _source(flow: type, order: Order) -> str:
    """The class as written, then the project's own classes that it inherits from: their bodies run as well."""
    sources = []
    for part in [flow, *(base for base in flow.__mro__[1:] if _is_of_project(base, order))]:
        try:
            sources.append(inspect.getsource(part))
        except (OSError, TypeError):  # made by exec: there is no text
            continue
    return "\n\n".join(sources)


# -- Graph and schema --------------------------------------------------------------------------------------------------


def _graph(flow: Any, *, accepts_trigger_payload: bool) -> JsonObject:
    from crewai.flow import build_flow_structure

    return {**build_flow_structure(flow), "accepts_trigger_payload": accepts_trigger_payload}


def _takes_trigger_payload(flow: Any) -> bool:
    """Only start methods receive `crewai_trigger_payload`, and only those that name it."""
    starts = [getattr(flow, name, None) for name, method in flow.flow_definition().methods.items() if method.is_start]
    return any("crewai_trigger_payload" in inspect.signature(start).parameters for start in starts if callable(start))


def _schema_of_class(flow: Any, entry_point: str, warnings: list[str]) -> JsonObject | None:
    """As CrewAI chooses the state: `initial_state` if the class sets it, else the model in `Flow[Model]`."""
    from pydantic import BaseModel

    # CrewAI keeps a preset model in a factory of its own making.
    state = flow.model_fields["initial_state"].get_default(call_default_factory=True)
    if state is None:
        state = getattr(flow, "_initial_state_t", None)
    model = type(state) if isinstance(state, BaseModel) else state
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return None
    try:
        schema = model.model_json_schema()
        defaults = state.model_dump(mode="json", by_alias=True) if isinstance(state, BaseModel) else {}
    except Exception as error:  # a state may hold anything; a type without a schema still runs
        warnings.append(
            f"{entry_point}: its inputs are not checked, the state has no JSON schema: {_plain(_message(error))}"
        )
        return None
    return _without_id(schema, defaults)


def _schema_of_declaration(definition: Any) -> JsonObject | None:
    state = definition.state
    if state is None or state.type not in ("pydantic", "json_schema"):
        return None
    schema = state.json_schema
    if state.type == "pydantic" and state.ref:
        module, _, name = state.ref.partition(":")
        model = importlib.import_module(module)
        for part in name.split("."):
            model = getattr(model, part)
        schema = model.model_json_schema()
    return None if schema is None else _without_id(schema, state.default or {})


def _without_id(schema: JsonObject, defaults: JsonObject) -> JsonObject:
    """`id` is the run's own; a field that the flow presets need not be given."""
    properties = {name: part for name, part in schema.get("properties", {}).items() if name != "id"}
    for name in properties.keys() & defaults.keys():
        properties[name] = {**properties[name], "default": defaults[name]}
    required = [name for name in schema.get("required", []) if name != "id" and name not in defaults]
    kept = {key: value for key, value in schema.items() if key != "required"}
    return {**kept, "properties": properties, **({"required": required} if required else {})}


# -- What can be stored ------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """JSON that Postgres takes: no NUL, no lone surrogate, no NaN; and no secret, but names stay what they are."""
    if isinstance(value, str):
        return _redactor.text(_name(value))
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, dict):
        return {_name(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return _plain(str(value))


def _name(text: str) -> str:
    return _SURROGATES_AND_NUL.sub("\N{REPLACEMENT CHARACTER}", text)


def _failure(subject: str, error: BaseException) -> JsonObject:
    told = {"error_type": _type_name(error), "error_message": _message(error), "error_stack": _stack(error)}
    return {"module": _name(subject), **_plain(told)}


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it ends the process when it is imported: sys.exit({error.code!r})"
    try:
        return str(error)
    except Exception:
        return f"<{type(error).__name__} that cannot be put into words>"


def _stack(error: BaseException) -> str:
    """The stack from the project's first frame on: neither ours nor the import machinery's."""
    told = traceback.TracebackException.from_exception(error)
    link: traceback.TracebackException | None = told
    while link is not None:
        ours = [frame for frame in link.stack if not _is_plumbing(frame.filename)]
        link.stack = traceback.StackSummary.from_list(ours)
        link = link.__cause__ or link.__context__
    return "".join(told.format())


def _is_plumbing(filename: str) -> bool:
    return (
        filename == __file__ or filename.startswith("<frozen importlib") or filename.endswith("importlib/__init__.py")
    )
