"""Every example runs with plain CrewAI, in a process of its own, against the stub; it ends as its README says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from stub_llm import environment

if TYPE_CHECKING:
    from stub_llm import StubServer

EXAMPLES = Path(__file__).parents[2] / "examples"

# CrewAI, and what its memory needs for every flow, take seconds to import: that is done once, and each example forked.
FORKS = """
import gc, importlib, json, os, sys, threading
from contextlib import suppress

for module in ("crewai.flow", "crewai.llms.providers.openai.completion", "lance_namespace"):
    with suppress(ImportError):
        importlib.import_module(module)
assert len(os.listdir("/proc/self/task")) == 1, threading.enumerate()
gc.freeze()

def become(order):
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["project"])
    sys.path.insert(0, order["source"])
    output = os.open(order["output"], os.O_CREAT | os.O_WRONLY)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for here, there in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(here, there)

def run(order):
    scope = {}
    exec(order["code"], scope)
    flow = scope["flow"](order["inputs"])
    told = {}
    try:
        result = flow.kickoff(inputs=order["inputs"])
        told["result"] = getattr(result, "raw", result)
    except Exception as error:
        told["error"] = f"{type(error).__module__}.{type(error).__qualname__}: {error}"
    state = flow.state
    told["state"] = state if isinstance(state, dict) else state.model_dump(mode="json")
    told["usage"] = flow.usage_metrics.model_dump() if hasattr(flow, "usage_metrics") else None
    print("\\nTOLD " + json.dumps(told), flush=True)

while line := sys.stdin.readline():
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    else:
        order = json.loads(line)
        become(order)
        run(order)
        break
"""
QUIET = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_DISABLE_VERSION_CHECK": "true",
    "CREWAI_TRACING_ENABLED": "false",
    # Nothing with threads may be forked.
    "OPENBLAS_NUM_THREADS": "1",
}


class PlainCrewAI:
    """Runs each example in a process of its own, with the example's folder and environment."""

    def __init__(self, forks: subprocess.Popen[str], environment: dict[str, str]) -> None:
        self._forks = forks
        self._environment = environment

    def run(
        self, project: str, code: str, inputs: dict[str, Any], stub: StubServer | None, directory: Path
    ) -> dict[str, Any]:
        endpoint = environment(stub.url) if stub else {}
        output = directory / "output"
        order = {
            "project": str(EXAMPLES / project),
            "source": str(EXAMPLES / project / "src"),
            "environment": {**self._environment, **endpoint, "CREWAI_STORAGE_DIR": str(directory)},
            "output": str(output),
            "code": code,
            "inputs": inputs,
        }
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        self._forks.stdin.write(json.dumps(order) + "\n")
        self._forks.stdin.flush()
        status = self._forks.stdout.readline().strip()
        text = output.read_text()
        line = next((line for line in text.splitlines() if line.startswith("TOLD ")), None)
        assert (status, line is not None) == ("0", True), text[-4_000:]
        told: dict[str, Any] = json.loads(str(line).removeprefix("TOLD "))
        return told


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainCrewAI]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "MODEL"))}
    surroundings = {**kept, **QUIET}
    with _forking(surroundings, tmp_path_factory.mktemp("crewai")) as forks:
        yield PlainCrewAI(forks, surroundings)


@contextmanager
def _forking(surroundings: dict[str, str], directory: Path) -> Iterator[subprocess.Popen[str]]:
    forks = subprocess.Popen(
        [sys.executable, "-c", FORKS],
        cwd=directory,
        env={**surroundings, "CREWAI_STORAGE_DIR": str(directory)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with forks:
        yield forks


def by_class(module: str, name: str) -> str:
    return f"from {module} import {name}\nflow = lambda inputs: {name}()\n"


TRIAGE = by_class("order_triage.main", "OrderTriageFlow")
LEAD = (
    "from lead_score.main import LeadScoreFlow, LeadState\n"
    "flow = lambda inputs: LeadScoreFlow(initial_state=LeadState(**inputs))\n"
)
DECLARED = "from crewai.flow import Flow\nflow = lambda inputs: Flow.from_declaration(path='src/declared/flow.yaml')\n"


@pytest.mark.parametrize(
    ("inputs", "decision"),
    [
        ({"item": "desk", "quantity": 2}, "shipped"),
        ({"item": "lamp", "quantity": 12, "unit_price": 200}, "held"),
        ({"crewai_trigger_payload": {"item": "chair"}}, "rejected"),
    ],
)
def test_order_triage_takes_the_way_that_the_router_says(
    plain: PlainCrewAI, inputs: dict[str, Any], decision: str, tmp_path: Path
) -> None:
    told = plain.run("order_triage", TRIAGE, inputs, None, tmp_path)
    assert told["result"]["decision"] == told["state"]["decision"] == decision


@pytest.mark.parametrize(("employees", "answer"), [(500, "call ada@example.org today"), (5, "send ada@example.org")])
def test_lead_score_sorts_hot_from_cold(plain: PlainCrewAI, employees: int, answer: str, tmp_path: Path) -> None:
    lead = {"email": "ada@example.org", "employees": employees, "budget_usd": 40_000 if employees > 100 else None}
    told = plain.run("lead_score", LEAD, {"lead": lead}, None, tmp_path)
    assert told["result"].startswith(answer)


@pytest.mark.parametrize(
    ("inputs", "result"), [({}, "Take a coat to Oslo"), ({"celsius": 30}, "A shirt will do in Oslo")]
)
def test_declared_runs_from_its_yaml(plain: PlainCrewAI, inputs: dict[str, Any], result: str, tmp_path: Path) -> None:
    assert plain.run("declared", DECLARED, inputs, None, tmp_path)["result"] == result


def test_board_brief_reads_the_figures_with_its_tool(plain: PlainCrewAI, stub: StubServer, tmp_path: Path) -> None:
    told = plain.run("board_brief", by_class("board_brief.main", "BoardBriefFlow"), {"company": "Acme"}, stub, tmp_path)
    assert told["result"].startswith("# Acme: hiring next quarter")
    assert told["state"]["findings"]
    served = stub.stats()
    assert (served["calls"], served["failed"]) == (3, 0)  # the tool's call, its reading, the brief
    assert told["usage"]["total_tokens"] == served["prompt_tokens"] + served["completion_tokens"]


def test_book_writer_fails_at_the_printer_after_paying_for_every_chapter(
    plain: PlainCrewAI, stub: StubServer, tmp_path: Path
) -> None:
    told = plain.run("book_writer", by_class("book_writer.main", "BookWriterFlow"), {}, stub, tmp_path)
    assert told["error"] == (
        "book_writer.printer.PrinterRefusal: 'The Patient River' cannot be printed: '' is not an ISBN of 13 digits"
    )
    assert (len(told["state"]["chapters"]), bool(told["state"]["blurb"])) == (3, True)
    served = stub.stats()
    assert (served["calls"], served["failed"]) == (5, 0)
    assert told["usage"]["total_tokens"] == served["prompt_tokens"] + served["completion_tokens"] > 0


def test_book_writer_succeeds_with_an_isbn(plain: PlainCrewAI, stub: StubServer, tmp_path: Path) -> None:
    inputs = {"isbn": "978-3-16-148410-0", "chapter_count": 1}
    told = plain.run("book_writer", by_class("book_writer.main", "BookWriterFlow"), inputs, stub, tmp_path)
    assert "is in print: 1 chapters" in told["result"]
