"""Every example runs with plain CrewAI, in a process of its own, against the stub; it ends as its README says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from stub_llm import environment

if TYPE_CHECKING:
    from stub_llm import StubServer

EXAMPLES = Path(__file__).parents[2] / "examples"

RUN = """
import json, sys
flow_code, inputs = sys.argv[1], json.loads(sys.argv[2])
scope = {}
exec(flow_code, scope)
flow = scope["flow"](inputs)
told = {}
try:
    result = flow.kickoff(inputs=inputs)
    told["result"] = getattr(result, "raw", result)
except Exception as error:
    told["error"] = f"{type(error).__module__}.{type(error).__qualname__}: {error}"
state = flow.state
told["state"] = state if isinstance(state, dict) else state.model_dump(mode="json")
told["usage"] = flow.usage_metrics.model_dump() if hasattr(flow, "usage_metrics") else None
print("TOLD " + json.dumps(told))
"""


def run(project: str, code: str, inputs: dict[str, Any], stub: StubServer | None, storage: Path) -> dict[str, Any]:
    endpoint = environment(stub.url) if stub else {}
    quiet = {
        "CREWAI_DISABLE_TELEMETRY": "true",
        "CREWAI_DISABLE_VERSION_CHECK": "true",
        "CREWAI_TRACING_ENABLED": "false",
    }
    source = {"PYTHONPATH": str(EXAMPLES / project / "src"), "CREWAI_STORAGE_DIR": str(storage)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "MODEL"))}
    ended = subprocess.run(
        [sys.executable, "-c", RUN, code, json.dumps(inputs)],
        cwd=EXAMPLES / project,
        env={**kept, **quiet, **source, **endpoint},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    line = next((line for line in ended.stdout.splitlines() if line.startswith("TOLD ")), None)
    assert line is not None, ended.stdout[-2_000:] + ended.stderr[-4_000:]
    told: dict[str, Any] = json.loads(line.removeprefix("TOLD "))
    return told


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
def test_order_triage_takes_the_way_that_the_router_says(inputs: dict[str, Any], decision: str, tmp_path: Path) -> None:
    told = run("order_triage", TRIAGE, inputs, None, tmp_path)
    assert told["result"]["decision"] == told["state"]["decision"] == decision


@pytest.mark.parametrize(("employees", "answer"), [(500, "call ada@example.org today"), (5, "send ada@example.org")])
def test_lead_score_sorts_hot_from_cold(employees: int, answer: str, tmp_path: Path) -> None:
    lead = {"email": "ada@example.org", "employees": employees, "budget_usd": 40_000 if employees > 100 else None}
    told = run("lead_score", LEAD, {"lead": lead}, None, tmp_path)
    assert told["result"].startswith(answer)


@pytest.mark.parametrize(
    ("inputs", "result"), [({}, "Take a coat to Oslo"), ({"celsius": 30}, "A shirt will do in Oslo")]
)
def test_declared_runs_from_its_yaml(inputs: dict[str, Any], result: str, tmp_path: Path) -> None:
    assert run("declared", DECLARED, inputs, None, tmp_path)["result"] == result


def test_board_brief_reads_the_figures_with_its_tool(stub: StubServer, tmp_path: Path) -> None:
    told = run("board_brief", by_class("board_brief.main", "BoardBriefFlow"), {"company": "Acme"}, stub, tmp_path)
    assert told["result"].startswith("# Acme: hiring next quarter")
    assert told["state"]["findings"]
    served = stub.stats()
    assert (served["calls"], served["failed"]) == (3, 0)  # the tool's call, its reading, the brief
    assert told["usage"]["total_tokens"] == served["prompt_tokens"] + served["completion_tokens"]


def test_book_writer_fails_at_the_printer_after_paying_for_every_chapter(stub: StubServer, tmp_path: Path) -> None:
    told = run("book_writer", by_class("book_writer.main", "BookWriterFlow"), {}, stub, tmp_path)
    assert told["error"] == (
        "book_writer.printer.PrinterRefusal: 'The Patient River' cannot be printed: '' is not an ISBN of 13 digits"
    )
    assert (len(told["state"]["chapters"]), bool(told["state"]["blurb"])) == (3, True)
    served = stub.stats()
    assert (served["calls"], served["failed"]) == (5, 0)
    assert told["usage"]["total_tokens"] == served["prompt_tokens"] + served["completion_tokens"] > 0


def test_book_writer_succeeds_with_an_isbn(stub: StubServer, tmp_path: Path) -> None:
    inputs = {"isbn": "978-3-16-148410-0", "chapter_count": 1}
    told = run("book_writer", by_class("book_writer.main", "BookWriterFlow"), inputs, stub, tmp_path)
    assert "is in print: 1 chapters" in told["result"]
