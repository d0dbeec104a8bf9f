"""Finds a CrewAI project on disk and discovers the flows in it, without loading a line of it into this process.

The project's modules are imported by `runner/describe.py` in a throw-away process under the project's own interpreter:
one that `discover` starts, or one that a worker's template forked.
What the flows are is said by `domain/flow.py`; storing them is left to the ledger, running them to the runner.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from flowledger.domain.controls import FlowControls
from flowledger.domain.flow import FLOW_KEY_LENGTH, BrokenModule, Discovery, Flow
from flowledger.domain.project import Project
from flowledger.errors import FlowNotFound, InvalidInput, ProjectNotFound, ProjectUnusable
from flowledger.runner import description, interpreter, redact
from flowledger.runner.description import Report

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

_STARTUP_SECONDS = 120
"""Importing CrewAI takes 3 to 15 s on a busy machine; it does not count against the project's own modules."""

_SWEEP_SECONDS = 6.0
"""A describer that is told to leave ends first what its modules started."""

_LONGEST_DEPTH = 6
_NOT_SEARCHED = {"node_modules", "site-packages", "build", "dist", "tests", "test"}
_NOT_IMPORTED = {"setup.py", "conftest.py", "__main__.py"}
_DECLARATION = re.compile(r"^schema:\s*[\"']?crewai\.flow/|\A(?=[\s\S]*^name:)(?=[\s\S]*^methods:)", re.MULTILINE)


# -- Where the project is ----------------------------------------------------------------------------------------------


def locate(target: str | None, python: Path | None) -> Project:
    """The project that `target` names: a directory, a .py or .yaml file, or a dotted module.

    None means the working directory or the nearest one above it whose pyproject.toml is a CrewAI flow's. `python` None
    means `[tool.flowledger] python`, else the project's .venv if it holds CrewAI, else the interpreter we run under.
    Raises ProjectNotFound, and ProjectUnusable when no interpreter holds CrewAI.
    """
    place = _place(target)
    return Project(
        root=place.root,
        python=_interpreter(place.root, python),
        import_paths=tuple(dict.fromkeys(place.import_paths)),
        modules=tuple(dict.fromkeys(place.modules)),
        declarations=tuple(dict.fromkeys(place.declarations)),
    )


@dataclass
class _Place:
    """A project on its way: everything but its interpreter."""

    root: Path
    import_paths: list[Path] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    declarations: list[Path] = field(default_factory=list)


def _place(target: str | None) -> _Place:
    if target is None:
        return _nearest_project(Path.cwd())
    path = Path(target).expanduser().absolute()
    try:
        if path.is_dir():
            return _directory(path)
        if path.is_file():
            return _file(path)
    except PermissionError as error:
        raise ProjectUnusable(str(path), "it may not be read", "Give this user leave to read it.") from error
    return _module(target)


def _nearest_project(start: Path) -> _Place:
    for directory in (start, *start.parents):
        if _is_flow_project(directory):
            return _flow_project(directory)
    raise ProjectNotFound(str(start))


def _directory(directory: Path) -> _Place:
    """A CrewAI project, or a folder that holds several of them, or one of plain modules and declarations."""
    place = _flow_project(directory) if _is_flow_project(directory) else _search(directory)
    if not place.modules and not place.declarations:
        raise ProjectNotFound(str(directory))
    return place


def _file(path: Path) -> _Place:
    root = _root_of(path)
    if path.suffix in (".yaml", ".yml"):
        return _Place(root, _import_paths(root), declarations=[path])
    if path.suffix != ".py":
        raise ProjectNotFound(str(path))
    import_path, name = _dotted_name(path)
    return _Place(root, [import_path, *_import_paths(root)], modules=[name])


def _module(name: str) -> _Place:
    """A module of the project around the working directory, or one that its interpreter has installed."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise ProjectNotFound(name)
    root = _root_of(Path.cwd() / "module.py")
    import_paths = [*_import_paths(root), Path.cwd()]
    if not _imports(_interpreter(root, None), name.partition(".")[0], import_paths):
        raise ProjectNotFound(name)
    return _Place(root, import_paths, modules=[name])


def _root_of(path: Path) -> Path:
    return next((parent for parent in path.parents if _is_flow_project(parent)), path.parent)


# -- What the project holds --------------------------------------------------------------------------------------------


def _is_flow_project(directory: Path) -> bool:
    crewai = _tool(directory, "crewai")
    return crewai.get("type") == "flow" or "definition" in crewai


def _tool(directory: Path, name: str) -> dict[str, Any]:
    found = _pyproject(directory).get("tool", {}).get(name, {})
    return found if isinstance(found, dict) else {}


def _pyproject(directory: Path) -> dict[str, Any]:
    path = directory / "pyproject.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProjectUnusable(str(directory), f"{path} cannot be read: {error}", "Correct the file.") from error


def _flow_project(root: Path) -> _Place:
    """As `crewai create flow` lays it out: the module of the kickoff script, and every flow module under src."""
    place = _search(root / "src" if (root / "src").is_dir() else root, root=root)
    kickoff = _pyproject(root).get("project", {}).get("scripts", {}).get("kickoff", "")
    if kickoff:
        place.modules.insert(0, str(kickoff).partition(":")[0])
    definition = _tool(root, "crewai").get("definition")
    if definition:
        path = root / str(definition)
        if not path.is_file():
            raise ProjectUnusable(str(root), f"[tool.crewai] definition names {definition}, which is not there")
        place.declarations.insert(0, path)
    return place


def _search(directory: Path, root: Path | None = None) -> _Place:
    """Every file below that reads like a flow; nested CrewAI projects bring their own import paths."""
    place = _Place(root or directory, _import_paths(root or directory))
    for path in _files_below(directory):
        if path.name == "pyproject.toml":
            nested = _flow_project(path.parent) if path.parent != place.root and _is_flow_project(path.parent) else None
            if nested is not None:
                place.import_paths += nested.import_paths
                place.modules += nested.modules
                place.declarations += nested.declarations
        elif path.suffix == ".py" and _reads_like_flows(path):
            import_path, name = _dotted_name(path)
            place.import_paths.append(import_path)
            place.modules.append(name)
        elif path.suffix in (".yaml", ".yml") and _DECLARATION.search(_text(path)):
            place.declarations.append(path)
    return place


def _files_below(directory: Path) -> Iterator[Path]:
    """Files in reading order; a nested project is told by its pyproject.toml alone and not entered."""
    for folder, folders, files in os.walk(directory):
        here = Path(folder)
        if here != directory and _is_flow_project(here):
            folders.clear()
            yield here / "pyproject.toml"
            continue
        deep = len(here.relative_to(directory).parts) >= _LONGEST_DEPTH
        folders[:] = [] if deep else sorted(name for name in folders if _is_searched(here / name))
        yield from (here / name for name in sorted(files))


def _is_searched(folder: Path) -> bool:
    hidden = folder.name.startswith((".", "__"))
    return not hidden and folder.name not in _NOT_SEARCHED and not os.access(folder / "pyvenv.cfg", os.F_OK)


def _reads_like_flows(path: Path) -> bool:
    """Importing runs a module, so only those are imported that speak of flow classes at all."""
    if path.name in _NOT_IMPORTED or path.name.startswith("test_") or not path.stem.isidentifier():
        return path.name == "__init__.py" and "Flow" in _text(path)
    text = _text(path)
    return "Flow" in text and "class " in text


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _import_paths(root: Path) -> list[Path]:
    return [root / "src", root] if (root / "src").is_dir() else [root]


def _dotted_name(path: Path) -> tuple[Path, str]:
    """The folder to import from and the module's name: below a project's src if it is there, else by __init__.py."""
    import_path = next((parent for parent in path.parents if _is_src_of_project(parent)), None)
    if import_path is None:
        import_path = next(parent for parent in path.parents if not os.access(parent / "__init__.py", os.F_OK))
    parts = path.relative_to(import_path).with_suffix("").parts
    return import_path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_src_of_project(folder: Path) -> bool:
    return folder.name == "src" and _is_flow_project(folder.parent)


# -- What it says about its flows --------------------------------------------------------------------------------------


def controls(project: Project) -> dict[str, FlowControls]:
    """Flow key -> what `[tool.flowledger.flows.KEY]` says, the project's own file first, then those of nested projects.

    Raises InvalidInput naming file, flow and field.
    """
    found: dict[str, FlowControls] = {}
    for path in control_files(project):
        for key, table in _declared_flows(path).items():
            place = f"{path} [tool.flowledger.flows.{key}]"
            if not isinstance(table, dict):
                raise InvalidInput(place, f"must be a table, not {table!r}")
            found.setdefault(key, FlowControls.read(table, place))
    return found


def control_files(project: Project) -> list[Path]:
    """Where `controls` looks; a file need not be there."""
    return [folder / "pyproject.toml" for folder in dict.fromkeys((project.root, *project.import_paths))]


def _declared_flows(path: Path) -> dict[str, Any]:
    declared = _tool(path.parent, "flowledger").get("flows", {})
    if not isinstance(declared, dict):
        raise InvalidInput(f"{path} [tool.flowledger] flows", f"must be a table, not {declared!r}")
    return declared


# -- Which interpreter runs it -----------------------------------------------------------------------------------------


def _interpreter(root: Path, explicit: Path | None) -> Path:
    """Never resolved: a virtual environment's python is a link whose own place says which environment it is."""
    configured = _tool(root, "flowledger").get("python")
    if explicit is not None:
        return _usable(root, explicit.expanduser().absolute(), "--python")
    if configured:
        return _usable(root, (root / Path(str(configured)).expanduser()).absolute(), "[tool.flowledger] python")
    for candidate in (root / ".venv" / "bin" / "python", Path(sys.executable)):
        if os.access(candidate, os.X_OK) and _imports(candidate, "crewai"):
            return candidate
    raise ProjectUnusable(
        str(root),
        "no interpreter with CrewAI was found",
        "Run `crewai install` in the project, name its interpreter with --python, or install flowledger[crewai].",
    )


def _usable(root: Path, python: Path, named_by: str) -> Path:
    if not os.access(python, os.X_OK) or python.is_dir():
        raise ProjectUnusable(
            str(root), f"{named_by} names {python}, which cannot be executed", "Name a Python interpreter."
        )
    if not _imports(python, "crewai"):
        raise ProjectUnusable(
            str(root), f"{python} has no CrewAI", f"Install CrewAI there, or let {named_by} name another interpreter."
        )
    return python


def _imports(python: Path, top_level_name: str, import_paths: Collection[Path] = ()) -> bool:
    """True if the interpreter would find this module; looks without importing anything."""
    look = (
        "import importlib.util, sys; sys.path[:0] = sys.argv[2:]; sys.exit(not importlib.util.find_spec(sys.argv[1]))"
    )
    try:
        asked = subprocess.run(
            [str(python), "-c", look, top_level_name, *map(str, import_paths)],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


# -- Which flows are in it ---------------------------------------------------------------------------------------------


def discover(project: Project, *, seconds: float, secrets: Collection[str], storage: Path) -> Discovery:
    """Imports the project's modules elsewhere and tells the flows in them and, beside them, the modules that broke.

    `seconds` bounds the import of all modules together. `secrets` are values that their code must not see; `storage`
    is for CrewAI's own files. Raises ProjectUnusable when the interpreter or its CrewAI cannot be started at all.
    """
    environment = interpreter.environment(os.environ, secrets, storage)
    return discovered(project, _describe(project, seconds, environment, Report(secrets, storage)))


def discovered(project: Project, lines: Sequence[Mapping[str, Any]]) -> Discovery:
    """What a describer's report says. Modules that it did not come to are broken ones."""
    ready, looked = lines[0], [line for line in lines if line["kind"] == "looked"]
    told = {flow["entry_point"]: Flow(**flow) for line in looked for flow in line["flows"]}
    flows, refused = _with_keys(list(told.values()))
    broken = [BrokenModule(**facts) for line in looked for facts in line["broken"]]
    if lines[-1]["kind"] != "end":
        seen = {line["subject"] for line in looked}
        broken += [_unseen(subject) for subject in _subjects(project) if subject not in seen]
    return Discovery(
        flows=tuple(sorted(flows, key=lambda flow: flow.key)),
        broken=(*broken, *refused),
        crewai_version=ready["crewai_version"],
        python_version=ready["python_version"],
        warnings=tuple(warning for line in looked for warning in line["warnings"]),
    )


def find(discovery: Discovery, name: str) -> Flow:
    """The flow that `name` means, by key, class, display name or entry point. Raises FlowNotFound with the nearest."""
    flow = discovery.find(name)
    if flow is not None:
        return flow
    known = {spelling: flow.key for flow in discovery.flows for spelling in (flow.key, flow.name.lower())}
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    raise FlowNotFound(name, tuple(dict.fromkeys(known[spelling] for spelling in near)))


def _subjects(project: Project) -> list[str]:
    return [*project.modules, *map(str, project.declarations)]


def _unseen(subject: str) -> BrokenModule:
    return BrokenModule(subject, "ProcessExited", "the process that imports modules ended before this one was seen", "")


def _describe(project: Project, seconds: float, environment: Mapping[str, str], report: Report) -> list[dict[str, Any]]:
    """Runs `runner/describe.py` in an interpreter of its own, to its end."""
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryFile() as said:
        with theirs:
            process = _start(project, seconds, environment, theirs.fileno(), said)
        try:
            _read(ours, report, seconds)
        finally:
            _end(process, at_once=not report.is_whole)
        if not report.is_begun:
            raise _unusable(project, process.returncode, said)
    return report.lines


def _start(
    project: Project, seconds: float, environment: Mapping[str, str], channel: int, said: IO[bytes]
) -> subprocess.Popen[bytes]:
    order = json.dumps(description.order(project, seconds))
    try:
        return subprocess.Popen(
            interpreter.command(project.python, "describe", order, str(channel)),
            cwd=project.root,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            pass_fds=(channel,),
            start_new_session=True,
        )
    except OSError as error:
        raise ProjectUnusable(str(project.root), f"{project.python} does not start: {error.strerror}") from error


def _read(channel: socket.socket, report: Report, seconds: float) -> None:
    """Until the report is whole, the other side left, or the time is over: first CrewAI's own, then the modules'."""
    deadline = time.monotonic() + _STARTUP_SECONDS
    with suppress(ConnectionError):
        while not report.is_whole and select.select([channel], [], [], max(0, deadline - time.monotonic()))[0]:
            was_begun = report.is_begun
            data = channel.recv(65_536)
            if not data:
                return
            if answer := report.feed(data):
                channel.sendall(answer)
            if report.is_begun and not was_begun:
                deadline = time.monotonic() + seconds + description.SLACK_SECONDS


def _end(process: subprocess.Popen[bytes], *, at_once: bool) -> None:
    """The process sweeps up what the modules started. If it cannot, at least its own group goes with it."""
    if at_once:
        process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_SWEEP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _unusable(project: Project, status: int, said: IO[bytes]) -> ProjectUnusable:
    said.seek(0)
    lines = redact.own().text(said.read().decode("utf-8", "replace")).strip().splitlines()
    reason = lines[-1] if lines else f"{project.python} ended with exit status {status}"
    return ProjectUnusable(
        str(project.root),
        reason,
        f"Check that `{project.python} -c 'import crewai'` works, or name another with --python.",
    )


# -- Keys --------------------------------------------------------------------------------------------------------------


def _with_keys(flows: list[Flow]) -> tuple[list[Flow], list[BrokenModule]]:
    """Flows that share a key are told apart by their module; a flow that cannot have a key is reported as broken."""
    taken = Counter(flow.key for flow in flows)
    qualified = [replace(flow, key=_qualified(flow)) if taken[flow.key] > 1 else flow for flow in flows]
    again = Counter(flow.key for flow in qualified)
    good, refused = [], []
    for flow in qualified:
        problem = _problem_with_key(flow.key, shared=again[flow.key] > 1)
        if problem:
            refused.append(BrokenModule(flow.entry_point, "InvalidFlowKey", problem, ""))
        else:
            good.append(flow)
    return good, refused


def _qualified(flow: Flow) -> str:
    module, _, class_name = flow.entry_point.partition(":")
    place = module if class_name else str(Path(module).with_suffix(""))
    return re.sub(r"[^a-z0-9]+", "_", f"{place}_{flow.key}".lower()).strip("_")


def _problem_with_key(key: str, *, shared: bool) -> str | None:
    remedy = "give the flow a `name` of its own"
    if not key:
        return f"its name holds no letter a to z and no digit to make a key of; {remedy}"
    if len(key) > FLOW_KEY_LENGTH:
        return f"its key {key!r} has {len(key)} characters, the limit is {FLOW_KEY_LENGTH}; {remedy}"
    if shared:
        return f"another flow has the key {key!r} as well; {remedy}"
    return None
