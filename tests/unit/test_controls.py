"""What a project may say about its flows, and how a mistake is told."""

from __future__ import annotations

from dataclasses import fields
from decimal import Decimal
from pathlib import Path

import pytest

from flowledger import registry
from flowledger.domain.budget import Budget
from flowledger.domain.controls import FlowControls
from flowledger.domain.project import Project
from flowledger.domain.reach import OnReach
from flowledger.errors import InvalidInput

PLACE = "pyproject.toml [tool.flowledger.flows.board]"


def test_every_field_is_read():
    table = {
        "timeout_seconds": "5m",
        "queue_seconds": 90,
        "concurrency": 2,
        "concurrency_per_user": 1,
        "retries": 3,
        "retry_on": ["TimeoutError"],
        "retry_seconds": "1m30s",
        "idempotent": True,
        "crash_limit": 2,
        "memory_mb": 512,
        "processes": 20,
        "open_files": 64,
        "budget_usd": 1.5,
        "budget_tokens": 50_000,
        "on_budget": "warn",
        "preview_characters": 0,
        "redact": [r"KD-\d{8}"],
    }
    assert table.keys() == {field.name for field in fields(FlowControls)}
    controls = FlowControls.read(table, PLACE)
    assert (controls.timeout_seconds, controls.queue_seconds, controls.retry_seconds) == (300, 90, 90)
    assert (controls.retry_on, controls.idempotent, controls.memory_bytes) == (("TimeoutError",), True, 512 * 2**20)
    assert controls.budget == Budget(Decimal("1.5"), 50_000, OnReach.WARN, "the flow's budget for a run")


def test_a_flow_of_which_nothing_is_said_has_no_limits():
    controls = FlowControls.read({}, PLACE)
    assert controls == FlowControls()
    assert (controls.timeout_seconds, controls.concurrency, controls.retries, controls.memory_bytes) == (
        None, None, 0, None,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [
    ("timeout", 5), ("timeout_seconds", 0), ("timeout_seconds", "soon"), ("timeout_seconds", True),
    ("timeout_seconds", 2_147_484), ("queue_seconds", -1), ("retry_seconds", "2d"), ("concurrency", 0),
    ("concurrency", 1.5), ("concurrency_per_user", "2"), ("retries", 21), ("retries", True), ("retry_on", "ValueError"),
    ("retry_on", [1]), ("idempotent", 1), ("crash_limit", 0), ("memory_mb", 0), ("processes", 0), ("open_files", 1),
    ("budget_usd", -1), ("budget_usd", "a lot"), ("budget_usd", True), ("budget_usd", float("nan")),
    ("budget_tokens", 1.5), ("on_budget", "shout"), ("preview_characters", -1),
    ("redact", "KD-1"), ("redact", [1]), ("redact", ["("]), ("redact", ["a*"]), ("redact", [""]),
])  # fmt: skip
def test_a_mistake_is_told_with_its_place_and_field(name, value):
    with pytest.raises(InvalidInput) as refusal:
        FlowControls.read({name: value}, PLACE)
    assert refusal.value.field == f"{PLACE} {name}"


def test_patterns_are_read_as_they_are():
    assert FlowControls.read({"redact": [r"KD-\d{8}"]}, PLACE).redact == (r"KD-\d{8}",)


@pytest.mark.parametrize(("pattern", "told"), [("KD-(", "is no regular expression"), ("x?", "matches the empty text")])
def test_a_pattern_that_cannot_be_used_is_told_with_the_reason(pattern, told):
    with pytest.raises(InvalidInput, match=told) as refusal:
        FlowControls.read({"redact": [pattern]}, PLACE)
    assert repr(pattern) in refusal.value.problem


def test_the_projects_own_file_comes_before_those_of_nested_projects(tmp_path: Path):
    nested = tmp_path / "nested"
    nested.mkdir()
    (tmp_path / "pyproject.toml").write_text("[tool.flowledger.flows.a]\nretries = 1\n")
    (nested / "pyproject.toml").write_text(
        "[tool.flowledger.flows.a]\nretries = 2\n[tool.flowledger.flows.b]\nconcurrency = 3\n"
    )
    found = registry.controls(_project(tmp_path, nested))
    assert found == {"a": FlowControls(retries=1), "b": FlowControls(concurrency=3)}


@pytest.mark.parametrize(("text", "field"), [
    ("[tool.flowledger.flows.a]\nretry = 1\n", "[tool.flowledger.flows.a] retry"),
    ("[tool.flowledger.flows]\na = 1\n", "[tool.flowledger.flows.a]"),
    ("[tool.flowledger]\nflows = 1\n", "[tool.flowledger] flows"),
])  # fmt: skip
def test_a_mistake_in_a_file_names_the_file(tmp_path: Path, text: str, field: str):
    file = tmp_path / "pyproject.toml"
    file.write_text(text)
    with pytest.raises(InvalidInput) as refusal:
        registry.controls(_project(tmp_path))
    assert refusal.value.field == f"{file} {field}"


def test_a_project_without_a_file_says_nothing(tmp_path: Path):
    assert registry.controls(_project(tmp_path)) == {}


def _project(*paths: Path) -> Project:
    return Project(root=paths[0], python=Path("python"), import_paths=paths, modules=())
