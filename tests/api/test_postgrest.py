"""Users who come through PostgREST: they insert rows and read results; what is not theirs to say or see is refused."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.api.postgrest import FUNCTIONS, Client, PostgREST
from tests.docs.pages import DOCS, blocks_of
from tests.ledger.law import ALICE, BOB, claim, finish, row

TABLE = "crewai_flow_executions"
DENIED = "42501"


@pytest.fixture
def rest(connect) -> Any:
    """PostgREST with its own login, and what it is asked by Alice."""
    return PostgREST(connect("flowledger_api"), ALICE)


@pytest.fixture
def rest_of_bob(connect) -> Any:
    return PostgREST(connect("flowledger_api"), BOB)


def new(flow: UUID, **more: Any) -> dict[str, Any]:
    return {"flow_id": flow, "execution_key": f"FLOW-{uuid4()}", "executed_by": ALICE, **more}


def refused(ask: Any) -> tuple[str, str]:
    """SQLSTATE and message, which PostgREST passes on."""
    with pytest.raises(psycopg.Error) as caught:
        ask()
    return str(caught.value.sqlstate), str(caught.value.diag.message_primary)


# -- What works -------------------------------------------------------------------------------------------------------


def test_a_row_is_inserted_and_its_result_read_from_it(rest, rest_of_bob, worker, flow):
    wanted = new(flow, input_state={"topic": "pricing"}, metadata={"ticket": "T-1"})
    (born,) = rest.insert(TABLE, wanted).body
    assert (born["status"], born["execution_mode"], born["executed_by"]) == ("pending", "manual", str(ALICE))
    assert (born["input_state"], born["metadata"]) == ({"topic": "pricing"}, {"ticket": "T-1"})
    held = claim(worker, flow)[0]
    finish(worker, held["execution_id"], held["fence"], output={"result": "cheaper"}, tokens=110, cost="0.5")
    (ended,) = rest.select(TABLE, ("id", "eq", born["id"])).body
    assert (ended["status"], ended["output_state"]) == ("completed", {"result": "cheaper"})
    assert (ended["token_count"], ended["cost_usd"]) == (110, 0.5)
    assert rest_of_bob.select(TABLE, ("id", "eq", born["id"])).body == []


def test_a_row_is_inserted_without_being_told_of_and_several_are_at_once(rest, flow):
    assert rest.insert(TABLE, new(flow), returning=False).body == [{"?column?": 1}]
    several = rest.insert(TABLE, [new(flow), new(flow, input_state={"n": 2})]).body
    assert [one["input_state"] for one in several] == [None, {"n": 2}]
    assert rest.select(TABLE, count=True).count == 3


def test_filters_orders_counts_and_embedded_flows_see_a_users_own_rows_alone(rest, rest_of_bob, owner, flow):
    for number in range(4):
        rest.insert(TABLE, new(flow, input_state={"topic": {"n": number}}))
        rest_of_bob.insert(TABLE, {**new(flow, input_state={"topic": {"n": number}}), "executed_by": BOB})
    owner.execute("update crewai_flow_executions set status = 'cancelled' where input_state #>> '{topic,n}' = '3'")
    answer = rest.select(
        TABLE,
        ("status", "in", ["pending", "running"]),
        ("input_state->topic->>n", "gte", "1"),
        ("execution_key", "ilike", "flow-%"),
        columns=("id", "input_state", "executed_by"),
        order="started_at.desc",
        limit=1,
        count=True,
    )
    assert (len(answer.body), answer.count) == (1, 2)
    assert answer.body[0]["input_state"] == {"topic": {"n": 2}}
    assert set(answer.body[0]) == {"id", "input_state", "executed_by"}
    assert rest.select(TABLE, count=True).count == rest_of_bob.select(TABLE, count=True).count == 4
    assert rest.select(TABLE, ("executed_by", "eq", BOB), count=True).count == 0
    (embedded,) = rest.select(TABLE, embed="crewai_flows", limit=1).body
    assert embedded["crewai_flows"]["flow_key"] == "FLOW"


def test_functions_start_and_cancel(rest, rest_of_bob, worker, flow):
    functions = PostgREST(rest.connection, ALICE, schema="flowledger")
    of_bob = PostgREST(rest_of_bob.connection, BOB, schema="flowledger")

    def cancel(by: PostgREST, execution: str) -> str:
        return str(by.rpc("cancel", FUNCTIONS["cancel"], {"execution": execution, "reason": "enough"}, scalar=True))

    born = functions.rpc("kickoff", FUNCTIONS["kickoff"], {"flow_key": "FLOW", "inputs": {"topic": "x"}})
    assert (born["status"], born["executed_by"], born["input_state"]) == ("pending", str(ALICE), {"topic": "x"})
    assert cancel(of_bob, born["id"]) == "unknown"
    assert cancel(functions, born["id"]) == "cancelled"
    assert cancel(functions, born["id"]) == "ended"
    second = functions.rpc("kickoff", FUNCTIONS["kickoff"], {"flow_key": "FLOW"})
    claim(worker, flow)
    assert cancel(functions, second["id"]) == "wished"
    code, message = refused(lambda: functions.rpc("kickoff", FUNCTIONS["kickoff"], {"flow_key": "NONE"}))
    assert (code, message) == ("FL005", "there is no flow NONE")


def test_a_start_that_is_sent_twice_starts_once(rest, flow):
    wanted = new(flow)
    assert len(rest.insert(TABLE, wanted, on_conflict="execution_key").body) == 1
    assert rest.insert(TABLE, wanted, on_conflict="execution_key").body == []
    assert refused(lambda: rest.insert(TABLE, wanted))[0] == "23505"
    assert rest.select(TABLE, count=True).count == 1


def test_nothing_of_a_request_is_left_for_the_next_on_the_same_connection(rest, flow):
    rest.insert(TABLE, new(flow))
    of_bob = PostgREST(rest.connection, BOB)
    assert of_bob.select(TABLE).body == []
    settings = rest.connection.execute("select current_user, current_setting('request.jwt.claims', true) as claims")
    assert settings.fetchone() == {"current_user": "flowledger_api", "claims": ""}


# -- What is refused --------------------------------------------------------------------------------------------------

FORGED = {
    "id": str(uuid4()),
    "status": "completed",
    "output_state": {"result": "mine"},
    "error_message": "none",
    "error_stack": "none",
    "error_type": "none",
    "started_at": "2026-01-01",
    "completed_at": "2026-01-01",
    "duration_ms": 1,
    "token_count": 0,
    "cost_usd": 0,
    "execution_mode": "scheduled",
}
OWN = {"flow_id", "execution_key", "input_state", "board_meeting_id", "executed_by", "metadata"}


def test_the_forged_columns_here_are_all_that_a_user_may_not_say(owner, flow):
    known = owner.execute("select attname from pg_attribute where attrelid = %s::regclass and attnum > 0", [TABLE])
    assert {one["attname"] for one in known} == FORGED.keys() | OWN


@pytest.mark.parametrize("column", FORGED)
def test_a_column_that_is_not_the_users_to_say_is_refused(rest, flow, column):
    for value in (FORGED[column], None):
        code, message = refused(lambda value=value: rest.insert(TABLE, new(flow, **{column: value})))
        assert (code, message) == (DENIED, f"permission denied for table {TABLE}")
    assert rest.select(TABLE, count=True).count == 0


@pytest.mark.parametrize("by", [BOB, None])
def test_a_row_in_another_users_name_or_in_nobodys_is_refused(rest, flow, by):
    code, message = refused(lambda: rest.insert(TABLE, new(flow, executed_by=by)))
    assert code == DENIED
    assert message.startswith("new row violates row-level security policy")


def test_one_forged_row_among_several_refuses_all(rest, flow):
    assert refused(lambda: rest.insert(TABLE, [new(flow), new(flow, executed_by=BOB)]))[0] == DENIED
    assert rest.select(TABLE).body == []


def test_rows_are_neither_changed_nor_deleted_nor_merged(rest, owner, flow):
    (born,) = rest.insert(TABLE, new(flow)).body
    mine = ("id", "eq", born["id"])
    before = row(owner, born["id"])
    for ask in (
        lambda: rest.update(TABLE, {"status": "completed"}, mine),
        lambda: rest.update(TABLE, {"metadata": {}}, mine),
        # Without a filter and without an answer, no column is read that a policy could look at.
        lambda: rest.update(TABLE, {"metadata": {}}, returning=False),
        lambda: rest.delete(TABLE, mine),
        lambda: rest.delete(TABLE),
        lambda: rest.insert(
            TABLE, new(flow, execution_key=born["execution_key"]), on_conflict="execution_key", merge=True
        ),
        lambda: rest.insert(TABLE, new(flow), on_conflict="execution_key", merge=True),
    ):
        assert refused(ask) == (DENIED, f"permission denied for table {TABLE}")
    assert row(owner, born["id"]) == before


def test_a_key_that_somebody_else_has_tells_nothing_of_them(rest, rest_of_bob, flow):
    wanted = new(flow)
    rest.insert(TABLE, wanted)
    his = {**wanted, "executed_by": BOB}
    assert rest_of_bob.insert(TABLE, his, on_conflict="execution_key").body == []
    assert refused(lambda: rest_of_bob.insert(TABLE, his))[0] == "23505"
    assert rest_of_bob.select(TABLE).body == []


def test_functions_and_tables_that_are_not_for_users_are_refused(rest, flow):
    inside = PostgREST(rest.connection, ALICE, schema="flowledger")
    types = {"flow": "uuid", "reason": "text"}
    code, message = refused(lambda: inside.rpc("pause_flow", types, {"flow": flow}, scalar=True))
    assert (code, message) == (DENIED, "permission denied for function pause_flow")
    for table in ("every_execution", "queue", "leases", "budgets", "settings", "flow_controls"):
        code, message = refused(lambda table=table: inside.select(table))
        assert code == DENIED
        assert message.startswith("permission denied for ")


def test_nobody_reads_and_starts_nothing(rest, flow):
    nobody = PostgREST(rest.connection, None, role="anon")
    for ask in (
        lambda: nobody.select(TABLE),
        lambda: nobody.select("crewai_flows"),
        lambda: nobody.insert(TABLE, new(flow)),
        lambda: PostgREST(rest.connection, None, "anon", "flowledger").rpc(
            "kickoff", FUNCTIONS["kickoff"], {"flow_key": "FLOW"}
        ),
    ):
        assert refused(ask)[0] == DENIED


# -- What the docs say ------------------------------------------------------------------------------------------------


def written(page: str) -> dict[str, Any]:
    """The functions of the page's Python blocks."""
    path = DOCS / "how-to" / page
    functions: dict[str, Any] = {}
    for block in blocks_of(path, path.read_text()):
        if block.kind == "python":
            exec(block.text, functions)
    return functions


def test_the_functions_in_the_docs_do_what_they_say(rest, worker, flow):
    client, docs = Client(rest), written("postgrest.md")
    born = docs["start"](client, "FLOW", {"topic": "x"})
    assert (born["executed_by"], born["metadata"]["ticket"]) == (str(ALICE), "SALES-7")
    held = claim(worker, flow)[0]
    finish(worker, held["execution_id"], held["fence"], output={"result": "done"})
    assert docs["result"](client, born["id"]) == "done"
    second = docs["start_by_name"](client, "FLOW", {})
    assert [one["id"] for one in docs["recent"](client)] == [second["id"], born["id"]]
    assert [one["id"] for one in docs["recent"](client, 1)] == [second["id"]]
    assert docs["cancel"](client, second["id"]) == "cancelled"
    with pytest.raises(RuntimeError, match="cancelled: cancelled before it started"):
        docs["result"](client, second["id"])


def test_the_functions_on_supabases_page_do_what_they_say(rest, flow):
    client, docs = Client(rest), written("supabase.md")
    for name in ("start", "start_by_name"):
        assert docs[name](client, "FLOW", {"topic": "x"})["status"] == "pending"


def test_what_the_docs_call_refused_is_what_the_messages_say(rest, flow):
    """The checker of the docs finds what it should: a message that is not there."""
    page = (DOCS / "how-to" / "postgrest.md").read_text()
    messages = {
        refused(lambda: rest.insert(TABLE, new(flow, status="completed")))[1],
        refused(lambda: rest.insert(TABLE, new(flow, executed_by=BOB)))[1].partition(" for table")[0],
    }
    assert {message for message in messages if f"`{message}" not in page} == set()
    assert "`permission denied for table of_nobody`" not in page
