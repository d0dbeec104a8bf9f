"""What exists is documented: every command, setting, event, error and SQLSTATE; and the generated pages are current."""

from __future__ import annotations

import re
import tomllib

import pytest

from flowledger.domain.status import TRANSITIONS
from flowledger.domain.timeline import EventKind
from flowledger.settings import Settings
from flowledger.telemetry.metrics import Metrics
from flowledger.telemetry.requests import RequestMetrics
from tests.docs.pages import (
    DOCS,
    ROOT,
    error_types_in_python,
    error_types_in_sql,
    missing,
    not_listed,
    reference_pages,
)

SRC = ROOT / "src" / "flowledger"
REFERENCE = DOCS / "reference"
LOGGERS = {"flowledger.traces", "flowledger.metrics"}


@pytest.mark.parametrize("name", ["cli.md", "settings.md", "events.md", "errors.md"])
def test_a_generated_page_is_what_the_code_says_now(name):
    assert (REFERENCE / name).read_text() == reference_pages().pages()[name], "run `make docs`"


def test_every_setting_is_documented():
    settings = [f"FLOWLEDGER_{name.upper()}" for name in Settings.model_fields]
    assert missing([*Settings.model_fields, *settings], (REFERENCE / "settings.md").read_text()) == []


def test_every_setting_has_a_description():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_every_metric_and_every_attribute_of_a_span_is_documented():
    text = (DOCS / "how-to" / "observe.md").read_text()
    told = "".join(file.read_text() for file in (SRC / "telemetry").glob("*.py"))
    metrics = {f"flowledger_{name}" for name in re.findall(r'(?:_by_flow|_gauge)\("(\w+)"', told)}
    for counted in (Metrics(), RequestMetrics()):
        metrics |= {f"{family.name}{'_total' * (family.type == 'counter')}" for family in counted.registry.collect()}
    attributes = set(re.findall(r'"((?:gen_ai|flowledger)\.[a-z_.]+[a-z])"', told)) - LOGGERS
    assert len(metrics) >= 22
    assert len(attributes) >= 25
    assert missing(metrics | attributes, text) == []


def test_every_command_is_documented():
    text = (REFERENCE / "cli.md").read_text()
    assert [name for name in reference_pages().commands() if f"# {name}\n" not in text] == []


def test_every_kind_of_event_and_each_field_is_documented():
    text = (REFERENCE / "events.md").read_text()
    assert missing([*EventKind, *reference_pages().event_fields()], text) == []


def test_every_error_is_documented():
    codes = [kind.code for kind in reference_pages().error_classes()]
    assert len(set(codes)) == len(codes)
    assert missing(codes, (REFERENCE / "errors.md").read_text()) == []


def test_every_error_type_that_a_row_may_hold_is_documented():
    written = {name for file in SRC.rglob("*.py") for name in error_types_in_python(file.read_text())}
    written |= {name for file in SRC.glob("sql/schema/*.sql") for name in error_types_in_sql(file.read_text())}
    assert {"WorkerLost", "FlowGone", "OutputNotStorable"} <= written
    assert missing(written | set(reference_pages().error_types()), (REFERENCE / "errors.md").read_text()) == []
    own = [name for name in reference_pages().error_types() if "." not in name]
    assert missing(own, (DOCS / "lifecycle.md").read_text()) == []


def test_every_error_type_says_what_it_means():
    assert [name for name, told in reference_pages().error_types().items() if not told] == []


def test_every_sqlstate_is_documented():
    states = {state for file in SRC.glob("sql/schema/*.sql") for state in re.findall(r"'(FL\d{3})'", file.read_text())}
    assert len(states) >= 6
    assert missing(states, (DOCS / "lifecycle.md").read_text()) == []


def test_the_diagram_shows_exactly_the_lawful_steps():
    drawn = set(re.findall(r"^  (\w+) --> (\w+)", (DOCS / "lifecycle.md").read_text(), re.MULTILINE))
    assert drawn == {(str(before), str(after)) for before, follows in TRANSITIONS.items() for after in follows}


def test_every_page_is_in_the_index():
    generated = set(REFERENCE.glob("schema/*.md"))
    assert not_listed(DOCS / "README.md", sorted(set(DOCS.rglob("*.md")) - generated - {DOCS / "README.md"})) == []


def test_every_room_is_in_the_architecture():
    rooms = {f"{room.name}/" for room in SRC.iterdir() if (room / "__init__.py").exists()}
    rooms |= {file.name for file in SRC.glob("*.py") if not file.name.startswith("__")}
    assert missing(rooms, (DOCS / "architecture.md").read_text()) == []


def test_the_floors_are_those_that_the_imports_are_held_to():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    drawn = re.findall(r"^\d  (.+)$", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    assert [set(floor.split(" · ")) for floor in drawn] == [
        {room.removeprefix("flowledger.") for room in layer.split(" | ")} for layer in layers
    ]


class TestTheCheckersFindWhatTheyShould:
    def test_a_name_that_is_not_there(self):
        assert missing(["slots", "lots", "data"], "`FLOWLEDGER_SLOTS`, `slots`, data_dir and data") == ["lots", "data"]

    def test_an_error_type_in_code(self):
        assert error_types_in_python('Outcome(error_type="Gone")\nOutcome(error_type=None)') == {"Gone"}
        assert error_types_in_sql("set error_type = case a when 'x' then 'Gone' else 'Lost' end,") == {"Gone", "Lost"}

    def test_a_page_that_is_not_listed(self, tmp_path):
        index = tmp_path / "README.md"
        index.write_text("[a](a.md)")
        assert not_listed(index, [tmp_path / "a.md", tmp_path / "b.md"]) == [tmp_path / "b.md"]

    def test_a_page_that_is_out_of_date(self, monkeypatch):
        script = reference_pages()
        monkeypatch.setitem(script._WORDS, "limit", "Changed.")
        assert (REFERENCE / "cli.md").read_text() != script.pages()["cli.md"]
