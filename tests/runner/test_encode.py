"""Whatever a flow leaves behind becomes JSON that Postgres stores; ordinary JSON is left as it is."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowledger.runner.encode import DEEPEST, clean, dump, encode

PLAIN_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
ORDINARY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | PLAIN_TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(PLAIN_TEXT, inner),
)
HOSTILE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.text(st.sampled_from("a\x00\ud800\udc00é😀"))
    | st.binary()
    | st.dates()
    | st.datetimes()
    | st.decimals()
    | st.uuids()
    | st.complex_numbers()
    | st.builds(object)
    | st.just(print),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(
            st.text(st.characters()) | st.integers() | st.floats() | st.binary() | st.tuples(st.integers()), inner
        )
        | st.sets(st.integers() | st.text(st.characters()))
    ),
    max_leaves=30,
)


def storable(text: str) -> bool:
    """What Postgres' jsonb accepts, as far as JSON itself does not say so already."""
    if re.search(r"(?<!\\)(\\\\)*\\u0000", text):
        return False
    try:
        text.encode()
        json.dumps(json.loads(text), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return not re.search(r"[:\[,](NaN|-?Infinity)\b", text)


@settings(max_examples=300, deadline=None)
@given(ORDINARY)
def test_ordinary_json_is_unchanged(value: Any) -> None:
    encoded, changes = encode(value)
    assert encoded == value
    assert changes == {}
    assert json.loads(dump(encoded, 1 << 30)[0]) == value


@settings(max_examples=300, deadline=None)
@given(HOSTILE)
def test_anything_becomes_json_that_postgres_stores(value: Any) -> None:
    body, _ = dump(encode(value)[0], 1 << 30)
    json.loads(body)
    assert storable(body.decode())


@pytest.mark.parametrize("text", ['"\\u0000"', '"\\ud800"', "[NaN]", '{"a":-Infinity}'])
def test_the_check_itself_refuses_what_postgres_refuses(text: str) -> None:
    assert not storable(text)


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: Any


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class HostileDict(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05+00:00"),
        (date(2026, 1, 2), "2026-01-02"),
        (Decimal("1.10"), "1.10"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Colour.RED, "red"),
        (Point(1, {2}), {"x": 1, "y": [2]}),
        ((1, 2), [1, 2]),
        (b"\xff", {"__bytes__": "/w=="}),
        (math.nan, None),
        ({1: "a", "1": "b"}, {"1": "a", "1'": "b"}),
        ({(1, 2): 3, Colour.RED: 4}, {"(1, 2)": 3, "red": 4}),
        (Hostile(), "<Hostile without a repr>"),
        (HostileDict(a=1), "<HostileDict of 1>"),
        ("\ud83d\ude00", "😀"),
        ([True, 1, 1.0, -0.0], [True, 1, 1.0, -0.0]),
    ],
)
def test_known_kinds_keep_their_meaning(value: Any, expected: Any) -> None:
    assert encode(value)[0] == expected


def test_nothing_is_cut_above_the_depth_limit_and_nothing_kept_below_it() -> None:
    def nested(depth: int) -> Any:
        value: Any = "core"
        for _ in range(depth):
            value = [value]
        return value

    assert encode(nested(DEEPEST))[1] == {}
    value, changes = encode(nested(20_000))
    assert changes == {"too deep": 1}
    assert len(json.dumps(value)) < 1000


def test_generator_is_not_consumed() -> None:
    numbers = (n for n in range(3))
    assert "generator" in encode(numbers)[0]
    assert list(numbers) == [0, 1, 2]


def test_doubling_structure_is_cut_and_not_followed_for_ever() -> None:
    value: Any = ["x"]
    for _ in range(60):
        value = [value, value]
    assert encode(value)[1]["too many"] > 0


def test_integer_too_long_for_python_to_read_back_is_written_in_hexadecimal() -> None:
    value, changes = encode({"n": 10**200_000, "m": 10**4000})
    assert int(value["n"]["__int__"], 16) == 10**200_000
    assert changes == {"huge integer": 1}
    assert json.loads(dump(value, 1 << 30)[0])["m"] == 10**4000


def test_large_output_becomes_a_preview_with_its_true_size() -> None:
    body, left_out = dump({"text": "é" * 5000}, 1024)
    preview = json.loads(body)
    assert (
        preview["bytes"] == left_out["bytes"] == len(json.dumps({"text": "é" * 5000}, ensure_ascii=False).encode()) - 1
    )
    assert preview["preview"].startswith('{"text":"ééé')


def test_clean_text_is_the_same_object() -> None:
    assert clean("plain é") == "plain é"
    assert clean("\x00\ud800x") == "�x"
