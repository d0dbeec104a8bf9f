"""What one look at a project finds: every flow that loads and, beside it, every module that does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psutil
import pytest

from flowledger import registry
from flowledger.errors import FlowNotFound, ProjectUnusable
from tests.registry.projects import EXAMPLES, broken_at, flow_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flowledger.domain.flow import Discovery
    from tests.registry.projects import Write

    Look = Callable[..., Discovery]
    Seen = Callable[[tuple[str, ...]], dict[str, Any]]

HEAD = """
import os, sys, time, ctypes, threading, json
from typing import Literal
from pydantic import BaseModel
from crewai.flow import Flow, start, listen, router

"""
GO = "    @start()\n    def go(self): ...\n"

LEFT_BEHIND = f"left-behind-{os.getpid()}"

VERSIONED = (
    HEAD
    + """
WAYS = 1
Ways = Literal["left", "right"]

class State(BaseModel):
    a: int = 1

class VersionedFlow(Flow[State]):
    @start()
    def go(self):
        return 1

    @router(go)
    def turn(self) -> Ways:
        return "left"
"""
)
CHANGES = {
    "same": VERSIONED,
    "elsewhere": VERSIONED.replace("WAYS = 1", "WAYS = 2  # a comment\n\n\n"),
    "body": VERSIONED.replace("return 1", "return 2"),
    "label": VERSIONED.replace('"right"]', '"straight"]'),
    "schema": VERSIONED.replace("a: int = 1", "a: int = 2"),
}
WHERE = HEAD + f"class WhereFlow(Flow):\n    __doc__ = sys.prefix\n{GO}"

ZOO = {
    **{f"{name}.py": text for name, text in CHANGES.items()},
    "where.py": WHERE,
    "leave.py": HEAD
    + f"import subprocess\nsubprocess.Popen(['sh', '-c', 'sleep 600; : {LEFT_BEHIND}'])\nclass LeaveFlow(Flow):\n{GO}",
    "good.py": HEAD + f'class GoodFlow(Flow):\n    """Does well.\n\n    In two lines.\n    """\n{GO}',
    "raises.py": HEAD + "class Flowing: ...\ndef fail():\n    raise RuntimeError('no licence')\n\nfail()\n",
    "misspelt.py": HEAD + "class AFlow(Flow:\n",
    "exits.py": HEAD + f"class AFlow(Flow):\n{GO}\nsys.exit(3)\n",
    "leaves.py": HEAD + f"class AFlow(Flow):\n{GO}\nprint('so long', flush=True)\nos._exit(7)\n",
    "crashes.py": HEAD + f"class AFlow(Flow):\n{GO}\ndef dive():\n    ctypes.string_at(0)\n\ndive()\n",
    "threads.py": HEAD
    + f"threading.Thread(target=time.sleep, args=(99,), name='Poller').start()\nclass ThreadsFlow(Flow):\n{GO}",
    "builds.py": HEAD + f"class BuildsFlow(Flow):\n    def __init__(self): raise RuntimeError('built')\n{GO}",
    "prints.py": HEAD + f"print('x' * 1_000_000)\nos.closerange(0, 3)\nclass PrintsFlow(Flow):\n{GO}",
    "daemon.py": HEAD + f"if os.fork() == 0:\n    time.sleep(60)\n    os._exit(0)\nclass DaemonFlow(Flow):\n{GO}",
    "named.py": HEAD + f'class X(Flow):\n    name: str = "Weekly report: Über"\n{GO}',
    "acronym.py": HEAD + f"class HTTPIngest2Flow(Flow):\n{GO}",
    "long.py": HEAD + f"class {'L' + 'o' * 110}Flow(Flow):\n{GO}",
    "same_one.py": HEAD + f"class SameFlow(Flow):\n{GO}",
    "same_two.py": HEAD + f"class SameFlow(Flow):\n{GO}",
    "base.py": HEAD + f"class Base(Flow):\n    limit: int = 3\nclass ChildFlow(Base):\n{GO}",
    "imports.py": "from base import ChildFlow as AnotherFlow\nclass Unrelated: ...\n",
    "wrong.py": HEAD
    + f"class RightFlow(Flow):\n{GO}\nclass WrongFlow(Flow):\n{GO}    @listen('x')\n    def x(self): ...\n",
    "states.py": HEAD
    + f"""
class State(BaseModel):
    id: str = "mine"
    needed: int
    word: str = "a"

class TypedFlow(Flow[State]):
    @start()
    def go(self, crewai_trigger_payload: dict = None): ...

class PresetFlow(Flow):
    initial_state = State(needed=4)
{GO}
class DictFlow(Flow[dict]):
    initial_state = {{"any": 1}}
{GO}
class Odd(BaseModel):
    model_config = {{"arbitrary_types_allowed": True}}
    lock: type(threading.Lock()) = None

class OddFlow(Flow[Odd]):
{GO}
class NotANumber(BaseModel):
    x: float = float("nan")
    y: str = "nul \\0"

class HostileFlow(Flow[NotANumber]):
{GO}
""",
    "declared.yaml": "schema: crewai.flow/v1\nname: Said\n"
    "methods:\n  a: {start: true, do: {call: expression, expr: '1'}}\n",
    "misdeclared.yaml": "schema: crewai.flow/v1\nname: Unsaid\nmethods: 3\n",
}

HANGS = {"hangs.py": HEAD + f"class AFlow(Flow):\n{GO}\ndef doze():\n    time.sleep(3600)\n\ndoze()\n"}


@pytest.fixture(scope="module")
def zoo_at(tmp_path_factory: pytest.TempPathFactory, write: Write) -> Path:
    return write(tmp_path_factory.mktemp("zoo"), ZOO)


@pytest.fixture(scope="module")
def zoo(zoo_at: Path, look: Look) -> Discovery:
    """Nothing in it takes time, so that no bound decides on a busy machine."""
    return look(zoo_at, seconds=60)


@pytest.fixture(scope="module")
def examples(look: Look) -> Discovery:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONHASHSEED", "1")
        return look(EXAMPLES)


def test_every_example_is_discovered(examples: Discovery) -> None:
    discovery = examples
    assert [flow.key for flow in discovery.flows] == [
        "board_brief",
        "book_writer",
        "lead_score",
        "order_triage",
        "what_to_wear",
    ]
    assert discovery.broken == ()
    assert discovery.warnings == ()
    assert discovery.crewai_version.startswith("1.15.")
    triage = registry.find(discovery, "order_triage")
    assert triage.graph["nodes"]["decide"]["router_events"] == ["ship", "hold", "reject"]
    assert triage.graph["accepts_trigger_payload"] is True
    assert "def check_stock" in triage.source
    wear = registry.find(discovery, "What to wear")
    assert wear.entry_point == "declared/src/declared/flow.yaml"
    assert wear.input_schema is not None
    assert wear.input_schema["properties"]["city"]["default"] == "Oslo"


def test_names_become_keys(zoo: Discovery) -> None:
    assert flow_at(zoo, "good:GoodFlow").key == "good"
    assert flow_at(zoo, "acronym:HTTPIngest2Flow").key == "http_ingest2"
    named = flow_at(zoo, "named:X")
    assert (named.key, named.name) == ("weekly_report_ber", "Weekly report: Über")
    assert flow_at(zoo, "declared.yaml").key == "said"


def test_two_flows_of_one_name_are_told_apart_by_their_module(zoo: Discovery) -> None:
    assert flow_at(zoo, "same_one:SameFlow").key == "same_one_same"
    assert flow_at(zoo, "same_two:SameFlow").key == "same_two_same"


def test_a_key_that_the_table_cannot_hold_is_reported(zoo: Discovery) -> None:
    refused = next(broken for broken in zoo.broken if broken.module.startswith("long:"))
    assert refused.error_type == "InvalidFlowKey"
    assert "has 111 characters, the limit is 100" in refused.error_message


def test_the_description_is_the_docstring(zoo: Discovery) -> None:
    assert flow_at(zoo, "good:GoodFlow").description == "Does well.\n\nIn two lines."
    assert flow_at(zoo, "acronym:HTTPIngest2Flow").description == ""


def test_a_flow_is_never_instantiated(zoo: Discovery) -> None:
    assert flow_at(zoo, "builds:BuildsFlow").key == "builds"


def test_a_flow_imported_from_elsewhere_in_the_project_is_one_flow(zoo: Discovery) -> None:
    assert [flow.entry_point for flow in zoo.flows].count("base:ChildFlow") == 1
    assert not [flow for flow in zoo.flows if flow.entry_point == "base:Base"]


def test_source_holds_the_projects_own_base_classes(zoo: Discovery) -> None:
    assert "limit: int = 3" in flow_at(zoo, "base:ChildFlow").source


def test_a_module_that_raises_is_reported_with_its_own_stack(zoo: Discovery) -> None:
    broken = broken_at(zoo, "raises")
    assert (broken.error_type, broken.error_message) == ("RuntimeError", "no licence")
    assert "in fail" in broken.error_stack
    assert "describe.py" not in broken.error_stack
    assert "importlib" not in broken.error_stack


def test_a_module_that_does_not_parse_is_reported_with_its_line(zoo: Discovery) -> None:
    broken = broken_at(zoo, "misspelt")
    assert broken.error_type == "SyntaxError"
    assert "class AFlow(Flow:" in broken.error_stack


def test_a_module_that_exits_is_reported(zoo: Discovery) -> None:
    assert broken_at(zoo, "exits").error_type == "SystemExit"
    assert "sys.exit(3)" in broken_at(zoo, "exits").error_message
    leaves = broken_at(zoo, "leaves")
    assert (leaves.error_type, "exit status 7" in leaves.error_message) == ("ProcessExited", True)
    assert "so long" in leaves.error_stack


def test_a_module_that_crashes_is_reported_with_where(zoo: Discovery) -> None:
    broken = broken_at(zoo, "crashes")
    assert (broken.error_type, "SIGSEGV" in broken.error_message) == ("ProcessKilled", True)
    assert "in dive" in broken.error_stack


def test_a_module_that_hangs_is_reported_with_where(tmp_path: Path, write: Write, look: Look) -> None:
    discovery = look(write(tmp_path, {**HANGS, "good.py": ZOO["good.py"]}), seconds=3)
    broken = broken_at(discovery, "hangs")
    assert (broken.error_type, "3 s" in broken.error_message) == ("ImportTimeout", True)
    assert "in doze" in broken.error_stack
    assert [flow.key for flow in discovery.flows] == ["good"]


def test_a_broken_class_does_not_hide_the_good_one_beside_it(zoo: Discovery) -> None:
    assert flow_at(zoo, "wrong:RightFlow").key == "right"
    assert "infinite loop" in broken_at(zoo, "wrong:WrongFlow").error_message


def test_a_broken_declaration_is_reported(zoo: Discovery) -> None:
    assert [broken.error_type for broken in zoo.broken if broken.module.endswith("misdeclared.yaml")]


def test_everything_else_in_the_project_is_still_there(zoo: Discovery) -> None:
    expected = {"good", "threads", "builds", "prints", "daemon", "child", "right", "said", "typed", "odd", "hostile"}
    assert expected <= {flow.key for flow in zoo.flows}
    assert len(zoo.broken) == 8


def test_threads_started_at_import_are_a_warning_that_names_them(zoo: Discovery) -> None:
    assert [warning for warning in zoo.warnings if "threads" in warning and "Poller" in warning]


def test_a_process_that_a_module_left_behind_is_gone(zoo: Discovery) -> None:
    assert flow_at(zoo, "leave:LeaveFlow")
    deadline = time.monotonic() + 5
    while _runs(LEFT_BEHIND) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(LEFT_BEHIND)


def _runs(mark: str) -> bool:
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return any(mark in line for line in lines)


# -- Input schema ------------------------------------------------------------------------------------------------------


def test_the_input_schema_is_the_state_without_the_runs_id(zoo: Discovery) -> None:
    schema = flow_at(zoo, "states:TypedFlow").input_schema
    assert schema is not None
    assert (set(schema["properties"]), schema["required"]) == ({"needed", "word"}, ["needed"])
    assert flow_at(zoo, "states:TypedFlow").graph["accepts_trigger_payload"] is True


def test_what_the_flow_presets_is_not_required(zoo: Discovery) -> None:
    schema = flow_at(zoo, "states:PresetFlow").input_schema
    assert schema is not None
    assert (schema["properties"]["needed"]["default"], "required" in schema) == (4, False)


def test_an_untyped_state_has_no_schema(zoo: Discovery) -> None:
    assert flow_at(zoo, "states:DictFlow").input_schema is None
    assert flow_at(zoo, "good:GoodFlow").input_schema is None


def test_a_state_without_a_json_schema_is_a_warning_not_a_failure(zoo: Discovery) -> None:
    assert flow_at(zoo, "states:OddFlow").input_schema is None
    assert [warning for warning in zoo.warnings if "states:OddFlow" in warning and "not checked" in warning]


def test_what_postgres_cannot_store_does_not_leave_the_child(zoo: Discovery) -> None:
    told = json.dumps(flow_at(zoo, "states:HostileFlow").input_schema, allow_nan=False)
    assert "\\u0000" not in told


# -- Versions ----------------------------------------------------------------------------------------------------------


def test_a_version_changes_with_source_graph_and_schema_and_only_then(zoo: Discovery) -> None:
    versions = {name: flow_at(zoo, f"{name}:VersionedFlow").fingerprint for name in CHANGES}
    assert versions["same"] == versions["elsewhere"]
    assert len({versions["same"], versions["body"], versions["label"], versions["schema"]}) == 4


def test_a_version_is_the_same_in_every_process(
    examples: Discovery, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "2")
    (again,) = look(EXAMPLES / "order_triage").flows
    assert again.fingerprint == registry.find(examples, "order_triage").fingerprint


# -- Interpreter and environment ---------------------------------------------------------------------------------------


def test_the_projects_own_interpreter_imports_its_modules(
    tmp_path: Path, zoo: Discovery, write: Write, look: Look
) -> None:
    write(tmp_path, {"where.py": WHERE})
    own = tmp_path / "own"
    venv.create(own, symlinks=True, with_pip=False)
    crewai_is_here = next(entry for entry in sys.path if entry.endswith("site-packages"))
    next(own.glob("lib/python*/site-packages")).joinpath("shared.pth").write_text(crewai_is_here)
    assert flow_at(zoo, "where:WhereFlow").description == sys.prefix
    assert look(tmp_path, python=own / "bin" / "python").flows[0].description == str(own)


def test_an_interpreter_whose_crewai_is_broken_is_a_clear_error(tmp_path: Path, write: Write, look: Look) -> None:
    write(
        tmp_path,
        {"one.py": ZOO["good.py"], "own": f'#!/bin/sh\nPYTHONPATH={tmp_path}/fake exec {sys.executable} "$@"\n'},
    )
    write(tmp_path, {"fake/crewai/__init__.py": "raise ImportError('half installed')\n"})
    (tmp_path / "own").chmod(0o755)
    with pytest.raises(ProjectUnusable, match="half installed"):
        look(tmp_path, python=tmp_path / "own")


# -- Two ways ----------------------------------------------------------------------------------------------------------

ISOLATIONS = ["namespace", "subreaper"]

SEES = (
    HEAD
    + """
import gc, signal
SEEN = {
    "environment": dict(os.environ),
    "path": sys.path,
    "place": os.getcwd(),
    "argv": sys.argv,
    "flags": repr(sys.flags),
    "options": sys._xoptions,
    "input": os.readlink("/proc/self/fd/0"),
    "output": os.readlink("/proc/self/fd/1") == os.readlink("/proc/self/fd/2"),
    "streams": [sys.stdout.encoding, sys.stdout.errors, sys.stdout.write_through, sys.stdout.isatty()],
    "handlers": {str(number): str(signal.getsignal(number)) for number in signal.valid_signals()},
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "capabilities": [line for line in open("/proc/self/status") if line.startswith("Cap")],
    "name": open("/proc/self/comm").read(),
    "leads": os.getpid() == os.getpgrp(),
    "threads": threading.active_count(),
    "collects": gc.isenabled(),
}
class SeesFlow(Flow):
    __doc__ = json.dumps(SEEN)
{GO}"""
).replace("{GO}", GO)


def _facts(discovery: Discovery) -> dict[str, object]:
    """Without the stacks: that of a crash tells addresses and what else is loaded."""
    return {
        "flows": discovery.flows,
        "broken": sorted((broken.module, broken.error_type, broken.error_message) for broken in discovery.broken),
        "warnings": sorted(discovery.warnings),
        "versions": (discovery.crewai_version, discovery.python_version),
    }


def test_both_ways_find_the_same_in_the_examples(examples: Discovery, look_in_base: Look) -> None:
    assert look_in_base(EXAMPLES) == examples


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_both_ways_find_the_same_in_broken_modules(
    zoo: Discovery, zoo_at: Path, look_in_base: Look, isolation: str
) -> None:
    assert len(zoo.broken) == 8
    assert _facts(look_in_base(zoo_at, isolation=isolation)) == _facts(zoo)


@pytest.fixture
def among_secrets(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """An environment with secrets in it, and the one that is named."""
    monkeypatch.setenv("FLOWLEDGER_DATABASE_URL", "postgresql://x")
    monkeypatch.setenv("INNOCENT", "postgresql://u:hunter2@h/d")
    monkeypatch.setenv("KEPT", "yes")
    return ("hunter2",)


@pytest.fixture(scope="module")
def sees_at(tmp_path_factory: pytest.TempPathFactory, write: Write) -> Path:
    place = tmp_path_factory.mktemp("sees")
    write(place, {".env": "FROM_DOTENV=1\nFLOWLEDGER_PROJECT=p\nBORROWED=postgresql://u:hunter2@h/d\n"})
    return write(place, {"sees.py": SEES, "json.py": "raise RuntimeError('not the real one')\n", "queue.py": "x = 1\n"})


@pytest.fixture(scope="module")
def seen(sees_at: Path, look: Look) -> Seen:
    """By a module in an interpreter of its own, looked at once."""
    kept: list[dict[str, Any]] = []

    def once(secrets: tuple[str, ...]) -> dict[str, Any]:
        if not kept:
            kept.append(_seen(look(sees_at, secrets=secrets)))
        return kept[0]

    return once


def _seen(found: Discovery) -> dict[str, Any]:
    assert found.broken == ()
    seen: dict[str, Any] = json.loads(found.flows[0].description)
    for changes in ("CREWAI_STORAGE_DIR", "PYTEST_CURRENT_TEST"):
        seen["environment"].pop(changes)
    return seen


def test_modules_see_no_secret_of_the_ledger(among_secrets: tuple[str, ...], seen: Seen) -> None:
    environment = seen(among_secrets)["environment"]
    assert (environment["KEPT"], environment["FROM_DOTENV"]) == ("yes", "1")
    assert not [name for name in environment if name.startswith("FLOWLEDGER_") or "hunter2" in environment[name]]
    assert not {"INNOCENT", "BORROWED"} & environment.keys()


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_modules_see_the_same_both_ways(
    among_secrets: tuple[str, ...], sees_at: Path, seen: Seen, look_in_base: Look, isolation: str
) -> None:
    forked = _seen(look_in_base(sees_at, secrets=among_secrets, isolation=isolation))
    assert forked == seen(among_secrets)
    assert forked["environment"]["FROM_DOTENV"] == "1"
    assert not [name for name in forked["environment"] if name.startswith("FLOWLEDGER_") or "hunter2" in name]
    assert not {"INNOCENT", "BORROWED"} & forked["environment"].keys()


DETACHES = """
import os, subprocess, sys, time
def detach():
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        os.wait()
        return os.read(reading, 100).decode() + os.read(reading, 100).decode()
    os.setsid()
    if os.fork() == 0:
        os.write(writing, b"detached")  # and the pipe's end comes with exec
        os.execvp("sh", ["sh", "-c", "sleep 600; : {mark}"])
    os._exit(0)
TOLD = detach()
"""


@pytest.fixture
def mark() -> Iterator[str]:
    mark = f"detached-{uuid4().hex}"
    yield mark
    for process in psutil.process_iter(["cmdline"]):
        if any(mark in argument for argument in process.info["cmdline"] or ()):
            process.kill()


@pytest.mark.parametrize("isolation", [*ISOLATIONS, "own interpreter"])
def test_a_process_that_a_module_detached_is_gone(
    tmp_path: Path, write: Write, look: Look, look_in_base: Look, isolation: str, mark: str
) -> None:
    module = DETACHES.replace("{mark}", mark) + HEAD + f"class LeavesFlow(Flow):\n    __doc__ = TOLD\n{GO}"
    write(tmp_path, {"leaves.py": module})
    left: list[bool] = []

    def note() -> None:
        left.append(_runs(mark))

    if isolation == "own interpreter":
        found = look(tmp_path)
        note()
    else:
        found = look_in_base(tmp_path, isolation=isolation, then=note)
    assert [flow.description for flow in found.flows] == ["detached"]
    assert left == [False]


def test_it_would_stay_if_nobody_ended_it(mark: str) -> None:
    """What the test above asks for is no habit of the system."""
    subprocess.run([sys.executable, "-c", DETACHES.replace("{mark}", mark)], check=True, start_new_session=True)
    assert _runs(mark)


# -- Finding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["good", "GoodFlow", "good:GoodFlow"])
def test_a_flow_answers_to_key_class_and_entry_point(zoo: Discovery, name: str) -> None:
    assert registry.find(zoo, name).key == "good"


def test_a_misspelt_flow_is_not_found_but_suggested(zoo: Discovery) -> None:
    with pytest.raises(FlowNotFound, match="Did you mean good"):
        registry.find(zoo, "goood")
    with pytest.raises(FlowNotFound, match="flows list"):
        registry.find(zoo, "zzzzzzzz")
