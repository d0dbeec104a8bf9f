"""Flows, and what they cost and where they failed, through both clients."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb

from flowledger.domain.dimension import Dimension
from flowledger.errors import FlowNotFound, InvalidInput, PermissionRefused
from tests.ledger.law import ALICE, BOB, append_usage, finish, running, used

SCHEMA = {"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"]}
GRAPH = {
    "nodes": {"begin": {}, "pack": {"trigger_methods": ["begin"]}},
    "edges": [{"source": "begin", "target": "pack"}],
    "start_methods": ["begin"],
    "router_methods": [],
}


@pytest.fixture
def shop(worker, flow) -> UUID:
    """A flow whose code is known, beside FLOW."""
    definition = Jsonb({"entry_point": "shop.main:Shop", "fingerprint": "1", "input_schema": SCHEMA, **GRAPH})
    return worker.execute(
        "select id from flowledger.remember_flow('SHOP', 'The shop', 'Sells.', %s, 'class Shop: ...')", [definition]
    ).fetchone()["id"]


@pytest.fixture
def operator(connected):
    return connected(BOB, role="service_role")


def test_flows_are_listed_by_key_and_shown_whole(client, shop):
    assert [flow.flow_key for flow in client.flows.list(page_size=1)] == ["FLOW", "SHOP"]
    assert [flow.flow_key for flow in client.flows.list(search="sells")] == ["SHOP"]
    page = client.flows.page(limit=1)
    assert client.flows.page(after=page.next).flows[0].id == shop
    flow = client.flows.get("SHOP")
    assert (flow.id, flow.flow_name, flow.version, flow.entry_point) == (shop, "The shop", 1, "shop.main:Shop")
    assert (flow.graph, flow.input_schema, flow.now) == (GRAPH, SCHEMA, None)


def test_what_a_flow_takes_and_how_it_hangs_together(client, shop):
    assert client.flows.schema("SHOP") == SCHEMA
    assert client.flows.inputs("SHOP") == ("topic",)
    assert (client.flows.schema("FLOW"), client.flows.inputs("FLOW")) == ({}, ())
    assert client.flows.graph("SHOP") == GRAPH
    assert "begin --> pack" in client.flows.drawn("SHOP", "mermaid")
    assert "pack" in client.flows.drawn("SHOP")
    with pytest.raises(FlowNotFound) as missing:
        client.flows.get("SHOPS")
    assert missing.value.suggestions == ("SHOP",)


def test_operators_pause_and_resume(client, operator, shop):
    assert [operator.flows.pause("SHOP", "inventory"), operator.flows.pause("SHOP")] == [True, False]
    now = operator.flows.get("SHOP").now
    assert (now.paused_by, now.paused_reason, now.waiting) == (str(BOB), "inventory", 0)
    assert [operator.flows.resume("SHOP"), operator.flows.resume("SHOP")] == [True, False]
    with pytest.raises(PermissionRefused):
        client.flows.pause("SHOP")


def test_costs_are_sums_of_what_the_caller_spent(client, connected, alice, worker, shop):
    for _ in range(2):
        held = running(alice, worker, shop)
        append_usage(worker, held, used())
        finish(worker, held["execution_id"], held["fence"])
    for by in Dimension:
        costs = client.costs(by)
        assert (costs.by, costs.total.cost_usd, costs.total.calls) == (by, Decimal("0.02"), 2)
        assert sum(row.cost_usd for row in costs.rows) == Decimal("0.02")
    assert client.costs("flow", flow="SHOP").rows[0].key == "SHOP"
    assert client.costs("user").rows[0].key == str(ALICE)
    today = datetime.now(UTC).date()
    days = client.costs("day", since=today, until=today + timedelta(days=1))
    assert (days.first_day, days.last_day, len(days.rows)) == (today, today, 1)
    assert connected(BOB).costs().rows == ()
    with pytest.raises(InvalidInput, match="by"):
        client.costs("colour")


def test_errors_are_grouped(client, connected, alice, worker, shop):
    for _ in range(2):
        held = running(alice, worker, shop)
        finish(worker, held["execution_id"], held["fence"], "failed", error_type="shop.NoStock")
    told = client.errors()
    (group,) = told.errors
    assert told.is_complete
    assert (group.count, group.error_type, group.example) == (2, "shop.NoStock", held["execution_id"])
    assert client.errors(flow="FLOW").errors == ()
    assert client.errors(since=datetime.now(UTC) + timedelta(hours=1)).errors == ()
    assert connected(BOB).errors().errors == ()
