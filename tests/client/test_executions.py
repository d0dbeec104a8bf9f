"""Every resource through both clients: what goes in, what comes out, and of which type."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from flowledger.client import CancelAnswer
from flowledger.domain.execution import Execution
from flowledger.domain.mode import Mode
from flowledger.domain.reach import OnReach
from flowledger.domain.status import Status
from flowledger.domain.timeline import Event, EventKind, SpanStatus
from flowledger.domain.token import Scope
from flowledger.domain.usage import CallStatus, Price, Usage
from flowledger.errors import (
    AmbiguousReference,
    ExecutionNotFound,
    FlowNotFound,
    InvalidInput,
    NotAuthenticated,
    PermissionRefused,
    QueueFull,
    ScopeRefused,
    TokenNotFound,
    UnexpectedAnswer,
)
from tests.client.proxy import answering
from tests.client.telling import told, wrote
from tests.ledger.law import ALICE, BOB, append_usage, born, brought_to, claim, finish, running, used

MEETING = UUID("bea4d000-0000-4000-8000-000000000009")


# -- Start ------------------------------------------------------------------------------------------------------------


def test_what_is_asked_for_is_what_starts(client, flow):
    execution = client.executions.create(
        "FLOW",
        {"topic": "pricing"},
        execution_key="MINE-1",
        timeout_seconds=60,
        queue_seconds=30.5,
        priority=7,
        budget_usd=Decimal("0.50"),
        budget_tokens=1000,
        on_budget=OnReach.WARN,
        board_meeting_id=MEETING,
        metadata={"title": "Prices"},
    )
    assert type(execution) is Execution
    assert (execution.status, execution.execution_mode, execution.flow_key) == (Status.PENDING, Mode.MANUAL, "FLOW")
    assert (execution.executed_by, execution.board_meeting_id) == (ALICE, MEETING)
    assert execution.started_at is not None
    assert execution.started_at.tzinfo is not None
    assert execution.metadata == {
        "title": "Prices",
        "timeout_seconds": 60,
        "queue_seconds": 30.5,
        "priority": 7,
        "budget_usd": "0.5",
        "budget_tokens": 1000,
        "on_budget": "warn",
    }
    assert client.executions.get("MINE-1").input_state == {"topic": "pricing"}


def test_the_same_key_starts_one_execution_and_another_key_another(client, flow):
    first, second = (client.executions.create("FLOW", {"a": 1}, idempotency_key="order-17") for _ in range(2))
    assert first.id == second.id
    assert client.executions.create("FLOW", {"a": 1}).id != first.id


def test_a_rerun_changes_what_it_is_told_to(client, flow):
    earlier = client.executions.create("FLOW", {"a": 1, "b": 2})
    again = client.executions.rerun(str(earlier.id), {"b": 3})
    assert again.input_state == {"a": 1, "b": 3}
    assert client.executions.get(str(again.id)).repeats.of_execution == earlier.id
    assert [link.execution_id for link in client.executions.get(str(earlier.id)).repeated_by] == [again.id]


# -- List -------------------------------------------------------------------------------------------------------------


def test_a_list_goes_through_all_pages_and_a_page_is_one_of_them(client, alice, flow):
    ids = [born(alice, flow) for _ in range(5)]
    assert {one.id for one in client.executions.list(page_size=2)} == set(ids)
    page = client.executions.page(limit=2)
    assert len(page.executions) == 2
    rest = client.executions.page(limit=5, after=page.next)
    assert {one.id for one in (*page.executions, *rest.executions)} == set(ids)
    assert rest.next is None


def test_the_next_page_is_fetched_when_it_is_reached(shaky, network, alice, flow):
    for _ in range(4):
        born(alice, flow)
    listed = shaky.executions.list(page_size=2)
    next(listed)
    assert len(network.requests) == 1
    assert len(list(listed)) == 3
    assert len(network.requests) == 2


def test_filters_narrow_a_list(client, alice, owner, flow):
    failed = brought_to(Status.FAILED, owner, alice, flow, input_state={"topic": "pricing"}, board_meeting_id=MEETING)
    timeout = brought_to(Status.TIMEOUT, owner, alice, flow)
    born(alice, flow)
    now = datetime.now(UTC)

    def found(**filters):
        return {one.id for one in client.executions.list(**filters)}

    assert found(status=Status.FAILED) == {failed}
    assert found(status=[Status.FAILED, Status.TIMEOUT]) == {failed, timeout}
    assert found(meeting=MEETING, by="me", mode=Mode.MANUAL, flow="FLOW") == {failed}
    assert found(path="input_state.topic", value="pricing") == {failed}
    assert found(by=BOB) == set()
    assert found(since=now + timedelta(hours=1)) == set()
    assert len(found(since="1h", until=now + timedelta(hours=1))) == 3
    assert found(status=None, flow=None) == found()


# -- What belongs to one ----------------------------------------------------------------------------------------------


def test_an_ended_execution_is_told_whole(client, worker, alice, flow):
    held = running(alice, worker, flow, input_state={"topic": "x"})
    finish(
        worker, held["execution_id"], held["fence"], output={"result": [1, None]}, tokens=110, cost=Decimal("0.0100")
    )
    execution = client.executions.get(str(held["execution_id"])[:8])
    assert (execution.status, execution.output_state) == (Status.COMPLETED, {"result": [1, None]})
    assert (execution.token_count, execution.cost_usd) == (110, Decimal("0.01"))
    assert execution.duration_ms is not None
    assert client.executions.state(str(execution.id)).output_state == {"result": [1, None]}
    steps = client.executions.transitions(str(execution.id))
    assert [(step.from_status, step.to_status) for step in steps] == [
        (None, Status.PENDING),
        (Status.PENDING, Status.RUNNING),
        (Status.RUNNING, Status.COMPLETED),
    ]
    assert steps[1].worker_id is not None


def test_timeline_and_logs_are_read_to_their_end(client, worker, held):
    told(worker, held, *range(1, 1203))
    wrote(worker, held, "one\n", "two\n")
    execution = str(held["execution_id"])
    events = list(client.executions.timeline(execution))
    assert [event.sequence for event in events] == list(range(1, 1203))
    assert all(type(event) is Event for event in events)
    assert events[0].kind is EventKind.LOG
    assert [event.sequence for event in client.executions.timeline(execution, after=1200)] == [1201, 1202]
    assert [line.text for line in client.executions.logs(execution)] == ["one\n", "two\n"]
    spans = client.executions.spans(execution)
    assert spans.is_complete
    assert spans.spans[0].status is SpanStatus.MOMENT


def test_usage_keeps_every_digit(client, worker, held):
    append_usage(worker, held, used(1), used(2, price=None, cost_usd=None))
    priced, unpriced = client.executions.usage(str(held["execution_id"]))
    assert priced.call.usage == Usage(100, 40, 5, 10, 3)
    assert priced.call.status is CallStatus.COMPLETED
    assert priced.price == Price(Decimal(50), Decimal(500), "team", "1")
    assert priced.cost_usd == Decimal("0.01")
    assert (unpriced.price, unpriced.cost_usd) == (None, None)


def test_two_are_compared(client, flow):
    this, other = (client.executions.create("FLOW", {"topic": topic}) for topic in ("a", "b"))
    comparison = client.executions.compare(str(this.id), str(other.id))
    assert (comparison.this, comparison.other) == (this.id, other.id)
    (change,) = comparison.inputs.changes
    assert (change.op, change.path, change.was, change.value) == ("replace", "/topic", "a", "b")
    assert comparison.statuses == (Status.PENDING, Status.PENDING)


def test_an_export_is_a_stream_or_a_file(client, alice, flow, tmp_path):
    ids = {str(born(alice, flow)) for _ in range(3)}
    lines = b"".join(client.executions.export()).splitlines()
    assert {json.loads(line)["id"] for line in lines} == ids
    text = b"".join(client.executions.export("csv", flow="FLOW")).decode()
    assert {row["id"] for row in csv.DictReader(io.StringIO(text))} == ids
    client.executions.export_to(tmp_path / "all.jsonl", status=Status.PENDING)
    assert (tmp_path / "all.jsonl").read_bytes().splitlines() == lines
    with pytest.raises(InvalidInput, match="format"):
        list(client.executions.export("xml"))


# -- End --------------------------------------------------------------------------------------------------------------


def test_whatever_is_to_be_cancelled_is_told_what_becomes_of_it(client, worker, flow):
    waiting = client.executions.create("FLOW")
    assert client.executions.cancel(str(waiting.id), "not needed").answer is CancelAnswer.CANCELLED
    held = claim_one(worker, client.executions.create("FLOW"), flow)
    assert client.executions.cancel(str(held)).answer is CancelAnswer.WISHED
    again = client.executions.cancel(str(waiting.id)[:13])
    assert (again.answer, again.execution_id) == (CancelAnswer.ENDED, waiting.id)


def claim_one(worker, execution, flow):
    (held,) = claim(worker, flow)
    assert held["execution_id"] == execution.id
    return held["execution_id"]


# -- Refusals ---------------------------------------------------------------------------------------------------------


def test_a_refusal_is_the_error_that_the_server_meant(client, connected, alice, owner, worker, flow):
    with pytest.raises(ExecutionNotFound) as missing:
        client.executions.get("no such execution?")
    assert missing.value.reference == "no such execution?"
    for nothing in ("", "..", "a/b"):
        with pytest.raises(InvalidInput, match="reference"):
            client.executions.cancel(nothing)
    with pytest.raises(FlowNotFound) as unknown:
        client.executions.create("FLOWS")
    assert (unknown.value.name, unknown.value.suggestions) == ("FLOWS", ("FLOW",))
    for last in "12":
        born(owner, flow, executed_by=ALICE, id=UUID(f"abcd0000-0000-4000-8000-00000000000{last}"))
    with pytest.raises(AmbiguousReference) as several:
        client.executions.get("abcd")
    assert len(several.value.matches) == 2
    with pytest.raises(ExecutionNotFound):
        connected(BOB).executions.cancel("abcd0000-0000-4000-8000-000000000001")


def test_bad_input_names_its_field(client, worker, flow):
    with pytest.raises(InvalidInput) as invalid:
        client.executions.create("FLOW", priority=101)
    assert invalid.value.field == "priority"
    with pytest.raises(InvalidInput) as invalid:
        client.executions.page(limit=0)
    assert invalid.value.field == "limit"
    schema = {"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"]}
    worker.execute(
        "select flowledger.remember_flow('STRICT', 'Strict', '', %s, '')",
        [Jsonb({"input_schema": schema, "fingerprint": "1"})],
    )
    with pytest.raises(InvalidInput) as invalid:
        client.executions.create("STRICT", {"topics": "x"})
    assert invalid.value.field == "topics"
    assert "topic" in invalid.value.remedy


def test_who_asks_is_told_apart(connected, worker, flow):
    stranger = connected(token="fl_nobody-knows-this-one")
    with pytest.raises(NotAuthenticated):
        stranger.executions.page()
    reader = connected(ALICE).tokens.create("reader", [Scope.READ])
    with pytest.raises(ScopeRefused) as refused:
        connected(token=reader.secret.text).executions.create("FLOW")
    assert (refused.value.scopes, refused.value.needed) == (("read",), "run")


def test_an_error_names_the_request_for_the_servers_log(client):
    with pytest.raises(ExecutionNotFound) as missing:
        client.executions.get(str(uuid4()))
    assert [note.partition(" ")[0] for note in missing.value.__notes__] == ["request"]


def test_a_full_queue_is_told_once_it_has_stayed_full(connected, owner, flow):
    client = connected(retry_seconds=0)
    client.executions.create("FLOW")
    owner.execute("update flowledger.settings set value = '1' where name = 'queue_limit'")
    with pytest.raises(QueueFull) as full:
        client.executions.create("FLOW")
    assert full.value.limit == 1


def test_what_is_no_flowledger_server_is_not_taken_for_one(connected, network):
    client = connected(url=network.url, retry_seconds=0)
    network.next(answering(200, "<html>hello</html>"), answering(404, "<html>no</html>"), answering(500))
    for what in ("cannot be read", "404", "500"):
        with pytest.raises(UnexpectedAnswer, match=what) as told_:
            client.executions.page()
        assert "FLOWLEDGER_URL" in told_.value.hint


# -- Tokens -----------------------------------------------------------------------------------------------------------


def test_tokens_are_made_shown_once_and_revoked(client, connected):
    made = client.tokens.create("ci", [Scope.READ], expires_in_days=90)
    assert made.secret.text.startswith("fl_")
    assert made.secret.text not in repr(made)
    assert client.tokens.list() == (made.token,)
    assert made.token.scopes == (Scope.READ,)
    assert connected(token=made.secret.text).executions.page().executions == ()
    client.tokens.revoke(made.token.id)
    with pytest.raises(TokenNotFound):
        client.tokens.revoke(made.token.id)
    with pytest.raises(PermissionRefused):
        client.tokens.create("much", [Scope.OPERATE])
