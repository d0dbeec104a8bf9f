"""Windows of spending over HTTP: set, seen and taken away by operators, and by nobody else."""

from __future__ import annotations

import dataclasses
from typing import Any
from uuid import uuid4

import pytest

from flowledger.ledger.budgets import Window
from tests.api.answers import field_of, refused, told
from tests.ledger.law import ALICE, BOB, ran, reserve, running, used

AT = "/api/v1/budgets"


def set_(client: Any, **given: Any) -> dict[str, Any]:
    return dict(told(client.put(AT, json={"period": "day", **given})))


def test_an_operator_sets_sees_changes_and_takes_away_a_window(as_operator, flow):
    made = set_(as_operator, scope="flow", flow="FLOW", usd="0.50", tokens=1000, on_reach="warn")
    assert (made["scope"], made["flow_key"], made["period"], made["on_reach"]) == ("flow", "FLOW", "day", "warn")
    assert (made["usd"], made["left_usd"], made["tokens"], made["left_tokens"]) == ("0.5", "0.5", 1000, 1000)
    assert told(as_operator.get(AT))["budgets"] == [made]
    changed = set_(as_operator, scope="flow", flow="FLOW", usd="2")
    assert (changed["id"], changed["usd"], changed["tokens"], changed["on_reach"]) == (made["id"], "2", None, "stop")
    assert len(told(as_operator.get(AT))["budgets"]) == 1
    assert told(as_operator.delete(f"{AT}/{made['id']}")) == {"id": made["id"], "removed": True}
    assert told(as_operator.get(AT))["budgets"] == []
    assert refused(as_operator.delete(f"{AT}/{made['id']}"), 404)["code"] == "budget_not_found"


def test_a_window_tells_what_is_spent_set_aside_and_left(as_operator, alice, bob, worker, flow):
    of_flow = set_(as_operator, scope="flow", flow="FLOW", usd="1", tokens=1000)
    of_each = set_(as_operator, scope="user", usd="1", period="month")
    of_bob = set_(as_operator, scope="user", user=str(BOB), tokens=100)
    of_all = set_(as_operator, scope="everything", usd="10")
    ran(alice, worker, flow, used(1, cost_usd="0.25"))
    reserve(worker, running(bob, worker, flow), 1, "0.125", 50)
    now = {window["id"]: window for window in told(as_operator.get(AT))["budgets"]}
    told_ = now[of_flow["id"]]
    assert (told_["spent_usd"], told_["reserved_usd"], told_["left_usd"]) == ("0.25", "0.125", "0.625")
    assert (told_["spent_tokens"], told_["reserved_tokens"], told_["left_tokens"]) == (110, 50, 840)
    assert (now[of_each["id"]]["user_id"], now[of_each["id"]]["told_of"]) == (None, str(ALICE))
    assert (now[of_bob["id"]]["left_usd"], now[of_bob["id"]]["left_tokens"]) == (None, 50)
    assert now[of_all["id"]]["left_usd"] == "9.625"


def test_a_window_that_is_used_up_lets_nobody_start(as_operator, as_alice, flow):
    set_(as_operator, scope="flow", flow="FLOW", usd="0")
    problem = refused(as_alice.post("/api/v1/executions", json={"flow": "FLOW"}), 429)
    assert problem["code"] == "budget_used_up"


def test_users_neither_see_nor_set_nor_take_away_what_everybody_may_spend(as_alice, as_operator, flow):
    window = set_(as_operator, scope="user", user=str(ALICE), usd="1")
    for answer in (
        as_alice.get(AT),
        as_alice.put(AT, json={"scope": "user", "user": str(ALICE), "period": "day", "usd": "1000"}),
        as_alice.delete(f"{AT}/{window['id']}"),
        as_alice.delete(f"{AT}/{window['id'] + 1}"),
    ):
        assert refused(answer, 403)["code"] == "permission_refused"
    assert told(as_operator.get(AT))["budgets"] == [window]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "scope"),
        ({"scope": "galaxy"}, "scope"),
        ({"scope": "flow", "usd": "1"}, "flow"),
        ({"scope": "user", "usd": "1", "flow": "FLOW"}, "flow"),
        ({"scope": "everything", "usd": "1", "user": str(BOB)}, "user"),
        ({"scope": "user", "usd": "1", "user": "bob"}, "user"),
        ({"scope": "everything"}, "budget"),
        ({"scope": "everything", "usd": 0.5}, "usd"),
        ({"scope": "everything", "usd": "-1"}, "usd"),
        ({"scope": "everything", "usd": "NaN"}, "usd"),
        ({"scope": "everything", "usd": "1e30"}, "usd"),
        ({"scope": "everything", "usd": "9" * 13}, "usd"),
        ({"scope": "everything", "tokens": 10**30}, "tokens"),
        ({"scope": "everything", "tokens": "many"}, "tokens"),
        ({"scope": "everything", "tokens": True}, "tokens"),
        ({"scope": "everything", "usd": "1", "period": "week"}, "period"),
        ({"scope": "everything", "usd": "1", "on_reach": "explode"}, "on_reach"),
        ({"scope": "everything", "usd": "1", "colour": "red"}, "colour"),
        ({"scope": "flow", "usd": "1", "flow": "a\x00"}, "flow"),
    ],
)
def test_a_window_that_makes_no_sense_is_refused_by_its_field(as_operator, flow, given, field):
    problem = refused(as_operator.put(AT, json={"period": "day", **given}), 422)
    assert field_of(problem) == field
    assert told(as_operator.get(AT))["budgets"] == []


def test_what_is_not_there_is_told_and_an_id_that_cannot_be_is_refused(as_operator, flow):
    body = {"scope": "flow", "flow": "NONE", "period": "day", "usd": "1"}
    assert refused(as_operator.put(AT, json=body), 404)["code"] == "flow_not_found"
    for id_ in ("0", str(10**30), "x", str(uuid4())):
        assert field_of(refused(as_operator.delete(f"{AT}/{id_}"), 422)) == "id"
    assert field_of(refused(as_operator.get(AT, params={"scope": "flow"}), 422)) == "scope"


def test_a_window_has_the_keys_that_the_ledger_and_the_command_line_have(as_operator, database):
    named = {field.name for field in dataclasses.fields(Window)}
    assert set(set_(as_operator, scope="everything", tokens=0)) == named | {"left_usd", "left_tokens"}
