"""Costs over HTTP: along each dimension, of whoever asks, and when they are a lower bound."""

from __future__ import annotations

import dataclasses
from typing import Any
from uuid import UUID

import pytest

from flowledger.domain.dimension import Dimension
from flowledger.domain.usage import Usage
from flowledger.ledger.spending import Spent
from tests.api.answers import field_of, refused, told
from tests.ledger.law import ALICE, BOB, UNREPORTED, ran, used

AT = "/api/v1/costs"
MEETING = UUID("bea4d000-0000-4000-8000-000000000009")


@pytest.fixture
def spent(alice, bob, worker, flow) -> None:
    """Alice's: in a meeting, and of another flow. Bob's: a call without a price, and one that nobody reported."""
    other = worker.execute("select id from flowledger.remember_flow('OTHER', 'Other', '', '{}', '')").fetchone()["id"]
    ran(
        alice,
        worker,
        flow,
        used(1),
        used(2, model="claude", cost_usd="0.00000001"),
        columns={"board_meeting_id": MEETING},
    )
    ran(alice, worker, other, used(1, cost_usd="5"), status="failed", error_type="ValueError")
    ran(bob, worker, flow, used(1, price=None, cost_usd=None), used(2, price=None, **UNREPORTED))


def rows(answer: Any) -> dict[str | None, str]:
    """Key -> USD."""
    return {row["key"]: row["cost_usd"] for row in told(answer)["rows"]}


def test_a_user_is_told_what_they_spent_and_an_operator_what_everybody_did(as_alice, as_bob, as_operator, spent):
    assert rows(as_alice.get(AT)) == {"OTHER": "5", "FLOW": "0.01000001"}
    assert rows(as_bob.get(AT)) == {"FLOW": "0"}
    assert rows(as_operator.get(AT, params={"by": "user"})) == {str(ALICE): "5.01000001", str(BOB): "0"}
    assert rows(as_alice.get(AT, params={"by": "user"})) == {str(ALICE): "5.01000001"}
    totals = {client: told(client.get(AT))["total"] for client in (as_alice, as_bob, as_operator)}
    assert totals[as_operator]["calls"] == totals[as_alice]["calls"] + totals[as_bob]["calls"] == 5
    assert (totals[as_operator]["executions"], totals[as_operator]["failed"]) == (3, 1)


@pytest.mark.parametrize("dimension", Dimension)
def test_every_dimension_holds_the_whole(as_alice, as_operator, spent, dimension):
    for client in (as_alice, as_operator):
        costs = told(client.get(AT, params={"by": dimension}))
        assert (costs["by"], costs["total"]["cost_usd"]) == (dimension, "5.01000001")
        assert costs["rows"]
    meetings = rows(as_alice.get(AT, params={"by": "meeting"}))
    assert meetings == {None: "5", str(MEETING): "0.01000001"}


def test_a_sum_that_lacks_something_says_that_it_is_a_lower_bound(as_alice, as_bob, as_operator, spent):
    assert told(as_alice.get(AT))["total"]["is_lower_bound"] is False
    for client in (as_bob, as_operator):
        total = told(client.get(AT))["total"]
        assert (total["is_lower_bound"], total["unknown_calls"], total["unpriced_calls"]) == (True, 1, 1)
    bounds = {row["key"]: row["is_lower_bound"] for row in told(as_operator.get(AT))["rows"]}
    assert bounds == {"OTHER": False, "FLOW": True}


@pytest.mark.parametrize("by", Dimension)
def test_costs_are_narrowed_to_a_flow_a_meeting_or_both(as_alice, as_operator, spent, by):
    for client in (as_alice, as_operator):

        def usd(client: Any = client, **given: Any) -> str:
            return str(told(client.get(AT, params={"by": by, **given}))["total"]["cost_usd"])

        assert usd(flow="OTHER") == "5"
        assert usd(meeting=str(MEETING)) == "0.01000001"
        assert usd(flow="OTHER", meeting=str(MEETING)) == "0"
        assert usd(flow="FLOW", meeting=str(MEETING)) == "0.01000001"


def test_days_are_whole_and_bound_what_is_told(as_alice, alice, worker, flow):
    ran(alice, worker, flow, *(used(day, started_at=f"2026-02-0{day}T12:00:00Z") for day in range(1, 6)))
    costs = told(as_alice.get(AT, params={"by": "day", "since": "2026-02-02T23:00:00Z", "until": "2026-02-04"}))
    assert (costs["first_day"], costs["last_day"]) == ("2026-02-02", "2026-02-03")
    assert [row["key"] for row in costs["rows"]] == ["2026-02-02", "2026-02-03"]
    assert told(as_alice.get(AT))["last_day"] is None


def test_a_row_has_the_keys_that_the_ledger_and_the_command_line_have(as_alice, spent):
    named = {field.name for field in dataclasses.fields(Spent)} - {"day", "usage"}
    classes = {field.name for field in dataclasses.fields(Usage)}
    costs = told(as_alice.get(AT))
    assert set(costs["rows"][0]) == named | classes | {"is_lower_bound"}
    assert set(costs["total"]) == set(costs["rows"][0]) - {"key"}
    assert set(costs) == {"by", "flow", "meeting", "first_day", "last_day", "rows", "total"}


def test_nothing_spent_is_an_answer_too(as_alice, database):
    costs = told(as_alice.get(AT))
    assert (costs["rows"], costs["total"]["cost_usd"], costs["total"]["is_lower_bound"]) == ([], "0", False)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"by": "colour"}, "by"),
        ({"since": "yesterday"}, "since"),
        ({"since": "9" * 65}, "since"),
        ({"until": "99999999999d"}, "until"),
        ({"since": "1d", "until": "2d"}, "until"),
        ({"meeting": "monday"}, "meeting"),
        ({"flow": "a\x00"}, "flow"),
        ({"user": str(BOB)}, "user"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused_by_its_name(as_alice, given, field):
    assert field_of(refused(as_alice.get(AT, params=given), 422)) == field


def test_the_ends_of_the_calendar_are_days_and_a_flow_that_is_not_there_is_told(as_alice, as_operator, spent):
    for client in (as_alice, as_operator):
        for by in Dimension:
            ends = {"since": "0001-01-01T00:00+14:00", "until": "9999-12-31T23:00-12:00", "by": by}
            assert told(client.get(AT, params=ends))["rows"]
        assert refused(client.get(AT, params={"flow": "NONE"}), 404)["code"] == "flow_not_found"
