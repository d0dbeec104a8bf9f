"""What models cost, over HTTP; and the team's own prices, which operators alone set and take away."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from flowledger.prices import Listed
from tests.api.answers import field_of, refused, told
from tests.ledger.law import ran, used

AT = "/api/v1/prices"
GPT = {"model": "gpt-4o", "input": "3", "output": "12.50"}


def listed(client: Any, **given: Any) -> list[dict[str, Any]]:
    return list(told(client.get(AT, params=given))["prices"])


def test_an_operator_sets_changes_and_takes_away_a_price_and_everybody_sees_it(as_operator, as_alice, database):
    assert told(as_operator.put(AT, json=GPT)) == {"given": 1, "changed": 1}
    assert told(as_operator.put(AT, json=GPT))["changed"] == 0
    for client in (as_operator, as_alice):
        (own,) = listed(client)
        assert (own["model"], own["provider"], own["applies"], own["calls"]) == ("gpt-4o", None, True, 0)
        assert own["price"].pop("version").endswith("Z")
        assert own["price"] == {"source": "team", "input": "3", "output": "12.5", "call": "0"}
    told(as_operator.put(AT, json={**GPT, "cached_input": "1.25", "since": "2026-11-01"}))
    assert {one["since"] for one in listed(as_alice)} == {None, "2026-11-01T00:00:00Z"}
    assert [one["applies"] for one in listed(as_alice, model="GPT-4o")] == [True, False]
    key = {"model": "gpt-4o", "since": "2026-11-01T01:00+01:00"}
    assert told(as_operator.delete(AT, params=key)) == {"removed": True}
    problem = refused(as_operator.delete(AT, params={**key, "provider": "azure"}), 404)
    assert (problem["code"], problem["remedy"]) == ("price_not_found", "There is one.")
    told(as_operator.delete(AT, params={"model": "gpt-4o"}))
    assert listed(as_operator) == []


def test_models_that_calls_were_made_of_are_told_to_those_who_made_them(
    as_alice, as_bob, as_operator, alice, worker, flow
):
    ran(
        alice,
        worker,
        flow,
        used(1, model="gpt-4o"),
        used(2, model="gpt-4o", price=None, cost_usd=None),
        used(3, model="ours", provider="ollama", price=None, cost_usd=None),
        used(4, model="old", started_at="2026-01-01T00:00:00Z"),
    )
    for client in (as_alice, as_operator):
        known, unknown = listed(client)
        assert (known["model"], known["calls"], known["unpriced_calls"]) == ("gpt-4o", 2, 1)
        assert known["price"]["source"] == "genai-prices"
        assert (unknown["model"], unknown["provider"], unknown["price"]) == ("ours", "ollama", None)
    assert listed(as_bob) == []
    assert [one["model"] for one in listed(as_alice, provider="ollama")] == ["ours"]
    assert len(listed(as_operator, since="2025-12-31")) == 3


def test_the_price_of_a_model_is_told_though_no_call_was_made_of_it(as_alice, database):
    for given in ({"model": "gpt-4o", "provider": "openai"}, {"model": "openai/gpt-4o"}):
        (one,) = listed(as_alice, **given)
        assert (one["price"]["source"], one["calls"]) == ("genai-prices", 0)
    (unknown,) = listed(as_alice, model="nobody-knows", provider="openai")
    assert unknown["price"] is None


def test_users_neither_set_nor_take_away_prices(as_alice, as_operator, database):
    told(as_operator.put(AT, json=GPT))
    for answer in (
        as_alice.put(AT, json={**GPT, "input": "0"}),
        as_alice.delete(AT, params={"model": "gpt-4o"}),
        as_alice.delete(AT, params={"model": "none"}),
    ):
        assert refused(answer, 403)["code"] == "permission_refused"
    assert listed(as_alice)[0]["price"]["input"] == "3"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"model": ""}, "model"),
        ({"model": "a\x00"}, "model"),
        ({"model": "m" * 201}, "model"),
        ({"provider": "\u0007"}, "provider"),
        ({"since": "yesterday"}, "since"),
        ({"input": "-1"}, "input"),
        ({"input": "NaN"}, "input"),
        ({"input": "1e30"}, "input"),
        ({"input": None}, "input"),
        ({"output": "9" * 41}, "output"),
        ({"output": 2.5}, "output"),
        ({"call": "free"}, "call"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_price_that_makes_no_sense_is_refused_by_its_field(as_operator, given, field):
    assert field_of(refused(as_operator.put(AT, json={**GPT, **given}), 422)) == field


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"since": "yesterday"}, "since"),
        ({"model": ""}, "model"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused_by_its_name(as_alice, given, field):
    assert field_of(refused(as_alice.get(AT, params=given), 422)) == field


def test_which_price_to_take_away_is_refused_by_the_name_of_what_is_wrong(as_operator, database):
    for given, field in (({}, "model"), ({"model": "\x07"}, "model"), ({"model": "m", "since": "noon"}, "since")):
        assert field_of(refused(as_operator.delete(AT, params=given), 422)) == field


def test_a_price_has_the_keys_that_the_command_line_has(as_operator, database):
    told(as_operator.put(AT, json=GPT))
    assert set(listed(as_operator)[0]) == {field.name for field in dataclasses.fields(Listed)}
