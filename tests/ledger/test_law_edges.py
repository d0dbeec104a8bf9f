"""The six statuses: every step that is legal succeeds, every other is refused by the database itself."""

from __future__ import annotations

from itertools import product

import psycopg
import pytest

from flowledger.domain.status import TRANSITIONS, Status
from tests.ledger.law import born, brought_to, claim, finish, row, steps

FROZEN, ILLEGAL, IDENTITY = "FL004", "FL002", "FL003"

PAIRS = [(before, after) for before, after in product(Status, Status) if before != after]


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_a_step_succeeds_exactly_when_the_law_has_it(owner, alice, flow, before, after):
    execution = brought_to(before, owner, alice, flow)
    attempt = ("update crewai_flow_executions set status = %s where id = %s", [after, execution])
    if after in TRANSITIONS[before]:
        owner.execute(*attempt)
        assert row(owner, execution)["status"] == after
        assert steps(owner, execution)[-1][:2] == (before, after)
    else:
        with pytest.raises(psycopg.DatabaseError) as refusal:
            owner.execute(*attempt)
        assert refusal.value.sqlstate == (FROZEN if before.is_terminal else ILLEGAL)
        assert row(owner, execution)["status"] == before


@pytest.mark.parametrize("before", list(Status))
def test_no_status_becomes_null(owner, alice, flow, before):
    execution = brought_to(before, owner, alice, flow)
    with pytest.raises(psycopg.DatabaseError) as refusal:
        owner.execute("update crewai_flow_executions set status = null where id = %s", [execution])
    assert refusal.value.sqlstate == (FROZEN if before.is_terminal else ILLEGAL)


def test_the_words_and_the_database_have_the_same_edges(owner):
    legal = owner.execute(
        """select a.status as before, b.status as after
           from unnest(%(all)s::text[]) as a (status) cross join unnest(%(all)s::text[]) as b (status)
           where flowledger.edge_is_legal(a.status, b.status)""",
        {"all": [status.value for status in Status]},
    ).fetchall()
    assert {(edge["before"], edge["after"]) for edge in legal} == {
        (before.value, after.value) for before, afters in TRANSITIONS.items() for after in afters
    }
    terminal = owner.execute(
        "select status from unnest(%s::text[]) as s (status) where flowledger.is_terminal(status)",
        [[status.value for status in Status]],
    ).fetchall()
    assert {one["status"] for one in terminal} == {status.value for status in Status if status.is_terminal}


@pytest.mark.parametrize("status", [Status.PENDING, Status.RUNNING])
@pytest.mark.parametrize(
    "change",
    [
        "id = gen_random_uuid()",
        "flow_id = (select id from crewai_flows where flow_key = 'OTHER')",
        "execution_key = 'other'",
        "executed_by = gen_random_uuid()",
        "executed_by = null",
        "execution_mode = 'scheduled'",
        "execution_mode = null",
        """input_state = '{"other": 1}'""",
        "input_state = null",
    ],
)
def test_what_identifies_an_execution_never_changes(owner, alice, flow, status, change):
    owner.execute("insert into crewai_flows (flow_key, flow_name, flow_definition) values ('OTHER', 'Other', '{}')")
    execution = brought_to(status, owner, alice, flow, input_state={"topic": "x"})
    with pytest.raises(psycopg.DatabaseError) as refusal:
        owner.execute(f"update crewai_flow_executions set {change} where id = '{execution}'".encode())
    assert refusal.value.sqlstate == IDENTITY


@pytest.mark.parametrize("status", [status for status in Status if status.is_terminal])
def test_a_terminal_row_stays_byte_identical(owner, alice, flow, status):
    execution = brought_to(status, owner, alice, flow)
    whole = "select md5(e::text) as hash, xmin::text as written from crewai_flow_executions as e where id = %s"
    before = owner.execute(whole, [execution]).fetchone()
    columns = [name for name in row(owner, execution) if name != "id"]
    assert len(columns) == 17
    for column in columns:
        value = {"status": "'running'", "flow_id": "gen_random_uuid()"}.get(column) or _another(owner, column)
        with pytest.raises(psycopg.DatabaseError) as refusal:
            owner.execute(f"update crewai_flow_executions set {column} = {value} where id = '{execution}'".encode())
        assert refusal.value.sqlstate == FROZEN, column
    owner.execute("update crewai_flow_executions set status = status where id = %s", [execution])
    assert owner.execute(whole, [execution]).fetchone() == before


def _another(owner, column):
    kind = owner.execute(
        "select atttypid::regtype::text as type from pg_attribute"
        " where attrelid = 'crewai_flow_executions'::regclass and attname = %s",
        [column],
    ).fetchone()["type"]
    return {
        "uuid": "gen_random_uuid()",
        "jsonb": """'{"other": 1}'""",
        "timestamp with time zone": "now() + interval '1 day'",
        "integer": "41",
        "numeric": "41",
    }.get(kind, "'scheduled'" if column == "execution_mode" else "'other'")


@pytest.mark.parametrize("column", ["cost_usd = -1", "cost_usd = 'NaN'", "token_count = -1"])
def test_cost_and_tokens_are_counted_from_zero_up(owner, alice, flow, column):
    execution = brought_to(Status.RUNNING, owner, alice, flow)
    for also in ("", ", status = 'completed'"):
        with pytest.raises(psycopg.DatabaseError) as refusal:
            owner.execute(f"update crewai_flow_executions set {column}{also} where id = '{execution}'".encode())
        assert refusal.value.sqlstate == ILLEGAL


def test_an_execution_that_ran_has_its_duration_and_one_that_never_started_has_none(owner, alice, worker, flow):
    ran = born(alice, flow)
    (held,) = claim(worker, flow)
    assert finish(worker, ran, held["fence"], began=5) == "ok"
    told = row(owner, ran)
    assert told["completed_at"] >= told["started_at"]
    assert told["duration_ms"] >= 0

    refused = brought_to(Status.FAILED, owner, alice, flow)
    assert row(owner, refused)["completed_at"] is not None
    assert row(owner, refused)["duration_ms"] is None
