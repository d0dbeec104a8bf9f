"""Commands about the project, and the command line itself."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from flowledger import registry
from tests.acceptance.product import PROJECT, Product, command

pytestmark = pytest.mark.timeout(150)

_discover = registry.discover


@pytest.fixture
def seen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at a project takes seconds, and these commands only show what was seen."""
    monkeypatch.setattr(registry, "discover", _seen)


@cache
def _once(project: object, storage: Path) -> object:
    return _discover(project, seconds=60, secrets=(), storage=storage)  # type: ignore[arg-type]


def _seen(project: object, *, storage: Path, **_: object) -> object:
    return _once(project, storage)


@pytest.mark.usefixtures("seen_once")
def test_flows_are_listed_beside_the_module_that_is_broken(product: Product) -> None:
    done = product.call("flows", "list", project=PROJECT)
    assert done.returncode == 1, done.stderr
    lines = {line.split("\t")[0]: line.split("\t") for line in done.stdout.splitlines()}
    assert {"faulty", "good", "looks", "outcomes", "required", "restless", "slow"} == lines.keys()
    assert lines["required"][1:3] == ["hostile.good:Required", "customer*, amount, express"]
    assert "hostile.broken  LookupError: this module is broken" in done.stderr


@pytest.mark.usefixtures("seen_once")
def test_flow_is_shown_with_its_graph_and_its_schema(product: Product) -> None:
    flow = product.json("flows", "show", "Good")
    assert (flow["key"], flow["entry_point"], flow["input_schema"]) == ("good", "hostile.good:Good", None)
    assert "Says what it was given." in product.call("flows", "show", "good").stdout
    assert product.json("flows", "graph", "good")["start_methods"] == ["first"]
    assert "first --> second" in product.call("flows", "graph", "good", "--format", "mermaid").stdout
    assert json.loads(product.call("flows", "schema", "required").stdout)["required"] == ["customer"]
    assert json.loads(product.call("flows", "schema", "good").stdout) == {}
    assert {flow["key"] for flow in product.json("flows", "list")["flows"]} >= {"good", "required"}


@pytest.fixture
def limited(product: Product) -> Iterator[Product]:
    """With what the project's file says of one of its flows."""
    file = product.project / "pyproject.toml"
    before = file.read_text()
    file.write_text(
        before
        + """
        [tool.flowledger.flows.good]
        queue_seconds = "2h"
        concurrency = 3
        retries = 2
        retry_on = ["httpx.ReadTimeout", "KeyError"]
        memory_mb = 2048
        budget_usd = 0.50
        """
    )
    yield product
    file.write_text(before)


@pytest.mark.usefixtures("seen_once")
def test_flow_is_shown_with_the_limits_that_apply_to_it(limited: Product) -> None:
    limits = limited.json("flows", "show", "good", timeout_seconds=90)["limits"]
    assert limits == {
        "timeout_seconds": 90, "queue_seconds": 7200, "concurrency": 3, "concurrency_per_user": None, "retries": 2,
        "retry_on": ["httpx.ReadTimeout", "KeyError"], "retry_seconds": 10, "idempotent": False, "crash_limit": 5,
        "memory_mb": 2048, "processes": None, "open_files": None, "budget_usd": "0.5", "budget_tokens": None,
        "on_budget": "stop", "preview_characters": None, "redact": [],
    }  # fmt: skip
    told = limited.call("flows", "show", "good", timeout_seconds=90).stdout
    shown = dict(re.findall(r"^(\w+_\w+|concurrency|retries) +(.+)$", told, re.MULTILINE))
    assert shown == {
        "timeout_seconds": "1 min 30 s", "queue_seconds": "2 h 0 min", "concurrency": "3", "retries": "2",
        "retry_on": "httpx.ReadTimeout, KeyError", "retry_seconds": "10.0 s", "crash_limit": "5",
        "memory_mb": "2,048", "budget_usd": "$0.50",
    }  # fmt: skip
    assert "retries" not in limited.call("flows", "show", "slow").stdout


@pytest.mark.usefixtures("seen_once")
def test_flow_that_is_not_there_exits_5_and_names_the_nearest(product: Product) -> None:
    done = product.call("flows", "show", "requird", "--json")
    error = json.loads(done.stderr)["error"]
    assert (done.returncode, error["code"]) == (5, "flow_not_found")
    assert "required" in error["hint"]


@pytest.mark.parametrize("arguments", [("flows", "list"), ("run", "good"), ("worker",)])
def test_no_project_here_exits_5(product: Product, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = product.call(*arguments, project=tmp_path)
    assert done.returncode == 5
    assert "no CrewAI flow project" in done.stderr


def test_doctor_passes_on_a_good_setup(product: Product) -> None:
    done = product.run("doctor", "--json")
    found = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 0, found
    assert {"postgres", "schema", "project", "crewai", "flows", "isolation", "fork safety"} <= found.keys()
    assert not [finding for finding in found.values() if finding["good"] is False]


@pytest.mark.usefixtures("seen_once")
def test_doctor_finds_each_planted_fault_and_knows_a_remedy(product: Product) -> None:
    product.sql("grant delete on public.crewai_flow_executions to authenticated")
    try:
        done = product.call("doctor", "--json", project=PROJECT)
    finally:
        product.sql("revoke delete on public.crewai_flow_executions from authenticated")
    assert done.returncode == 1
    findings = json.loads(done.stdout)
    wrong = [finding for finding in findings if finding["good"] is False]
    assert {finding["subject"] for finding in wrong} == {"schema", "flows"}
    assert any("hostile.broken" in finding["told"] for finding in wrong)
    assert all(finding["remedy"] for finding in wrong)
    assert any("hostile.threads" in finding["told"] for finding in findings if finding["subject"] == "fork safety")


def test_doctor_tells_a_database_that_is_down_and_a_project_that_is_none(product: Product, tmp_path: Path) -> None:
    done = product.call("doctor", "--json", project=tmp_path, database_url="postgresql://ada@127.0.0.1:1/x")
    wrong = {finding["subject"] for finding in json.loads(done.stdout) if finding["good"] is False}
    assert (done.returncode, wrong) == (1, {"postgres", "project"})


# -- The command line itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("executions", "--help"), ("--version",)])
def test_help_imports_neither_crewai_nor_the_driver(product: Product, arguments: tuple[str, ...]) -> None:
    executable, *rest = command(*arguments)
    done = subprocess.run(
        [executable, "-X", "importtime", *rest], capture_output=True, text=True, env=product.environment(), timeout=20
    )
    assert done.returncode == 0
    imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "flowledger.cli" in imported
    heavy = {"crewai", "litellm", "openai", "psycopg", "jsonschema", "pydantic_settings", "structlog"}
    assert not {name for name in imported if name.split(".")[0] in heavy}


def test_bare_command_shows_its_help(product: Product) -> None:
    done = product.call()
    assert "executions" in done.stdout + done.stderr
