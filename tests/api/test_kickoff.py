"""One flow in the shape of CrewAI's hosted product, asked by a client that was written for that product."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from psycopg.types.json import Jsonb

from flowledger.domain.status import Status
from tests.api.answers import refused, told
from tests.api.conftest import CAROL
from tests.api.serving import signed
from tests.docs.pages import DOCS, blocks_of
from tests.ledger.law import ALICE, brought_to, claim, finish

AT = "/api/v1/crewai/RESEARCH"
GRAPH = {"nodes": {"plan": {}, "search": {}, "write": {}}, "edges": [], "start_methods": ["plan"]}
SCHEMA = {
    "type": "object",
    "properties": {"budget": {"type": "integer"}, "interests": {"type": "string"}},
    "required": ["interests"],
}


@dataclass(frozen=True)
class HostedClient:
    """A client as the hosted product's documentation tells to write one: it knows a URL, a token, and these calls."""

    base_url: str
    token: str

    def inputs(self) -> list[str]:
        answer = httpx.get(f"{self.base_url}/inputs", headers=self._headers, trust_env=False)
        answer.raise_for_status()
        return list(answer.json()["inputs"])

    def kickoff(self, inputs: dict[str, Any], meta: dict[str, Any] | None = None) -> str:
        body = {"inputs": inputs, "meta": meta or {}}
        answer = httpx.post(f"{self.base_url}/kickoff", json=body, headers=self._headers, trust_env=False)
        answer.raise_for_status()
        return str(answer.json()["kickoff_id"])

    def status(self, kickoff_id: str) -> dict[str, Any]:
        answer = httpx.get(f"{self.base_url}/status/{kickoff_id}", headers=self._headers, trust_env=False)
        answer.raise_for_status()
        return dict(answer.json())

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}


@pytest.fixture
def research(worker) -> UUID:
    return worker.execute(
        "select id from flowledger.remember_flow('RESEARCH', 'Research', '', %s, '')",
        [Jsonb({"input_schema": SCHEMA, "fingerprint": "1", **GRAPH})],
    ).fetchone()["id"]


@pytest.fixture
def hosted(server, database, research) -> HostedClient:
    return HostedClient(f"{server.url}{AT}", signed(ALICE))


def happened(worker: Any, held: Any, *events: tuple[int, str, str, int | None, dict[str, Any]]) -> None:
    """Appends events: number, kind, name, the number of the beginning that an end belongs to, fields."""
    for number, kind, name, began, fields in events:
        worker.execute(
            "select flowledger.append_events(array[%s]::uuid[], array[%s]::bigint[], array[%s]::integer[], "
            "array[null]::integer[], array[%s]::integer[], array[clock_timestamp()], array[%s], array[%s], array[%s])",
            [held["execution_id"], held["fence"], number, began, kind, name, Jsonb(fields)],
        )


# -- A client's whole way ---------------------------------------------------------------------------------------------


def test_a_client_of_the_hosted_product_runs_a_flow_from_its_inputs_to_its_result(hosted, as_alice, worker, research):
    assert hosted.inputs() == ["budget", "interests"]
    kickoff_id = hosted.kickoff({"budget": 1000, "interests": "museums"}, {"ticket": "T-1"})
    recorded = told(as_alice.get(f"/api/v1/executions/{kickoff_id}"))
    assert recorded["input_state"] == {"budget": 1000, "interests": "museums"}
    assert recorded["metadata"] == {"ticket": "T-1"}
    progress = {"completed_tasks": 0, "total_tasks": 3}
    waits = {"status": "running", "execution_status": "pending", "current_task": None, "progress": progress}
    assert hosted.status(kickoff_id) == waits

    held = claim(worker, research)[0]
    happened(
        worker,
        held,
        (1, "flow_started", "Research", None, {}),
        (2, "method_started", "plan", None, {}),
        (3, "method_finished", "plan", 2, {"duration_ms": 100}),
        (4, "method_started", "search", None, {}),
        (5, "task_started", "find museums", None, {}),
    )
    runs = hosted.status(kickoff_id)
    assert (runs["status"], runs["execution_status"]) == ("running", "running")
    assert (runs["current_task"], runs["progress"]) == ("find museums", {"completed_tasks": 1, "total_tasks": 3})

    happened(
        worker,
        held,
        (6, "task_finished", "find museums", 5, {"output": "Muse…", "duration_ms": 2500, "agent_role": "Guide"}),
        (7, "method_finished", "search", 4, {"result": "Muse…"}),
    )
    result = {"raw": "Go.", "tasks_output": [{"name": "find museums", "raw": "Museums, uncut"}]}
    finish(worker, held["execution_id"], held["fence"], output={"state": {}, "result": result}, began=0)
    ended = hosted.status(kickoff_id)
    assert ended.pop("execution_time") >= 0
    task = {"task_id": "find museums", "output": "Museums, uncut", "agent": "Guide", "execution_time": 2.5}
    assert ended == {
        "status": "completed",
        "execution_status": "completed",
        "result": {"output": "Go.", "tasks": [task]},
    }


def test_the_client_in_the_docs_runs_as_it_is_written(server, database, worker, alice):
    flow = worker.execute("select id from flowledger.remember_flow('board_brief', 'Brief', '', '{}', '')").fetchone()
    page = DOCS / "how-to" / "move-from-crewai-hosted.md"
    (block,) = [block for block in blocks_of(page, page.read_text()) if block.kind == "python"]
    written = block.text.replace("http://127.0.0.1:8700", server.url).replace("fl_...", signed(ALICE))
    printed: list[Any] = []
    looked = threading.Event()

    def show(*values: Any) -> None:
        printed.extend(values)
        looked.set()

    client = threading.Thread(target=exec, args=(written, {"print": show}))
    client.start()
    # It prints the inputs first.
    assert looked.wait(20)
    while not (claimed := claim(worker, flow["id"])):
        assert client.is_alive()
    finish(worker, claimed[0]["execution_id"], claimed[0]["fence"], output={"state": {}, "result": "the brief"})
    client.join(20)
    assert printed[-1] == "the brief"


def test_the_status_is_also_where_older_clients_ask_for_it(as_alice, hosted):
    kickoff_id = hosted.kickoff({"interests": "museums"})
    assert told(as_alice.get(f"{AT}/{kickoff_id}/status")) == hosted.status(kickoff_id)


@pytest.mark.parametrize(
    ("result", "output"),
    [("text", "text"), (None, ""), ({"a": [1, "é"]}, '{"a":[1,"é"]}'), (3, "3"), ({"raw": 1}, '{"raw":1}')],
)
def test_an_output_is_text_and_methods_stand_in_for_tasks(as_alice, hosted, worker, research, result, output):
    kickoff_id = hosted.kickoff({"interests": "museums"})
    held = claim(worker, research)[0]
    happened(worker, held, (1, "method_started", "plan", None, {}), (2, "method_finished", "plan", 1, {"result": "x"}))
    finish(worker, held["execution_id"], held["fence"], output={"state": {}, "result": result})
    told_ = hosted.status(kickoff_id)["result"]
    assert told_["output"] == output
    assert [(task["task_id"], task["output"], task["agent"]) for task in told_["tasks"]] == [("plan", "x", None)]


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED, Status.TIMEOUT])
def test_every_other_end_is_an_error_that_tells_which(as_alice, owner, alice, research, status):
    execution = brought_to(status, owner, alice, research)
    owner.execute("alter table crewai_flow_executions disable trigger user")
    owner.execute("update crewai_flow_executions set error_type = 'ValueError', error_message = 'no budget'")
    owner.execute("alter table crewai_flow_executions enable trigger user")
    ended = told(as_alice.get(f"{AT}/status/{execution}"))
    assert (ended["status"], ended["execution_status"], ended["error"]) == ("error", status, "ValueError: no budget")


def test_the_same_kickoff_with_the_same_key_starts_one_execution(as_alice, research):
    body, key = {"inputs": {"interests": "museums"}}, {"Idempotency-Key": "trip-1"}
    first, second = (as_alice.post(f"{AT}/kickoff", json=body, headers=key) for _ in range(2))
    assert told(first) == told(second)
    assert second.headers["idempotency-replayed"] == "true"
    assert len(told(as_alice.get("/api/v1/executions"))["executions"]) == 1


def test_an_execution_is_stopped_before_and_while_it_runs_and_not_after(as_alice, hosted, worker, research):
    waiting = hosted.kickoff({"interests": "museums"})
    assert told(as_alice.post(f"{AT}/stop/{waiting}")) == {"kickoff_id": waiting, "status": "stopped"}
    assert hosted.status(waiting)["execution_status"] == "cancelled"
    running = hosted.kickoff({"interests": "museums"})
    held = claim(worker, research)[0]
    assert told(as_alice.post(f"{AT}/stop/{running}")) == {"kickoff_id": running, "status": "stopping"}
    finish(worker, held["execution_id"], held["fence"], "cancelled")
    assert refused(as_alice.post(f"{AT}/stop/{running}"), 409)["error"] == "Conflict"


# -- Who, and what is refused -----------------------------------------------------------------------------------------


def test_an_execution_is_its_users_and_its_flows(as_alice, as_bob, as_operator, hosted, alice, flow):
    hers = hosted.kickoff({"interests": "museums"})
    of_another_flow = told(as_alice.post("/api/v1/executions", json={"flow": "FLOW"}), 201)["id"]
    assert told(as_operator.get(f"{AT}/status/{hers}"))["status"] == "running"
    for client, id_ in ((as_bob, hers), (as_alice, of_another_flow), (as_alice, str(uuid4())), (as_alice, hers[:8])):
        for answer in (
            client.get(f"{AT}/status/{id_}"),
            client.get(f"{AT}/{id_}/status"),
            client.post(f"{AT}/stop/{id_}"),
            client.post(f"{AT}/resume", json=feedback(id_)),
        ):
            problem = refused(answer, 404)
            assert (problem["error"], problem["code"]) == ("Execution not found", "execution_not_found")
            assert id_ in problem["message"]
    assert told(as_alice.get(f"{AT}/status/{hers}"))["execution_status"] == "pending"


def test_an_operator_kicks_off_as_themselves_and_nobody_without_a_token(server, as_operator, research):
    kickoff_id = told(as_operator.post(f"{AT}/kickoff", json={"inputs": {"interests": "x"}}))["kickoff_id"]
    assert told(as_operator.get(f"/api/v1/executions/{kickoff_id}"))["executed_by"] == str(CAROL)
    with server.as_() as stranger:
        problem = refused(stranger.post(f"{AT}/kickoff", json={"inputs": {}}), 401)
    assert problem["error"] == "Unauthorized"
    assert problem["message"]


def test_a_flow_that_takes_anything_names_no_inputs(as_alice, flow, worker):
    assert told(as_alice.get("/api/v1/crewai/FLOW/inputs")) == {"inputs": []}
    for definition in ([1], {"input_schema": 3}, {"input_schema": {"properties": [1]}}):
        worker.execute("select flowledger.remember_flow('ODD', 'Odd', '', %s, '')", [Jsonb(definition)])
        assert told(as_alice.get("/api/v1/crewai/ODD/inputs")) == {"inputs": []}


@pytest.mark.parametrize("name", ["taskWebhookUrl", "stepWebhookUrl", "crewWebhookUrl", "webhooks"])
def test_webhooks_are_refused_with_what_to_use_instead(as_alice, research, name):
    body = {"inputs": {"interests": "x"}, name: {"url": "https://hooks.example"}}
    problem = refused(as_alice.post(f"{AT}/kickoff", json=body), 422)
    assert (problem["field"], problem["error"]) == (name, "Validation Error")
    assert "/api/v1/live" in problem["remedy"]
    assert problem["remedy"].rstrip(".") in problem["message"]
    # Nothing was started, and a client that sends none of them by name is served.
    assert told(as_alice.get("/api/v1/executions"))["executions"] == []
    told(as_alice.post(f"{AT}/kickoff", json={"inputs": {"interests": "x"}, name: None}))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "inputs"),
        ({"inputs": [1]}, "inputs"),
        ({"inputs": {}}, "interests"),
        ({"inputs": {"interests": 3}}, "interests"),
        ({"inputs": {"interests": "x", "colour": "red"}}, "colour"),
        ({"inputs": {"interests": "a\x00"}}, "interests"),
        ({"inputs": {"interests": "x"}, "meta": [1]}, "meta"),
        ({"inputs": {"interests": "x"}, "meta": {"note": "a\x00"}}, "meta.note"),
        ({"inputs": {"interests": "x", "budget": 10**4000}}, None),
        ({"inputs": {"interests": "x"}, "colour": "red"}, "colour"),
    ],
)
def test_a_kickoff_that_does_not_fit_is_refused_by_its_field_in_both_shapes(as_alice, research, body, field):
    problem = refused(as_alice.post(f"{AT}/kickoff", json=body), 422)
    faults = [fault["field"] for fault in problem.get("faults", ())]
    assert (faults or [problem.get("field")])[0] == field or field is None
    assert problem["error"] == "Validation Error"
    assert field is None or field in problem["message"]


def test_a_body_that_is_no_json_and_a_flow_that_is_not_there_are_told_in_both_shapes(as_alice, research):
    broken = as_alice.post(f"{AT}/kickoff", content=b'{"inputs": ', headers={"Content-Type": "application/json"})
    assert refused(broken, 422)["message"]
    no_text = as_alice.post(
        f"{AT}/kickoff", content=b'{"inputs": "\xff"}', headers={"Content-Type": "application/json"}
    )
    problem = refused(no_text, 400)
    assert (problem["error"], problem["message"]) == ("Invalid Request", "the body cannot be read. Send JSON in UTF-8")
    for answer in (
        as_alice.get("/api/v1/crewai/RESEARCHES/inputs"),
        as_alice.post("/api/v1/crewai/RESEARCHES/kickoff", json={"inputs": {}}),
    ):
        problem = refused(answer, 404)
        assert (problem["error"], problem["remedy"]) == ("Flow not found", "Did you mean RESEARCH?")


def feedback(execution: str) -> dict[str, Any]:
    return {"execution_id": execution, "task_id": "t", "human_feedback": "good", "is_approve": True}


def test_feedback_is_answered_as_for_an_execution_that_waits_for_none(as_alice, hosted):
    kickoff_id = hosted.kickoff({"interests": "museums"})
    problem = refused(as_alice.post(f"{AT}/resume", json=feedback(kickoff_id)), 400)
    assert (problem["error"], problem["code"]) == ("Invalid Request", "feedback_not_awaited")
    assert "not in pending human input state" in problem["message"]
    assert refused(as_alice.post(f"{AT}/resume", json={"execution_id": kickoff_id}), 422)["faults"]


def test_a_client_of_the_hosted_product_reads_an_error_as_it_always_did(hosted):
    with pytest.raises(httpx.HTTPStatusError) as caught:
        hosted.status(str(uuid4()))
    assert set(json.loads(caught.value.response.text)) >= {"error", "message"}
