"""What happened inside an execution, as the command line shows it: live, as a timeline, and call by call."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from tests.acceptance.product import Product, emptied

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))

from stub_llm import StubServer, environment  # noqa: E402 - found through the line above

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def product(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A worker for the example project, with the stub for a model."""
    product = emptied(postgres, EXAMPLES / "board_brief")
    with StubServer() as url, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(url).items():
            patch.setenv(name, value)
        with product.worker(log=tmp_path_factory.mktemp("worker") / "log", slots=2, grace_seconds=1):
            yield product


@pytest.fixture(scope="module")
def brief(product: Product) -> dict[str, Any]:
    """A run of the example and what the command said of it."""
    done = product.run("run", "board_brief", "-i", "topic=pricing")
    assert done.returncode == 0, done.stderr
    return {"said": done.stderr, **_shown(product, "@last")}


def _shown(product: Product, reference: str) -> dict[str, Any]:
    done = product.run("executions", "show", reference, "--timeline", "--usage", "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_run_tells_of_each_step_its_tools_tokens_and_dollars(brief: dict[str, Any]) -> None:
    (line,) = [line for line in brief["said"].splitlines() if "read_figures" in line]
    calls = [call for call in brief["usage"] if call["step"] == "read_figures"]
    spent = sum(Decimal(call["cost_usd"]) for call in calls)
    count = sum(call["usage"]["input_tokens"] + call["usage"]["output_tokens"] for call in calls)
    assert len(calls) == 2
    assert f"{count:,} tokens" in line
    assert f"${spent:.6f}".rstrip("0") in line
    assert "quarterly_figures ×1" in line


def test_a_run_is_told_beforehand_what_the_runs_before_it_took(product: Product, brief: dict[str, Any]) -> None:
    done = product.run("run", "board_brief", "-i", "topic=pricing")
    exact = Decimal(brief["metadata"]["exact_cost_usd"])
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("usually")]
    assert f"${exact:.6f}".rstrip("0") in line
    kept = _shown(product, "@last")["metadata"]["estimate"]
    assert (kept["runs"], kept["tokens"], Decimal(kept["cost_usd"])) == (1, brief["token_count"], exact)
    assert "usually" not in brief["said"], "nothing is known before the first run"


def test_the_row_holds_the_sum_of_its_calls_and_the_exact_one_beside_it(brief: dict[str, Any]) -> None:
    exact = sum(Decimal(call["cost_usd"]) for call in brief["usage"])
    assert exact > 0
    assert Decimal(brief["metadata"]["exact_cost_usd"]) == exact
    assert Decimal(brief["cost_usd"]) == round(exact, 4)
    assert brief["token_count"] == sum(
        call["usage"]["input_tokens"] + call["usage"]["output_tokens"] for call in brief["usage"]
    )


def test_each_call_names_its_price_step_crew_and_agent(brief: dict[str, Any]) -> None:
    first = brief["usage"][0]
    assert (first["step"], first["crew"], first["agent"]) == ("read_figures", "FiguresCrew", "Financial Analyst")
    assert first["price"]["source"] == "genai-prices"
    assert Decimal(first["price"]["input"]) > 0


def test_timeline_is_a_tree_from_the_flow_down_to_its_calls(brief: dict[str, Any]) -> None:
    events = {event["sequence"]: event for event in brief["timeline"]}

    def path(event: dict[str, Any]) -> list[str]:
        above = events.get(event["parent"])
        return [*(path(above) if above else []), event["kind"].partition("_")[0]]

    (tool,) = [event for event in brief["timeline"] if event["kind"] == "tool_started"]
    assert path(tool) == ["flow", "method", "crew", "task", "agent", "tool"]


def test_the_page_shows_the_tree_and_the_calls_for_eyes(product: Product, brief: dict[str, Any]) -> None:
    done = product.run("executions", "show", brief["id"], "--timeline", "--usage")
    lines = done.stdout.splitlines()
    (flow,) = [line for line in lines if "flow BoardBriefFlow" in line]
    (tool,) = [line for line in lines if "tool quarterly_figures" in line]
    assert tool.index("tool") > flow.index("flow")
    assert any("3 calls" in line for line in lines)


@pytest.mark.parametrize(
    ("budget", "limit"),
    [(("--budget-usd", "0.000001"), "of $0.000001"), (("--budget-tokens", "10"), "of 10 tokens")],
    ids=["dollars", "tokens"],
)
def test_budget_that_no_call_fits_in_ends_the_run_and_says_so(
    product: Product, budget: tuple[str, str], limit: str
) -> None:
    done = product.run("run", "board_brief", *budget)
    assert done.returncode == 3
    row = _shown(product, "@last")
    assert (row["status"], row["error_type"], row["usage"]) == ("failed", "BudgetExceeded", [])
    assert limit in row["error_message"]
    assert [event["kind"] for event in row["timeline"]].count("llm_refused") == 1


def test_budget_that_only_warns_lets_the_run_complete_and_says_so(product: Product) -> None:
    done = product.run("run", "board_brief", "--budget-usd", "0.000001", "--on-budget", "warn")
    assert done.returncode == 0, done.stderr
    row = _shown(product, "@last")
    assert len(row["usage"]) == 3
    assert "of $0.000001" in row["metadata"]["budget_warnings"][0]


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (("--budget-usd", "-1"), "budget in USD"),
        (("--budget-usd", "a lot"), "--budget-usd"),
        (("--budget-usd", "NaN"), "budget in USD"),
        (("--on-budget", "warn"), "--on-budget"),
    ],
)
def test_budget_that_makes_no_sense_is_refused_with_its_field(
    product: Product, flags: tuple[str, ...], field: str
) -> None:
    before = product.sql("select count(*) from crewai_flow_executions")
    done = product.run("run", "board_brief", *flags)
    assert done.returncode == 2
    assert field in done.stderr
    assert "Traceback" not in done.stderr
    assert product.sql("select count(*) from crewai_flow_executions") == before
