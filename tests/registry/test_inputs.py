"""Inputs are checked before anything starts, and every problem is told by its field."""

from __future__ import annotations

import json
import string
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from flowledger.errors import InvalidInput
from flowledger.inputs import check, parse


class Lead(BaseModel):
    email: str = Field(max_length=20, description="Where we can write to.")
    age: int | None = None
    tags: list[str] = []


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int = 1


class State(BaseModel):
    lead: Lead
    second: Lead | None = None
    count: int = Field(default=1, ge=1, le=9)
    kind: Literal["low", "high"] = "low"
    ratio: float = 0.5
    sure: bool = False
    when: datetime | None = None
    weights: dict[str, float] = {}
    opened: Open = Open()
    anything: Any = None


SCHEMA = State.model_json_schema()
GOOD: dict[str, Any] = {"lead": {"email": "a@b.c"}}


@pytest.mark.parametrize(
    ("inputs", "field", "told"),
    [
        ({}, "lead", "is required and was not given. Give an object"),
        ({"lead": {}}, "lead.email", "is required and was not given. Give a string: Where we can write to."),
        ({"lead": {"emial": "x"}}, "lead.emial", "there is no such input. Did you mean email?"),
        ({"laed": {}}, "laed", "Did you mean lead?"),
        ({**GOOD, "zzz": 1}, "zzz", "It takes lead, second, count"),
        ({"lead": 3}, "lead", "must be an object, not 3"),
        ({"lead": {"email": 3}}, "lead.email", "must be a string, not 3"),
        ({"lead": {"email": "x" * 21}}, "lead.email", "has 21 characters, the limit is 20"),
        ({"lead": {"email": "x", "tags": ["a", 1]}}, "lead.tags[1]", "must be a string, not 1"),
        ({"lead": {"email": "x", "age": "old"}}, "lead.age", 'must be an integer or null, not "old"'),
        ({**GOOD, "second": {"email": 1}}, "second.email", "must be a string, not 1"),
        ({**GOOD, "second": 4}, "second", "must be an object or null, not 4"),
        ({**GOOD, "count": "3"}, "count", 'must be an integer, not "3"'),
        ({**GOOD, "count": True}, "count", "must be an integer, not true"),
        ({**GOOD, "count": 0}, "count", "must be at least 1, not 0"),
        ({**GOOD, "count": 10}, "count", "must be at most 9, not 10"),
        ({**GOOD, "kind": "hgih"}, "kind", 'must be one of low, high, not "hgih". Did you mean high?'),
        ({**GOOD, "when": "soon"}, "when", 'must be a valid date-time, not "soon"'),
        ({**GOOD, "weights": {"a": "b"}}, "weights.a", 'must be a number, not "b"'),
        ({**GOOD, "ratio": float("nan")}, "ratio", "is nan, which JSON does not know"),
        ({**GOOD, "anything": ["a\0"]}, "anything[0]", "NUL character"),
        ({**GOOD, "anything": {"\ud800": 1}}, "anything", "half a surrogate pair"),
        ({**GOOD, "anything": 10**5_000}, "anything", "3,900 digits"),
        ({**GOOD, "anything": object()}, "anything", "is a object, which JSON does not know"),
        ({**GOOD, "id": 5}, "id", "must be a string"),
    ],
)
def test_a_problem_is_told_by_its_field(inputs: dict[str, Any], field: str, told: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check(SCHEMA, inputs)
    assert refused.value.field == field
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"id": "x", "crewai_trigger_payload": {"any": ["thing"]}},
        {"second": None},
        {"ratio": 3},
        {"opened": {"a": 1, "more": 2}},
        {"when": "2026-01-31T10:00:00Z"},
        {"weights": {"a": 1.5}},
        {"anything": {"deep": [1, None]}},
    ],
)
def test_what_the_state_takes_is_taken(more: dict[str, Any]) -> None:
    check(SCHEMA, {**GOOD, **more})
    State.model_validate({**GOOD, **more})


def test_without_a_schema_any_object_is_taken_and_nothing_else() -> None:
    check(None, {"a": [1, {"b": None}]})
    with pytest.raises(InvalidInput, match=r"inputs: must be an object, not \[1\]"):
        check(None, [1])


def test_inputs_nested_too_deep_are_refused_not_overflowing() -> None:
    deep: Any = 1
    for _ in range(50_000):
        deep = [deep]
    with pytest.raises(InvalidInput, match="deeper than 100 levels"):
        check(None, {"deep": deep})


@pytest.mark.parametrize("schema", [{"type": "strong"}, {"$ref": "https://example.org/x.json"}, {"$ref": "#/$defs/no"}])
def test_a_schema_that_is_itself_wrong_says_so(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="the flow's own schema is wrong"):
        check(schema, {"a": 1})


def test_parts_of_a_composed_schema_are_not_taken_for_the_whole() -> None:
    composed = {"allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "integer"}}}]}
    check(composed, {"a": 1, "b": 2})
    with pytest.raises(InvalidInput, match="b: must be an integer"):
        check(composed, {"a": 1, "b": "2"})


# -- Pairs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "read"),
    [
        ("lead.email=007", {"lead": {"email": "007"}}),
        ("lead.email=null", {"lead": {"email": "null"}}),
        ("lead.age=null", {"lead": {"age": None}}),
        ("lead.age=41", {"lead": {"age": 41}}),
        ('lead.tags=["a", "b"]', {"lead": {"tags": ["a", "b"]}}),
        ('lead={"email": "x"}', {"lead": {"email": "x"}}),
        ("second.age=3", {"second": {"age": 3}}),
        ("count=3", {"count": 3}),
        ("count=three", {"count": "three"}),
        ("ratio=3", {"ratio": 3}),
        ("sure=True", {"sure": True}),
        ("sure=1", {"sure": "1"}),
        ("kind=high", {"kind": "high"}),
        ("weights.a=2.5", {"weights": {"a": 2.5}}),
        ("anything=[1]", {"anything": [1]}),
        ("anything=x=y", {"anything": "x=y"}),
        ('anything:="1"', {"anything": "1"}),
        ("unknown=true", {"unknown": True}),
        ('unknown="quoted"', {"unknown": '"quoted"'}),
        ("count=", {"count": ""}),
    ],
)
def test_a_value_becomes_what_the_schema_wants(pair: str, read: dict[str, Any]) -> None:
    assert parse([pair], SCHEMA) == read


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        (["count"], "count: is not key=value"),
        (["=3"], "=3: is not key=value"),
        (["a..b=3"], "is not key=value"),
        (["count:=three"], "count: is not JSON"),
        (["count=1", "count=2"], "count: is given twice"),
        (["lead=x", "lead.email=y"], "lead.email: lead already has a value"),
        (["lead=@/no/such/file"], "lead: the file /no/such/file cannot be read: No such file"),
    ],
)
def test_pairs_that_cannot_be_read_are_refused(pairs: list[str], told: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse(pairs, SCHEMA)
    assert told in str(refused.value)


def test_a_value_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("first\nsecond\n")
    (tmp_path / "json").write_text('{"email": "x"}')
    (tmp_path / "bytes").write_bytes(b"\xff")
    assert parse([f"lead.email=@{tmp_path}/text"], SCHEMA) == {"lead": {"email": "first\nsecond\n"}}
    assert parse([f"lead:=@{tmp_path}/json"], SCHEMA) == {"lead": {"email": "x"}}
    with pytest.raises(InvalidInput, match="is not UTF-8 text"):
        parse([f"lead=@{tmp_path}/bytes"], SCHEMA)


def test_an_input_whose_name_holds_a_dot_is_taken_by_its_name() -> None:
    schema = {"type": "object", "properties": {"a.b": {"type": "integer"}}}
    assert parse(["a.b=1", "c.d=1"], schema) == {"a.b": 1, "c": {"d": 1}}


def test_a_schema_that_refers_to_itself_ends() -> None:
    looping = {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}
    assert parse(["x.y=1"], looping) == {"x": {"y": 1}}


# -- Properties --------------------------------------------------------------------------------------------------------

names = st.text(string.ascii_lowercase, min_size=1, max_size=6)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))
near_inputs = st.dictionaries(st.sampled_from([*SCHEMA["properties"], "id"]), values, max_size=4)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(names, values, max_size=5))
def test_json_given_as_pairs_arrives_unchanged(inputs: dict[str, Any]) -> None:
    assert parse([f"{name}:={json.dumps(value)}" for name, value in inputs.items()], SCHEMA) == inputs


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text() | st.builds("{}={}".format, names, st.text().filter(lambda text: text[:1] != "@"))))
def test_any_pairs_are_read_or_refused(pairs: list[str]) -> None:
    for schema in (SCHEMA, None):
        try:
            assert isinstance(parse(pairs, schema), dict)
        except InvalidInput:
            continue


@settings(max_examples=300, deadline=None)
@given(near_inputs)
def test_what_passes_the_check_is_a_valid_state(inputs: dict[str, Any]) -> None:
    inputs = {**GOOD, **inputs}
    with suppress(InvalidInput):
        check(SCHEMA, inputs)
        State.model_validate(inputs)
