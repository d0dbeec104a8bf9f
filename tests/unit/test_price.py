"""What people write as a price is read to the last digit, or refused with the place, the limit and a remedy."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flowledger.cli.actions import price_file
from flowledger.cli.actions.price_check import Table, findings
from flowledger.domain.price import TEAM, SeenModel, TeamPrice, since, usd, written
from flowledger.domain.usage import Price
from flowledger.errors import InvalidInput
from flowledger.prices import Prices

NOW = datetime(2026, 11, 26, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "amount"),
    [
        ("0", "0"),
        ("-0", "0"),
        (" 2.50 ", "2.5"),
        (".15", "0.15"),
        ("1e-7", "0.0000001"),
        ("1000000", "1000000"),
        ("0.123456789012", "0.123456789012"),
        (3, "3"),
        (Decimal("0.1"), "0.1"),
    ],
)
def test_an_amount_is_exact(given: Any, amount: str) -> None:
    assert usd(given, "--input") == Decimal(amount)
    assert not usd(given, "--input").is_signed()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("-1", "below zero"),
        ("-0.000000000001", "below zero"),
        ("nan", "is no amount"),
        ("NaN", "is no amount"),
        ("inf", "is no amount"),
        ("$3", "is no amount"),
        ("3,50", "is no amount"),
        ("1_0", "is no amount"),
        ("٣", "is no amount"),
        ("", "is no amount"),
        ("e5", "is no amount"),
        ("9" * 5000, "is no amount"),
        (True, "is no amount"),
        ({"usd": 1}, "is no amount"),
        ("1000000.01", "no likely price"),
        ("1e99", "no likely price"),
        ("0.1234567890123", "no likely price"),
        ("0.1000000000000000000000000000000000000001", "no likely price"),
    ],
)
def test_what_is_no_price_is_refused_by_the_name_of_its_place(given: Any, told: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        usd(given, "--cached-input")
    assert refused.value.field == "--cached-input"
    assert told in refused.value.problem
    assert refused.value.remedy
    assert len(refused.value.problem) < 80


def test_a_date_is_utc_unless_it_says_otherwise() -> None:
    assert since("2026-11-01", "--since") == datetime(2026, 11, 1, tzinfo=UTC)
    assert since("2026-11-01T01:00+02:00", "--since") == datetime(2026, 10, 31, 23, tzinfo=UTC)


@pytest.mark.parametrize("given", ["30d", "yesterday", "2026-13-01", "0001-01-01T00:00+14:00", 7, ""])
def test_what_is_no_date_is_refused(given: Any) -> None:
    with pytest.raises(InvalidInput):
        since(given, "--since")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": ""}, "model"),
        ({"model": "a\nb"}, "model"),
        ({"model": "a\x00"}, "model"),
        ({"model": "m" * 201}, "model"),
        ({"model": 5}, "model"),
        ({"provider": ["x"]}, "provider"),
        ({"input": None}, "input"),
        ({"output": ""}, "output"),
    ],
)
def test_a_price_without_what_it_needs_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        written({"model": "m", "input": "1", "output": "2", **change}, str)
    assert refused.value.field == field


# -- Files ------------------------------------------------------------------------------------------------------------

CSV = """model,provider,since,input,output,cached_input
GPT-4o,openai,2026-11-01,2.5,10,1.25

llama3,ollama,,0,0,
"""
JSON = """[
  {"model": "gpt-4o", "provider": "openai", "since": "2026-11-01", "input": 2.5, "output": "10", "cached_input": 1.25},
  {"model": "llama3", "provider": "ollama", "input": 0, "output": 0}
]"""


def file(folder: Path, text: str | bytes) -> Path:
    path = folder / "prices"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("text", [CSV, JSON, CSV.replace("\n", "\r\n"), b"\xef\xbb\xbf" + CSV.encode(), "\n" + JSON])
def test_a_file_is_read_whole(tmp_path: Path, text: str | bytes) -> None:
    first, second = price_file.read(file(tmp_path, text))
    assert first.key == ("gpt-4o", "openai", datetime(2026, 11, 1, tzinfo=UTC))
    assert first.price.amounts == {
        "input": Decimal("2.5"),
        "output": Decimal(10),
        "cached_input": Decimal("1.25"),
        "call": Decimal(0),
    }
    assert (second.key, second.price.input) == (("llama3", "ollama", None), 0)


def test_numbers_of_a_json_file_lose_no_digit(tmp_path: Path) -> None:
    (read,) = price_file.read(file(tmp_path, '[{"model": "m", "input": 0.123456789012, "output": 1e-7}]'))
    assert (read.price.input, read.price.output) == (Decimal("0.123456789012"), Decimal("0.0000001"))


@pytest.mark.parametrize(
    ("text", "place", "told"),
    [
        ("model,input,output\nm,1,2\nn,-1,2\n", ":3 input", "below zero"),
        ('model,input,output\n"m\nn",1,2\nn,x,2\n', ":2 model", "no name"),
        ("model,provider,input,output\nm,,1,2\n\n\nn,,1\n", ":5 output", "missing"),
        ("model,input,output\nm,1,2,3\n", ":2", "4 cells"),
        ("model,input,output\nm,1,2\nM,3,4\n", ":3 model", "line 2 already"),
        ("model;input;output\nm;1;2\n", ":1 model;input;output", "not known"),
        ("model,input,input,output\n", ":1", "twice"),
        ('model,input,output\n"m,1,2\n', ":2", "no CSV"),
        ("model,input,output\n", "prices", "holds no prices"),
        ("", "prices", "holds no prices"),
        (b"\xff\xfe\x00", "prices", "not UTF-8"),
        ("[]", "prices", "holds no prices"),
        ('[\n{"model": "m", "input": 1,\n "output": 2},\n{"model": "n", "input": NaN}\n]', ":4", "NaN"),
        ('[\n{"model": "m", "input": 1, "output": -2}]', ":2 output", "below zero"),
        ('[\n{"model": "m", "input": true, "output": 2}]', ":2 input", "no amount"),
        ('[\n{"model": "m", "price": 1}]', ":2 price", "not known"),
        ('[\n{"model": "m", "input": 1, "output": 2}\n{}]', ":3", "comma"),
        ('[{"model": "m", "input": 1, "output": 2}] x', ":1", "follows"),
        ('[{"model": "m", "input": 1, "output": 2},]', ":1", "no JSON"),
        ('[{"model": "m", "input": 1, "output": 2}', ":1", "no JSON"),
        ("[7]", ":1", "no JSON object"),
        ('{"model": "m"}', ":1", "no JSON list"),
        ("[" * 100_000, ":1", "no JSON"),
        (b" " * (price_file.MOST_BYTES + 1), "prices", "larger than 1,000,000 bytes"),
    ],
)
def test_the_first_mistake_of_a_file_is_told_by_line_and_field(
    tmp_path: Path, text: str | bytes, place: str, told: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        price_file.read(file(tmp_path, text))
    assert refused.value.field.endswith(place)
    assert told in refused.value.problem


@pytest.mark.parametrize("name", [".", "nowhere"])
def test_a_file_that_cannot_be_read_is_said_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        price_file.read(tmp_path / name)


# -- Check ------------------------------------------------------------------------------------------------------------


def own(model: str, given: str = "2.5", spoken: str = "10", **facts: Any) -> TeamPrice:
    return TeamPrice(model, Price(input=Decimal(given), output=Decimal(spoken), source=TEAM, version="1"), **facts)


def found(
    *team: TeamPrice, seen: tuple[tuple[str, str, int], ...] = (), ever: tuple[str, ...] = (), listed: Any = None
) -> list[tuple[str, str]]:
    models = [SeenModel(model, provider, 5, unpriced, NOW) for model, provider, unpriced in seen]
    table = Table(team, models, {*ever, *(one.model for one in models)})
    return [(one.kind, one.model) for one in findings(Prices(team, listed), table, NOW)]


def test_prices_that_do_what_they_seem_to_are_not_found() -> None:
    assert found(own("gpt-4o", provider="openai"), seen=(("gpt-4o", "openai", 0), ("gpt-4o-mini", "openai", 0))) == []


def test_a_model_without_a_price_is_found_and_calls_from_before_it_had_one() -> None:
    assert found(seen=(("llama3", "ollama", 5), ("gpt-4o", "openai", 2))) == [
        ("unpriced", "llama3"),
        ("repriceable", "gpt-4o"),
    ]


def test_a_newer_price_that_an_older_one_for_the_provider_comes_before_is_shadowed() -> None:
    newer = own("gpt-4o", since=NOW.replace(day=20))
    older = own("gpt-4o", provider="openai", since=NOW.replace(day=1))
    seen = (("gpt-4o", "openai", 0),)
    assert found(newer, older, seen=seen) == [("shadowed", "gpt-4o")]
    assert found(own("gpt-4o", provider="gemini"), own("gpt-4o", provider="google"), seen=seen)[0][0] == "shadowed"


def test_an_older_price_that_gives_way_to_a_newer_one_is_in_order() -> None:
    older, newer = own("gpt-4o", provider="openai"), own("gpt-4o", provider="openai", since=NOW.replace(day=1))
    later = own("gpt-4o", provider="openai", since=NOW.replace(year=2030))
    assert found(older, newer, later, seen=(("gpt-4o", "openai", 0),)) == []


@pytest.mark.parametrize(("given", "spoken"), [("5.01", "10"), ("2.5", "4.99"), ("0", "0"), ("0.15", "10")])
def test_a_price_that_is_far_from_the_catalogues_is_found(given: str, spoken: str) -> None:
    seen = (("gpt-4o", "openai", 0),)
    assert found(own("gpt-4o", given, spoken), seen=seen) == [("differs", "gpt-4o")]
    assert found(own("gpt-4o", "5", "5"), seen=seen) == [], "twice as much, or half, is not far"


def test_a_price_of_a_model_that_was_never_used_is_found() -> None:
    assert found(own("gtp-4o", provider="openai"), seen=(("gpt-4o", "openai", 0),)) == [("unused", "gtp-4o")]
    assert found(own("Old".lower()), ever=("Old",)) == []
    assert found(own("acme/m"), ever=("m",)) == []


def test_the_shape_of_the_json_of_this_file_is_that_of_the_docs() -> None:
    assert {name for entry in json.loads(JSON) for name in entry} <= set(price_file.PARTS)
