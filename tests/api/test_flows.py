"""Flows over HTTP: who sees which, what each takes, how it hangs together, and the pause."""

from __future__ import annotations

import json
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from tests.api.answers import field_of, refused, told
from tests.ledger.law import ALICE, born, claim

AT = "/api/v1/flows"
GRAPH: dict[str, Any] = {
    "nodes": {"first": {}, "judge": {"is_router": True}, "good": {}},
    "edges": [
        {"source": "first", "target": "judge"},
        {"source": "judge", "target": "good", "router_event": "fine"},
    ],
    "start_methods": ["first"],
    "router_methods": ["judge"],
}
SCHEMA = {"type": "object", "properties": {"topic": {"type": "string"}}}


@pytest.fixture
def triage(worker) -> Any:
    definition = {"entry_point": "orders:Triage", "fingerprint": "f1", "input_schema": SCHEMA, **GRAPH}
    return worker.execute(
        "select id from flowledger.remember_flow('TRIAGE', 'Order triage', 'Sorts complaints by urgency', %s, 'code')",
        [Jsonb(definition)],
    ).fetchone()["id"]


@pytest.fixture
def draft(alice) -> str:
    alice.execute(
        "insert into crewai_flows (flow_key, flow_name, flow_definition, created_by) values ('DRAFT', 'Mine', %s, %s)",
        [Jsonb(["no graph"]), ALICE],
    )
    return "DRAFT"


def keys(answer: Any) -> list[str]:
    return [one["flow_key"] for one in told(answer)["flows"]]


# -- List and show ----------------------------------------------------------------------------------------------------


def test_everybody_sees_active_flows_and_their_own_drafts_and_nobody_elses(as_alice, as_bob, as_operator, flow, draft):
    for client in (as_alice, as_bob, as_operator):
        assert keys(client.get(AT)) == ["FLOW"]
    assert keys(as_alice.get(AT, params={"status": "draft"})) == ["DRAFT"]
    assert keys(as_alice.get(AT, params={"status": "active,draft"})) == ["DRAFT", "FLOW"]
    assert keys(as_bob.get(AT, params={"status": "active,draft"})) == ["FLOW"]
    assert told(as_alice.get(f"{AT}/DRAFT"))["status"] == "draft"
    # As one that does not exist, but for the name that was asked for.
    problem, of_none = (refused(as_bob.get(f"{AT}/{key}"), 404) for key in ("DRAFT", "DRIFT"))
    assert json.loads(json.dumps(problem).replace("DRAFT", "DRIFT")) == of_none


def test_flows_are_found_by_words_and_by_a_part_of_their_key(as_alice, flow, triage):
    assert keys(as_alice.get(AT, params={"search": "complaint"})) == ["TRIAGE"]
    assert keys(as_alice.get(AT, params={"search": "urgent orders"})) == []
    assert keys(as_alice.get(AT, params={"search": "triag"})) == ["TRIAGE"]
    assert keys(as_alice.get(AT, params={"search": "%"})) == []
    assert keys(as_alice.get(AT, params={"search": "' & | ! :* \\"})) == []


def test_pages_hold_every_flow_once(as_alice, worker):
    for at in range(7):
        worker.execute("select flowledger.remember_flow(%s, 'Flow', '', '{}', '')", [f"F{at}"])
    found, after = [], None
    while True:
        page = told(as_alice.get(AT, params={"limit": 3, **({"after": after} if after else {})}))
        found += [one["flow_key"] for one in page["flows"]]
        if (after := page["next"]) is None:
            break
    assert found == [f"F{at}" for at in range(7)]


def test_a_flow_tells_what_it_takes_and_how_it_hangs_together(as_alice, triage):
    answer = as_alice.get(f"{AT}/TRIAGE")
    shown = told(answer)
    assert (shown["id"], shown["entry_point"], shown["fingerprint"]) == (str(triage), "orders:Triage", "f1")
    assert (shown["input_schema"], shown["graph"], shown["python_code"]) == (SCHEMA, GRAPH, "code")
    assert told(as_alice.get(f"{AT}/TRIAGE/schema")) == SCHEMA
    assert told(as_alice.get(f"{AT}/TRIAGE/graph")) == GRAPH
    again = as_alice.get(f"{AT}/TRIAGE", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304


def test_a_graph_is_drawn_for_eyes_and_for_pages(as_alice, triage):
    outline = as_alice.get(f"{AT}/TRIAGE/graph", params={"format": "text"})
    assert outline.headers["content-type"] == "text/plain; charset=utf-8"
    assert "fine → good" in outline.text
    assert "judge -->|fine| good" in as_alice.get(f"{AT}/TRIAGE/graph", params={"format": "mermaid"}).text


def test_a_definition_that_says_nothing_is_told_as_nothing(as_alice, owner, flow, draft):
    # More than Python's floats hold.
    owner.execute(
        "update crewai_flows set flow_definition = jsonb_build_object('nodes', 1e400 + 0.5, 'input_schema', 3)"
    )
    for key in ("FLOW", draft):
        assert told(as_alice.get(f"{AT}/{key}"))["graph"] == {"nodes": None}
        assert told(as_alice.get(f"{AT}/{key}/graph")) == {"nodes": None}
        assert told(as_alice.get(f"{AT}/{key}/schema")) == {}
        for format_ in ("text", "mermaid"):
            assert as_alice.get(f"{AT}/{key}/graph", params={"format": format_}).status_code == 200
    owner.execute("update crewai_flows set flow_definition = '[1]', status = null, version = null, tags = null")
    assert told(as_alice.get(f"{AT}/DRAFT"))["graph"] == {}
    assert told(as_alice.get(f"{AT}/DRAFT"))["tags"] is None


def test_operators_are_told_what_a_flow_does_now_and_users_are_not(as_alice, as_operator, alice, worker, flow):
    for _ in range(3):
        born(alice, flow)
    claim(worker, flow, slots=1)
    told(as_operator.put(f"{AT}/FLOW/pause", json={"reason": "bad prompts"}))
    (listed,) = told(as_operator.get(AT))["flows"]
    assert listed["now"] == told(as_operator.get(f"{AT}/FLOW"))["now"]
    assert (listed["now"]["waiting"], listed["now"]["running"]) == (2, 1)
    assert (listed["now"]["paused_reason"], listed["now"]["retries"]) == ("bad prompts", 0)
    (listed,) = told(as_alice.get(AT))["flows"]
    assert listed["now"] is None
    assert told(as_alice.get(f"{AT}/FLOW"))["now"] is None


@pytest.mark.parametrize(
    "given",
    [
        {"limit": 0},
        {"limit": 10**30},
        {"limit": "all"},
        {"status": "done"},
        {"status": "active,"},
        {"colour": "red"},
        {"search": ""},
        {"search": "a\x00"},
        {"after": "k" * 101},
    ],
)
def test_a_parameter_that_does_not_fit_is_refused_by_its_name(as_alice, given):
    assert field_of(refused(as_alice.get(AT, params=given), 422)) == next(iter(given))


def test_a_key_or_format_that_cannot_be_is_refused_by_its_name(as_alice, flow):
    assert field_of(refused(as_alice.get(f"{AT}/a%00b"), 422)) == "key"
    assert field_of(refused(as_alice.get(f"{AT}/{'k' * 101}"), 422)) == "key"
    assert field_of(refused(as_alice.get(f"{AT}/FLOW/graph", params={"format": "svg"}), 422)) == "format"
    assert field_of(refused(as_alice.get(f"{AT}/FLOW", params={"version": 1}), 422)) == "version"
    for what in ("", "/graph", "/schema"):
        assert refused(as_alice.get(f"{AT}/FLOWS{what}"), 404)["remedy"] == "Did you mean FLOW?"


# -- Pause ------------------------------------------------------------------------------------------------------------


def test_an_operator_pauses_and_resumes_a_flow_however_often(as_operator, alice, worker, flow):
    born(alice, flow)
    assert told(as_operator.put(f"{AT}/FLOW/pause", json={"reason": "bad prompts"})) == {
        "flow_key": "FLOW",
        "changed": True,
    }
    assert told(as_operator.put(f"{AT}/FLOW/pause"))["changed"] is False
    paused = told(as_operator.get(f"{AT}/FLOW/pause"))
    assert paused["paused_at"].endswith("Z")
    assert (paused["flow_key"], paused["paused_reason"]) == ("FLOW", "bad prompts")
    assert claim(worker, flow) == []
    assert told(as_operator.delete(f"{AT}/FLOW/pause"))["changed"] is True
    assert told(as_operator.delete(f"{AT}/FLOW/pause"))["changed"] is False
    assert told(as_operator.get(f"{AT}/FLOW/pause"))["paused_at"] is None
    assert len(claim(worker, flow)) == 1


def test_users_neither_pause_nor_resume_nor_see_a_pause(as_alice, as_operator, alice, worker, flow):
    told(as_operator.put(f"{AT}/FLOW/pause"))
    for method in ("GET", "PUT", "DELETE"):
        # Nor are they told whether there is such a flow.
        for key in ("FLOW", "NONE"):
            assert refused(as_alice.request(method, f"{AT}/{key}/pause"), 403)["code"] == "permission_refused"
    born(alice, flow)
    assert claim(worker, flow) == []


def test_a_pause_that_cannot_be_is_refused_by_its_field(as_operator, flow):
    assert refused(as_operator.put(f"{AT}/NONE/pause"), 404)["code"] == "flow_not_found"
    assert refused(as_operator.get(f"{AT}/NONE/pause"), 404)["code"] == "flow_not_found"
    for body in ({"reason": "r" * 1001}, {"reason": "a\x00"}, {"reason": 3}):
        assert field_of(refused(as_operator.put(f"{AT}/FLOW/pause", json=body), 422)) == "reason"
    assert field_of(refused(as_operator.put(f"{AT}/FLOW/pause", json={"until": "noon"}), 422)) == "until"
