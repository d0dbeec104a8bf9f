"""Failures in groups over HTTP: of whoever asks, with what they wasted."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from flowledger.ledger.failures import Failures
from tests.api.answers import field_of, refused, told
from tests.ledger.law import ran, used

AT = "/api/v1/errors"


@pytest.fixture
def failed(alice, bob, worker, flow) -> None:
    """Twice the same of Alice's, once of Bob's, who also ran out of time."""
    other = worker.execute("select id from flowledger.remember_flow('OTHER', 'Other', '', '{}', '')").fetchone()["id"]
    at = {"error_fingerprint": "same", "error_place": "shop.py:order", "flow_version": 1}
    for user, where, call in (
        (alice, flow, used(1)),
        (alice, other, used(1, price=None, cost_usd=None)),
        (bob, flow, used(1)),
    ):
        ran(user, worker, where, call, status="failed", error_type="NoStock", metadata=at, tokens=110)
    ran(bob, worker, flow, status="timeout", error_type="Timeout")
    ran(bob, worker, flow, used(1))


def groups(client: Any, **given: Any) -> list[dict[str, Any]]:
    answer = told(client.get(AT, params=given))
    assert answer["is_complete"] is True
    return list(answer["errors"])


def test_a_user_is_told_of_their_own_failures_and_an_operator_of_everybodys(as_alice, as_bob, as_operator, failed):
    (hers,) = groups(as_alice)
    assert (hers["fingerprint"], hers["count"], hers["flows"]) == ("same", 2, {"FLOW": [1], "OTHER": [1]})
    assert (hers["error_type"], hers["place"]) == ("NoStock", "shop.py:order")
    assert (hers["tokens"], hers["cost_usd"], hers["unpriced"]) == (220, "0.01", 1)
    assert hers["first_seen"] < hers["last_seen"]
    assert told(as_alice.get(f"/api/v1/executions/{hers['example']}"))["status"] == "failed"
    assert [(one["error_type"], one["count"]) for one in groups(as_bob)] == [("Timeout", 1), ("NoStock", 1)]
    assert [(one["error_type"], one["count"]) for one in groups(as_operator)] == [("Timeout", 1), ("NoStock", 3)]
    (his_latest, his_first) = groups(as_bob)
    refused(as_alice.get(f"/api/v1/executions/{his_first['example']}"), 404)
    assert his_latest["cost_usd"] is None


def test_failures_are_narrowed_to_a_flow_and_a_span(as_alice, as_bob, as_operator, owner, failed):
    (hers,) = groups(as_alice, flow="OTHER")
    assert (hers["count"], hers["flows"]) == (1, {"OTHER": [1]})
    assert groups(as_bob, flow="OTHER") == []
    owner.execute(
        "update flowledger.failures set failed_at = failed_at - interval '40 days' where error_type = 'NoStock'"
    )
    for client, count in ((as_alice, 2), (as_operator, 3)):
        assert [one for one in groups(client) if one["error_type"] == "NoStock"] == []
        assert [one["count"] for one in groups(client, since="60d", until="30d")] == [count]


def test_more_groups_than_asked_for_are_told_of(as_bob, failed):
    answer = told(as_bob.get(AT, params={"limit": 1}))
    assert (len(answer["errors"]), answer["is_complete"]) == (1, False)


def test_a_group_has_the_keys_that_the_ledger_and_the_command_line_have(as_alice, failed):
    assert set(groups(as_alice)[0]) == {field.name for field in dataclasses.fields(Failures)}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"since": "yesterday"}, "since"),
        ({"until": "99999999999d"}, "until"),
        ({"since": "1d", "until": "2d"}, "until"),
        ({"limit": 0}, "limit"),
        ({"limit": 10**20}, "limit"),
        ({"flow": "a\x00"}, "flow"),
        ({"fingerprint": "same"}, "fingerprint"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused_by_its_name(as_alice, given, field):
    assert field_of(refused(as_alice.get(AT, params=given), 422)) == field


def test_a_flow_that_is_not_there_is_told_and_so_are_the_ends_of_the_calendar(as_alice, failed):
    assert refused(as_alice.get(AT, params={"flow": "NONE"}), 404)["code"] == "flow_not_found"
    assert groups(as_alice, since="0001-01-01T00:00+14:00", until="9999-12-31T23:00-12:00")
