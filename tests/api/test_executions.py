"""Executions over HTTP: started once, found by whoever may, paged, searched, shown, ended, repeated and compared."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from flowledger.domain.status import Status
from tests.api.conftest import CAROL
from tests.ledger.law import ALICE, BOB, born, brought_to, claim, finish

AT = "/api/v1/executions"
MEETING = UUID("bea4d000-0000-4000-8000-000000000009")


def started(client: Any, **given: Any) -> dict[str, Any]:
    answer = client.post(AT, json={"flow": "FLOW", **given})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def refused(answer: Any, status: int) -> dict[str, Any]:
    """The problem. Every refusal is one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = dict(answer.json())
    assert problem["status"] == status
    return problem


def ids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [one["id"] for one in answer.json()["executions"]]


def ended(worker: Any, flow: UUID, status: str = "completed", **outcome: Any) -> UUID:
    """The execution that waited longest, claimed and ended."""
    held = claim(worker, flow, slots=1)[0]
    finish(worker, held["execution_id"], held["fence"], status, **outcome)
    return UUID(str(held["execution_id"]))


def raw(owner: Any, flow: UUID, **columns: Any) -> str:
    """A row as an older table may hold it: the triggers do not judge it."""
    values = {
        "id": uuid4(),
        "flow_id": flow,
        "execution_key": f"KEY-{uuid4()}",
        "executed_by": ALICE,
        "status": "failed",
        **columns,
    }
    names, places = ", ".join(values), ", ".join(f"%({name})s" for name in values)
    owner.execute("alter table crewai_flow_executions disable trigger user")
    owner.execute(f"insert into crewai_flow_executions ({names}) values ({places})", values)
    owner.execute("alter table crewai_flow_executions enable trigger user")
    owner.execute(
        "select flowledger.list_ended(executions) from crewai_flow_executions as executions "
        "where id = %s and flowledger.is_terminal(status)",
        [values["id"]],
    )
    return str(values["id"])


# -- Start ------------------------------------------------------------------------------------------------------------


def test_whoever_starts_a_flow_is_told_where_its_execution_is(as_alice, flow):
    answer = as_alice.post(
        AT,
        json={
            "flow": "FLOW",
            "inputs": {"topic": "pricing"},
            "timeout_seconds": 60,
            "queue_seconds": 30.5,
            "priority": 7,
            "budget_usd": "0.50",
            "budget_tokens": 1000,
            "on_budget": "warn",
            "board_meeting_id": str(MEETING),
            "metadata": {"title": "Prices"},
            "execution_key": "MINE-1",
        },
    )
    assert answer.status_code == 201, answer.text
    told = answer.json()
    assert answer.headers["location"] == f"{AT}/{told['id']}"
    assert as_alice.get(answer.headers["location"]).json()["input_state"] == {"topic": "pricing"}
    assert (told["status"], told["execution_mode"], told["flow_key"]) == ("pending", "manual", "FLOW")
    assert (told["executed_by"], told["board_meeting_id"]) == (str(ALICE), str(MEETING))
    assert told["execution_key"] == "MINE-1"
    assert told["started_at"].endswith("Z")
    assert told["metadata"] == {
        "title": "Prices",
        "timeout_seconds": 60,
        "queue_seconds": 30.5,
        "priority": 7,
        "budget_usd": "0.5",
        "budget_tokens": 1000,
        "on_budget": "warn",
    }


def test_an_operator_starts_flows_as_themselves(as_operator, flow):
    assert started(as_operator)["executed_by"] == str(CAROL)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"flow": "FLOW", "colour": "red"}, "colour"),
        ({}, "flow"),
        ({"flow": 3}, "flow"),
        ({"flow": "FLOW", "inputs": [1]}, "inputs"),
        ({"flow": "FLOW", "priority": 101}, "priority"),
        ({"flow": "FLOW", "priority": True}, "priority"),
        ({"flow": "FLOW", "budget_usd": "-1"}, "budget_usd"),
        ({"flow": "FLOW", "budget_usd": 0.5}, "budget_usd"),
        ({"flow": "FLOW", "on_budget": "explode"}, "on_budget"),
        ({"flow": "FLOW", "board_meeting_id": "monday"}, "board_meeting_id"),
        ({"flow": "FLOW", "execution_key": "k" * 101}, "execution_key"),
        ({"flow": "FLOW", "timeout_seconds": 0}, "timeout_seconds"),
        ({"flow": "FLOW", "queue_seconds": 1e10}, "queue_seconds"),
    ],
)
def test_a_field_that_does_not_fit_is_refused_by_its_name(as_alice, flow, given, field):
    problem = refused(as_alice.post(AT, json=given), 422)
    assert [fault["field"].partition(".")[0] for fault in problem["faults"]] == [field]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"on_budget": "stop"}, "on_budget"),
        ({"inputs": {"topic": "a\x00b"}}, "topic"),
        ({"metadata": {"note": "a\x00b"}}, "metadata.note"),
        ({"metadata": {"budget_tokens": "many"}}, "execution"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_its_name(as_alice, flow, given, field):
    problem = refused(as_alice.post(AT, json={"flow": "FLOW", **given}), 422)
    assert (problem["code"], problem["field"]) == ("invalid_input", field)


def test_a_body_that_holds_what_no_encoding_has_is_refused_as_any_other(as_alice, flow):
    for body in (
        rb'{"flow": "FLOW", "\ud800": 1}',
        rb'{"flow": "FLOW", "inputs": {"\ud800": 1}}',
        rb'{"flow": "\ud800"}',
    ):
        refused(as_alice.post(AT, content=body, headers={"Content-Type": "application/json"}), 422)


def test_inputs_are_checked_by_the_flows_schema(as_alice, worker, flow):
    schema = {"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"]}
    worker.execute(
        "select flowledger.remember_flow('STRICT', 'Strict', '', %s, '')",
        [Jsonb({"input_schema": schema, "fingerprint": "1"})],
    )
    problem = refused(as_alice.post(AT, json={"flow": "STRICT", "inputs": {"topics": "x"}}), 422)
    assert problem["field"] == "topics"
    assert "topic" in problem["remedy"]
    assert as_alice.post(AT, json={"flow": "STRICT", "inputs": {"topic": "x"}}).status_code == 201


def test_a_flow_that_is_not_there_is_named_with_its_nearest(as_alice, flow):
    problem = refused(as_alice.post(AT, json={"flow": "FLOWS"}), 404)
    assert (problem["code"], problem["remedy"]) == ("flow_not_found", "Did you mean FLOW?")


def test_a_key_that_is_taken_and_a_full_queue_are_told(as_alice, owner, flow):
    started(as_alice, execution_key="ONE")
    assert refused(as_alice.post(AT, json={"flow": "FLOW", "execution_key": "ONE"}), 422)["field"] == "execution_key"
    owner.execute("update flowledger.settings set value = '1' where name = 'queue_limit'")
    assert refused(as_alice.post(AT, json={"flow": "FLOW"}), 429)["code"] == "queue_full"


# -- Once -------------------------------------------------------------------------------------------------------------


def test_the_same_request_with_the_same_key_starts_one_execution(as_alice, flow, worker):
    key = {"Idempotency-Key": "order-17"}
    first = as_alice.post(AT, json={"flow": "FLOW", "inputs": {"a": 1, "b": 2}}, headers=key)
    ended(worker, flow)
    second = as_alice.post(AT, json={"inputs": {"b": 2, "a": 1}, "flow": "FLOW", "metadata": {}}, headers=key)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.headers["location"] == second.headers["location"]
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert second.json()["status"] == "completed"
    assert len(ids(as_alice.get(AT))) == 1


def test_another_request_with_the_same_key_is_refused(as_alice, flow):
    key = {"Idempotency-Key": "order-17"}
    as_alice.post(AT, json={"flow": "FLOW"}, headers=key)
    assert (
        refused(as_alice.post(AT, json={"flow": "FLOW", "priority": 1}, headers=key), 422)["field"] == "Idempotency-Key"
    )
    assert len(ids(as_alice.get(AT))) == 1


def test_a_key_is_its_users_own(as_alice, as_bob, flow):
    key = {"Idempotency-Key": "order-17"}
    hers = as_alice.post(AT, json={"flow": "FLOW"}, headers=key).json()
    his = as_bob.post(AT, json={"flow": "FLOW"}, headers=key).json()
    assert hers["id"] != his["id"]
    assert his["executed_by"] == str(BOB)


def test_a_request_that_was_refused_does_not_use_its_key_up(as_alice, flow):
    key = {"Idempotency-Key": "order-17"}
    refused(as_alice.post(AT, json={"flow": "NONE"}, headers=key), 404)
    assert as_alice.post(AT, json={"flow": "FLOW"}, headers=key).status_code == 201


def test_twenty_at_once_start_one_execution(as_alice, flow):
    def ask(_: int) -> Any:
        return as_alice.post(AT, json={"flow": "FLOW"}, headers={"Idempotency-Key": "at-once"})

    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(ask, range(20)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert len(ids(as_alice.get(AT))) == 1


def test_without_a_key_each_request_starts_one(as_alice, flow):
    assert started(as_alice)["id"] != started(as_alice)["id"]


@pytest.mark.parametrize("key", ["k" * 201, "with blank"])
def test_a_key_that_is_none_is_refused(as_alice, flow, key):
    problem = refused(as_alice.post(AT, json={"flow": "FLOW"}, headers={"Idempotency-Key": key}), 422)
    assert [fault["field"] for fault in problem["faults"]] == ["Idempotency-Key"]


# -- List -------------------------------------------------------------------------------------------------------------


def test_a_user_lists_their_own_and_an_operator_everybodys(as_alice, as_bob, as_operator, flow):
    hers, his = started(as_alice)["id"], started(as_bob)["id"]
    assert ids(as_alice.get(AT)) == [hers]
    assert ids(as_bob.get(AT)) == [his]
    assert ids(as_operator.get(AT)) == [his, hers]
    assert ids(as_operator.get(AT, params={"by": str(ALICE)})) == [hers]
    assert ids(as_operator.get(AT, params={"by": "me"})) == []
    assert ids(as_alice.get(AT, params={"by": str(BOB)})) == []
    assert ids(as_alice.get(AT, params={"by": "me"})) == [hers]


def test_every_filter_takes_what_fits_it_whether_it_has_ended_or_not(as_alice, as_operator, owner, worker, alice, flow):
    other = worker.execute("select id from flowledger.remember_flow('OTHER', 'Other', '', '{}', '')").fetchone()["id"]
    made = {status: str(brought_to(status, owner, alice, flow)) for status in Status}
    elsewhere = str(born(alice, other, board_meeting_id=MEETING))
    owner.execute("update crewai_flow_executions set status = 'cancelled' where id = %s", [elsewhere])
    for client in (as_alice, as_operator):
        for status in Status:
            wanted = {made[status]} | ({elsewhere} if status is Status.CANCELLED else set())
            assert set(ids(client.get(AT, params={"status": status}))) == wanted, status
        assert set(ids(client.get(AT, params={"status": "pending,failed"}))) == {
            made[Status.PENDING],
            made[Status.FAILED],
        }
        assert ids(client.get(AT, params={"flow": "OTHER"})) == [elsewhere]
        assert ids(client.get(AT, params={"flow": "NONE"})) == []
        assert ids(client.get(AT, params={"meeting": str(MEETING)})) == [elsewhere]
        assert len(ids(client.get(AT, params={"mode": "manual"}))) == 7
        assert ids(client.get(AT, params={"mode": "scheduled"})) == []
        assert len(ids(client.get(AT, params={"since": "1h"}))) == 7
        assert ids(client.get(AT, params={"until": "1h"})) == []
        assert ids(client.get(AT, params={"since": "2999-01-01"})) == []


def test_pages_hold_everything_once_newest_first(as_alice, owner, alice, worker, flow):
    made = [str(born(alice, flow)) for _ in range(23)]
    for at, id_ in enumerate(made):
        # Many began at the same time: the id decides then.
        owner.execute(
            "update crewai_flow_executions set started_at = '2026-11-01Z'::timestamptz + %s * interval '1 s' "
            "where id = %s",
            [at // 5, id_],
        )
        if at % 2:
            owner.execute("update crewai_flow_executions set status = 'cancelled' where id = %s", [id_])
    found, after = [], None
    while True:
        page = as_alice.get(AT, params={"limit": 4, **({"after": after} if after else {})}).json()
        found += [(one["started_at"], one["id"]) for one in page["executions"]]
        after = page["next"]
        if after is None:
            break
        assert len(page["executions"]) == 4
    assert found == sorted(found, reverse=True)
    assert {id_ for _, id_ in found} == set(made)
    assert len(found) == 23


def test_a_page_that_is_exactly_full_has_no_next(as_alice, flow):
    for _ in range(3):
        started(as_alice)
    assert as_alice.get(AT, params={"limit": 3}).json()["next"] is None
    assert as_alice.get(AT, params={"limit": 2}).json()["next"] is not None


@pytest.mark.parametrize(
    "given",
    [
        {"limit": 0},
        {"limit": 1001},
        {"limit": "all"},
        {"status": "done"},
        {"status": "failed,"},
        {"mode": "magic"},
        {"meeting": "monday"},
        {"colour": "red"},
        {"search": ""},
        {"flow": "a\x00"},
    ],
)
def test_a_parameter_that_does_not_fit_is_refused_by_its_name(as_alice, given):
    problem = refused(as_alice.get(AT, params=given), 422)
    assert [fault["field"] for fault in problem["faults"]] == list(given)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"since": "yesterday"}, "since"),
        ({"until": "99999999999d"}, "until"),
        ({"by": "bob"}, "by"),
        ({"after": "0"}, "after"),
        ({"after": "é"}, "after"),
        ({"path": "topic"}, "path"),
        ({"path": "input_state.topic; drop table"}, None),
        ({"path": "input_state..a"}, "path"),
        ({"path": "input_state" + ".a" * 21}, "path"),
        ({"value": "pricing"}, "value"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused_by_its_name(as_alice, given, field):
    answer = as_alice.get(AT, params=given)
    assert ids(answer) == [] if field is None else refused(answer, 422)["field"] == field


def test_errors_are_searched(as_alice, as_bob, as_operator, alice, worker, flow):
    for text in ("Connection reset by peer", "HTTP 413: too 100% large", "a_b"):
        born(alice, flow)
        held = claim(worker, flow, slots=1)[0]
        worker.execute(
            "select flowledger.finish(%s, %s, 'failed', null, 'OSError', %s, null, null, null, null, '{}')",
            [held["execution_id"], held["fence"], text],
        )
    started(as_alice)

    def messages(client: Any, search: str) -> list[str]:
        return [one["error_message"] for one in client.get(AT, params={"search": search}).json()["executions"]]

    assert messages(as_alice, "RESET by") == ["Connection reset by peer"]
    assert messages(as_alice, "100% l") == ["HTTP 413: too 100% large"]
    # What would be a pattern of SQL is only text.
    assert messages(as_alice, "%") == ["HTTP 413: too 100% large"]
    assert messages(as_alice, "_") == ["a_b"]
    assert len(messages(as_operator, "oserror")) == 3
    assert messages(as_bob, "oserror") == []


def test_payloads_are_searched_by_path_and_value(as_alice, as_bob, as_operator, worker, flow):
    def found(client: Any, path: str, value: str | None = None) -> list[str]:
        return ids(client.get(AT, params={"path": path, **({} if value is None else {"value": value})}))

    one = started(as_alice, inputs={"topic": "pricing", "leads": [{"first name": "Ann"}], "n": 3, "no": None})["id"]
    two = started(as_alice, inputs={"topic": "hiring"}, metadata={"title": "pricing"})["id"]
    for client in (as_alice, as_operator):
        assert found(client, "input_state.topic", "pricing") == [one]
        assert found(client, "input_state.topic") == [two, one]
        assert found(client, 'input_state.leads[0]["first name"]', "Ann") == [one]
        assert found(client, "input_state.n", "3") == [one]
        assert found(client, "input_state.no", "null") == [one]
        assert found(client, "metadata.title", "pricing") == [two]
        assert found(client, "output_state.result") == []
        # Quotation marks are only text.
        assert found(client, "input_state.topic", "' or true --") == []
    ended(worker, flow, output={"result": True})
    assert found(as_alice, "output_state.result", "true") == [one]
    assert found(as_bob, "input_state.topic") == []


def test_a_search_ends_and_goes_on_where_it_ended(as_alice, alice, worker, flow, monkeypatch):
    monkeypatch.setattr("flowledger.ledger.executions._MOST_READ", 3)
    rare = str(born(alice, flow, input_state={"topic": "rare"}))
    for _ in range(8):
        born(alice, flow, input_state={"topic": "common"})
    pages, after = [], None
    while not pages or after:
        given = {"path": "input_state.topic", "value": "rare", "limit": 2, **({"after": after} if after else {})}
        page = as_alice.get(AT, params=given).json()
        pages.append([one["id"] for one in page["executions"]])
        after = page["next"]
    assert [id_ for page in pages for id_ in page] == [rare]
    assert len(pages) == 3 or (len(pages) == 4 and pages[3] == [])


def test_a_list_stays_small_and_the_state_is_shown_in_full(as_alice, worker, flow):
    # Random, so that Postgres cannot compress it.
    large = {"text": "".join(uuid4().hex for _ in range(2000))}
    made = started(as_alice, inputs=large)["id"]
    listed = as_alice.get(AT).json()["executions"][0]
    assert set(listed["input_state"]) == {"$large"}
    assert listed["input_state"]["$large"] > 60_000
    assert as_alice.get(f"{AT}/{made}").json()["input_state"] == large
    assert as_alice.get(f"{AT}/{made}/state").json() == {"input_state": large, "output_state": None}


# -- Show -------------------------------------------------------------------------------------------------------------


def test_an_execution_is_found_by_its_id_a_prefix_and_its_key(as_alice, as_bob, as_operator, flow):
    made = started(as_alice)
    for reference in (made["id"], made["id"].upper(), made["id"][:8], made["execution_key"]):
        assert as_alice.get(f"{AT}/{reference}").json()["id"] == made["id"]
        assert as_operator.get(f"{AT}/{reference}").json()["id"] == made["id"]
        assert refused(as_bob.get(f"{AT}/{reference}"), 404)["code"] == "execution_not_found"


def test_a_prefix_of_two_is_refused_with_both(as_alice, owner, flow):
    made = [raw(owner, flow, id=UUID(f"feedbeef-0000-4000-8000-00000000000{number}")) for number in (1, 2)]
    problem = refused(as_alice.get(f"{AT}/feedbeef"), 409)
    assert problem["code"] == "ambiguous_reference"
    assert all(id_ in problem["title"] for id_ in made)


@pytest.mark.parametrize(
    "part", ["", "/timeline", "/logs", "/usage", "/transitions", "/state", "/comparison?with=beef"]
)
def test_nobody_sees_what_belongs_to_another(as_alice, as_bob, flow, part):
    made = started(as_alice)["id"]
    refused(as_bob.get(f"{AT}/{made}{part}"), 404)
    refused(as_alice.get(f"{AT}/{uuid4()}{part}"), 404)


@pytest.mark.parametrize("reference", ["%00", "beef%00", "%ff", "' or true", "k" * 101])
def test_a_reference_that_names_nothing_is_refused(as_alice, reference):
    answer = as_alice.get(f"{AT}/{reference}")
    assert answer.status_code in (404, 422), answer.text
    refused(answer, answer.status_code)


def test_whoever_knows_an_execution_is_not_sent_it_again(as_alice, worker, flow):
    made = started(as_alice)["id"]
    first = as_alice.get(f"{AT}/{made}")
    for known in (first.headers["etag"], f'"other", W/{first.headers["etag"]}', "*"):
        again = as_alice.get(f"{AT}/{made}", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
    assert as_alice.get(f"{AT}/{made}", headers={"If-None-Match": '"other"'}).status_code == 200
    ended(worker, flow)
    changed = as_alice.get(f"{AT}/{made}", headers={"If-None-Match": first.headers["etag"]})
    assert (changed.status_code, changed.json()["status"]) == (200, "completed")


def test_money_is_text_with_every_digit_and_times_are_utc(as_alice, worker, flow):
    made = started(as_alice)["id"]
    ended(worker, flow, cost=Decimal("0.1000"), tokens=7)
    told = as_alice.get(f"{AT}/{made}").json()
    assert (told["cost_usd"], told["token_count"]) == ("0.1", 7)
    assert datetime.fromisoformat(told["completed_at"]).tzinfo == UTC
    assert told["completed_at"].endswith("Z")


def test_no_resource_takes_a_parameter_that_it_does_not_know(as_alice, flow):
    made = started(as_alice)["id"]
    for part in ("", "/transitions", "/state"):
        assert refused(as_alice.get(f"{AT}/{made}{part}?verbose=1"), 422)["field"] == "verbose"
    for part in ("/timeline", "/logs", "/usage", "/comparison"):
        problem = refused(as_alice.get(f"{AT}/{made}{part}?verbose=1"), 422)
        assert "verbose" in [fault["field"] for fault in problem["faults"]]


# -- What any row may hold --------------------------------------------------------------------------------------------


def test_a_row_that_python_cannot_read_breaks_neither_page_nor_state(as_alice, flow, alice):
    deep = "[" * 6000 + "]" * 6000
    statement = (
        "insert into crewai_flow_executions (flow_id, execution_key, input_state, executed_by) "
        "values (%s, %s, %s::text::jsonb, auth.uid()) returning id"
    )
    made = [
        str(alice.execute(statement, [flow, f"KEY-{name}", text]).fetchone()["id"])
        for name, text in (("deep", f'{{"a": {deep}}}'), ("long", '{"a": 1e5000}'), ("infinite", '{"a": 1.5e400}'))
    ]
    assert set(ids(as_alice.get(AT))) == set(made)
    for id_ in made[:2]:
        assert set(as_alice.get(f"{AT}/{id_}").json()["input_state"]) == {"$unreadable"}
    assert as_alice.get(f"{AT}/{made[0]}/state").text.replace(" ", "") == (
        '{"input_state":{"a":' + deep + '},"output_state":null}'
    )
    assert as_alice.get(f"{AT}/{made[1]}/state").status_code == 200
    assert as_alice.get(f"{AT}/{made[2]}").status_code == 200
    problem = refused(as_alice.post(f"{AT}/{made[0]}/rerun"), 422)
    assert problem["field"] == "inputs"


@pytest.mark.parametrize(
    "columns",
    [
        {"status": None},
        {"execution_mode": None},
        {"started_at": None},
        {"started_at": "infinity", "completed_at": "infinity"},
        {"started_at": "-infinity"},
        {"started_at": "4000-01-01 BC", "completed_at": "20000-01-01"},
        {"cost_usd": "NaN"},
        {"metadata": Jsonb([1])},
        {"metadata": Jsonb("text"), "input_state": Jsonb(3), "output_state": Jsonb(None)},
        {"executed_by": None},
        {"error_message": "x\n" * 100_000, "error_stack": "\u2028" * 9_000, "error_type": ""},
        {"execution_key": "a/b?c#d ' \u202e"},
    ],
    ids=lambda columns: ", ".join(columns),
)
def test_every_row_that_can_be_stored_can_be_told(as_alice, as_operator, owner, flow, columns):
    made = raw(owner, flow, **columns)
    client = as_operator if "executed_by" in columns else as_alice
    assert ids(client.get(AT)) == [made]
    for part in ("", "/state", "/timeline", "/transitions"):
        assert client.get(f"{AT}/{made}{part}").status_code == 200
    assert client.get(f"{AT}/{made}/comparison?with={made}").status_code == 200
    for form in ("csv", "jsonl", "parquet"):
        assert client.get(f"{AT}/export", params={"format": form}).status_code == 200


def test_rows_without_a_time_are_on_the_last_page_once(as_alice, owner, flow):
    made = {raw(owner, flow, started_at=at) for at in (None, None, "-infinity", "-infinity", "infinity", "2026-01-01")}
    found, after = [], None
    while True:
        page = as_alice.get(AT, params={"limit": 1, **({"after": after} if after else {})}).json()
        found += [one["id"] for one in page["executions"]]
        after = page["next"]
        if after is None:
            break
    assert sorted(found) == sorted(made)


def test_an_execution_outlives_the_sight_of_its_flow(as_alice, owner, flow):
    made = started(as_alice)["id"]
    owner.execute("update crewai_flows set status = 'deprecated' where id = %s", [flow])
    assert ids(as_alice.get(AT)) == [made]
    assert as_alice.get(f"{AT}/{made}").json()["flow_key"] == ""


# -- What belongs to one ----------------------------------------------------------------------------------------------


def test_the_timeline_is_told_as_events_and_as_spans(as_alice, worker, flow):
    made = started(as_alice)["id"]
    held = claim(worker, flow, slots=1)[0]
    kinds = ["method_started", "log", "method_finished", "kind_of_tomorrow"]
    worker.execute(
        "select flowledger.append_events(%s, %s, %s, %s, %s, %s, %s, %s, %s::text[]::jsonb[])",
        [
            [held["execution_id"]] * 4,
            [held["fence"]] * 4,
            [1, 2, 3, 4],
            [None, 1, None, None],
            [None, None, 1, None],
            [datetime(2026, 11, 27, 8, 0, second, tzinfo=UTC) for second in range(4)],
            kinds,
            ["draft", "hello", "draft", "?"],
            [json.dumps({"a": 1})] * 4,
        ],
    )
    first = as_alice.get(f"{AT}/{made}/timeline", params={"limit": 3}).json()
    assert [event["kind"] for event in first["events"]] == kinds[:3]
    assert first["events"][1] == {
        "sequence": 2,
        "at": "2026-11-27T08:00:01Z",
        "kind": "log",
        "name": "hello",
        "fields": {"a": 1},
        "parent": 1,
        "began": None,
    }
    rest = as_alice.get(f"{AT}/{made}/timeline", params={"after": first["next"]}).json()
    assert [event["fields"] for event in rest["events"]] == [{"a": 1, "unknown_kind": "kind_of_tomorrow"}]
    assert rest["next"] is None
    told = as_alice.get(f"{AT}/{made}/timeline", params={"as": "spans"}).json()
    assert told["is_complete"]
    assert [(span["name"], span["status"], span["duration_ms"]) for span in told["spans"][:1]] == [
        ("draft", "completed", 2000)
    ]
    assert refused(as_alice.get(f"{AT}/{made}/timeline?as=spans&after=1"), 422)["field"] == "after"


def test_logs_and_calls_come_after_a_number(as_alice, worker, flow):
    made = started(as_alice)["id"]
    held = claim(worker, flow, slots=1)[0]
    at = datetime(2026, 11, 27, tzinfo=UTC)
    worker.execute(
        "select flowledger.append_logs(%s, %s, %s, %s, %s, %s)",
        [
            [held["execution_id"]] * 3,
            [held["fence"]] * 3,
            [1, 2, 3],
            [at] * 3,
            ["stdout", "stderr", "stdout"],
            ["a", "b", "c"],
        ],
    )
    call = {
        "call_id": "x",
        "model": "gpt-4o",
        "provider": "openai",
        "status": "completed",
        "started_at": at.isoformat(),
        "input_tokens": 10,
        "cached_input_tokens": 0,
        "cache_write_tokens": 0,
        "output_tokens": 5,
        "reasoning_tokens": 0,
        "price": {"source": "team", "version": "1", "input": "1", "output": "2", "call": "0"},
        "cost_usd": "0.00002",
        "retries": 0,
    }
    worker.execute(
        "select flowledger.append_usage(%s, %s, %s::text[]::jsonb[])",
        [
            [held["execution_id"]] * 2,
            [held["fence"]] * 2,
            [json.dumps({**call, "number": number}) for number in (1, 2)],
        ],
    )
    first = as_alice.get(f"{AT}/{made}/logs", params={"limit": 2}).json()
    assert ([line["text"] for line in first["lines"]], first["next"]) == (["a", "b"], 2)
    rest = as_alice.get(f"{AT}/{made}/logs", params={"after": 2}).json()
    assert ([line["text"] for line in rest["lines"]], rest["next"]) == (["c"], None)
    calls = as_alice.get(f"{AT}/{made}/usage", params={"after": 1}).json()
    assert [one["number"] for one in calls["calls"]] == [2]
    assert (calls["calls"][0]["cost_usd"], calls["calls"][0]["usage"]["input_tokens"]) == ("0.00002", 10)


def test_the_steps_of_a_life_are_told_from_the_birth_on(as_alice, worker, flow):
    made = started(as_alice)["id"]
    ended(worker, flow)
    steps = as_alice.get(f"{AT}/{made}/transitions").json()["transitions"]
    assert [(step["from_status"], step["to_status"]) for step in steps] == [
        (None, "pending"),
        ("pending", "running"),
        ("running", "completed"),
    ]
    assert steps[0]["actor"] == str(ALICE)


# -- End, again, compare ----------------------------------------------------------------------------------------------


def test_an_execution_is_cancelled_by_its_owner_or_an_operator(as_alice, as_bob, as_operator, worker, flow):
    waiting = started(as_alice)["id"]
    refused(as_bob.post(f"{AT}/{waiting}/cancellation"), 404)
    answer = as_alice.post(f"{AT}/{waiting}/cancellation", json={"reason": "no longer needed"})
    assert (answer.status_code, answer.json()) == (202, {"execution_id": waiting, "answer": "cancelled"})
    assert refused(as_alice.post(f"{AT}/{waiting}/cancellation"), 409)["code"] == "transition_refused"

    running = started(as_alice)["id"]
    claim(worker, flow, slots=1)
    answer = as_operator.post(f"{AT}/{running}/cancellation")
    assert (answer.status_code, answer.json()["answer"]) == (202, "wished")
    refused(as_alice.post(f"{AT}/{uuid4()}/cancellation"), 404)
    problem = refused(as_alice.post(f"{AT}/{running}/cancellation", json={"why": "x"}), 422)
    assert [fault["field"] for fault in problem["faults"]] == ["why"]


def test_a_rerun_asks_for_the_same_with_what_is_changed(as_alice, as_bob, worker, flow):
    earlier = started(as_alice, inputs={"topic": "pricing", "n": 1}, priority=3, metadata={"title": "T", "note": "x"})
    ended(worker, flow, "failed", error_type="ValueError")
    answer = as_alice.post(f"{AT}/{earlier['id']}/rerun", json={"inputs": {"n": 2}})
    assert answer.status_code == 201, answer.text
    again = as_alice.get(answer.headers["location"]).json()
    assert again["input_state"] == {"topic": "pricing", "n": 2}
    assert again["metadata"] == {"title": "T", "priority": 3, "rerun_of": earlier["id"]}
    assert again["repeats"] == {
        "execution_id": again["id"],
        "of_execution": earlier["id"],
        "kind": "rerun",
        "attempt": 2,
    }
    assert as_alice.get(f"{AT}/{earlier['id']}").json()["repeated_by"] == [again["repeats"]]
    assert as_alice.post(f"{AT}/{earlier['id']}/rerun").status_code == 201
    refused(as_bob.post(f"{AT}/{earlier['id']}/rerun"), 404)


def test_a_rerun_with_a_key_is_one_rerun(as_alice, flow):
    one, two = started(as_alice)["id"], started(as_alice)["id"]
    key = {"Idempotency-Key": "again"}
    first, second = (as_alice.post(f"{AT}/{one}/rerun", headers=key).json()["id"] for _ in range(2))
    assert first == second
    assert refused(as_alice.post(f"{AT}/{two}/rerun", headers=key), 422)["field"] == "Idempotency-Key"


def test_two_executions_are_compared(as_alice, as_bob, worker, flow):
    one = started(as_alice, inputs={"topic": "pricing", "n": 1})["id"]
    ended(worker, flow, output={"result": "short"}, tokens=100, cost=Decimal("0.0071"))
    two = started(as_alice, inputs={"topic": "hiring", "n": 1})["id"]
    ended(worker, flow, output={"result": "short", "more": 1}, tokens=150, cost=Decimal("0.0090"))
    told = as_alice.get(f"{AT}/{one}/comparison", params={"with": two}).json()
    assert told["inputs"] == {
        "changes": [{"op": "replace", "path": "/topic", "value": "hiring", "was": "pricing"}],
        "more": 0,
    }
    assert [change["op"] for change in told["outputs"]["changes"]] == ["add"]
    assert told["token_count"] == {"this": 100, "other": 150, "difference": 50}
    assert told["cost_usd"] == {"this": "0.0071", "other": "0.009", "difference": "0.0019"}
    assert told["statuses"] == ["completed", "completed"]
    refused(as_bob.get(f"{AT}/{one}/comparison", params={"with": two}), 404)
