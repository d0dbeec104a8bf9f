"""Births and who sees them: what a user may insert, what they see, and that nothing else is granted."""

from __future__ import annotations

import re
from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.ledger.law import ALICE, BOB, born, claim, row, steps

NOT_FRESH, QUEUE_FULL, NO_SUCH_FLOW = "FL001", "FL006", "FL005"
DENIED, UNKNOWN_KEY = "42501", "23503"


def refused(action, *arguments, **keywords) -> psycopg.DatabaseError:
    with pytest.raises(psycopg.DatabaseError) as refusal:
        action(*arguments, **keywords)
    return refusal.value


# -- Births -----------------------------------------------------------------------------------------------------------


def test_a_plain_insert_is_a_pending_execution_that_waits_in_the_queue(owner, alice, flow):
    execution = born(alice, flow, input_state={"topic": "tea"}, metadata={"timeout_seconds": 5})
    told = row(owner, execution)
    assert (told["status"], told["execution_mode"], told["executed_by"]) == ("pending", "manual", ALICE)
    assert steps(owner, execution) == [(None, "pending", str(ALICE))]
    assert owner.execute("select execution_id, flow_id from flowledger.queue").fetchall() == [
        {"execution_id": execution, "flow_id": flow}
    ]


@pytest.mark.parametrize(
    "outcome",
    [{"status": status} for status in (None, "running", "completed", "failed", "cancelled", "timeout")]
    + [
        {"execution_mode": None},
        {"output_state": {}},
        {"error_message": "x"},
        {"error_stack": "x"},
        {"error_type": "X"},
        {"completed_at": "2026-01-01"},
        {"duration_ms": 1},
        {"token_count": 0},
        {"cost_usd": 0},
    ],
    ids=str,
)
def test_nobody_is_born_with_an_outcome_not_even_by_the_owner(owner, flow, outcome):
    assert refused(born, owner, flow, **outcome).sqlstate == NOT_FRESH
    assert owner.execute("select count(*) as n from flowledger.queue").fetchone()["n"] == 0


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        ["timeout_seconds"],
        {"timeout_seconds": "60"},
        {"timeout_seconds": None},
        {"timeout_seconds": 0},
        {"timeout_seconds": -1},
        {"timeout_seconds": 1e-9},
        {"timeout_seconds": 2147484},
    ],
    ids=str,
)
def test_bad_metadata_is_refused_at_birth(alice, flow, metadata):
    assert refused(born, alice, flow, metadata=metadata).sqlstate == NOT_FRESH


def test_a_timeout_beyond_every_number_type_is_refused_like_any_other(alice, flow):
    insert = """insert into crewai_flow_executions (flow_id, execution_key, executed_by, metadata)
                values (%s, 'k', auth.uid(), '{"timeout_seconds": 1e400}')"""
    assert refused(alice.execute, insert, [flow]).sqlstate == NOT_FRESH


def test_the_shortest_and_the_longest_timeout_can_be_claimed(alice, worker, flow):
    for seconds in (0.001, 2147483):
        born(alice, flow, metadata={"timeout_seconds": seconds})
    assert [one["timeout_seconds"] for one in claim(worker, flow)] == [0.001, 2147483]


def test_inputs_are_named(alice, flow):
    insert = """insert into crewai_flow_executions (flow_id, execution_key, executed_by, input_state)
                values (%s, 'k', auth.uid(), %s)"""
    for value in ([1], "text", 1):
        assert refused(alice.execute, insert, [flow, Jsonb(value)]).sqlstate == NOT_FRESH


def test_the_queue_is_bounded(owner, alice, worker, flow):
    worker.execute("update flowledger.settings set value = '3' where name = 'queue_limit'")
    for _ in range(3):
        born(alice, flow)
    refusal = refused(born, alice, flow)
    assert (refusal.sqlstate, refusal.diag.message_detail) == (QUEUE_FULL, "3")
    claim(worker, flow, slots=1)
    born(alice, flow)
    worker.execute("update flowledger.settings set value = '0' where name = 'queue_limit'")
    assert refused(born, alice, flow).sqlstate == QUEUE_FULL


# -- Privileges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("id", "gen_random_uuid()"),
        ("status", "'pending'"),
        ("execution_mode", "'manual'"),
        ("started_at", "now()"),
        ("completed_at", "now()"),
        ("duration_ms", "1"),
        ("output_state", "'{}'"),
        ("error_message", "''"),
        ("error_stack", "''"),
        ("error_type", "''"),
        ("token_count", "1"),
        ("cost_usd", "1"),
    ],
)
def test_a_user_cannot_even_name_what_the_ledger_decides(alice, flow, column, value):
    insert = f"""insert into crewai_flow_executions (flow_id, execution_key, executed_by, {column})
                 values ('{flow}', 'k', auth.uid(), {value})"""
    assert refused(alice.execute, insert.encode()).sqlstate == DENIED
    assert refused(alice.execute, f"update crewai_flow_executions set {column} = {value}".encode()).sqlstate == DENIED


@pytest.mark.parametrize(
    "statement",
    [
        "delete from crewai_flow_executions",
        "truncate crewai_flow_executions",
        "select * from flowledger.queue",
        "select * from flowledger.leases",
        "select * from flowledger.workers",
        "select * from flowledger.settings",
        "select * from flowledger.uncounted_executions",
        "select * from flowledger.every_execution",
        "insert into flowledger.queue (execution_id, flow_id) values (gen_random_uuid(), gen_random_uuid())",
        "select nextval('flowledger.fences')",
        "select flowledger.reap('0')",
        "select flowledger.claim(gen_random_uuid(), '{}', '{}', 1, '1 s')",
        "select flowledger.renew(gen_random_uuid(), '{}', '{}', '1 s')",
        "select flowledger.finish(gen_random_uuid(), 1, 'completed', null, null, null, null, null, null, null, null)",
        "select flowledger.fold_execution_counts()",
        "select flowledger.remember_flow('K', 'K', '', '{}', '')",
        "select flowledger.discharge_worker(gen_random_uuid())",
        "update crewai_flows set status = 'active'",
        "insert into crewai_flows (flow_key, flow_name, flow_definition, status) values ('k', 'k', '{}', 'active')",
        "create table public.mine (id integer)",
        "create function flowledger.mine() returns void language sql as ''",
    ],
)
def test_users_and_strangers_may_do_nothing_else(alice, as_user, statement):
    assert refused(alice.execute, statement).sqlstate == DENIED
    assert refused(as_user(role="anon").execute, statement).sqlstate == DENIED


def test_a_temporary_type_of_a_user_never_runs_with_the_owners_rights(alice, owner, flow):
    alice.execute("""
      create temporary table spied (who text);
      create function pg_temp.spy(value pg_catalog.text) returns boolean language plpgsql as
        $$ begin insert into pg_temp.spied values (current_user); return true; end $$;
      create domain pg_temp.text as pg_catalog.text check (pg_temp.spy(value));
      grant all on pg_temp.spied to public""")
    alice.execute("select flowledger.kickoff('FLOW')")
    alice.execute("select flowledger.cancel(id) from crewai_flow_executions")
    assert alice.execute("select who from spied where who <> 'authenticated'").fetchall() == []


# -- Visibility -------------------------------------------------------------------------------------------------------


def test_each_user_sees_their_own_executions_and_what_belongs_to_them(alice, bob, worker, flow):
    hers, his = born(alice, flow), born(bob, flow)
    for table in ("crewai_flow_executions", "flowledger.transitions"):
        column = "id" if table == "crewai_flow_executions" else "execution_id"
        for user, own in ((alice, hers), (bob, his)):
            seen = user.execute(f"select {column} as id from {table}".encode()).fetchall()
            assert [one["id"] for one in seen] == [own]
    everything = worker.execute("select count(*) as n from flowledger.every_execution").fetchone()
    assert everything["n"] == 2


def test_cancel_wishes_timeline_and_logs_follow_their_execution(alice, bob, owner, worker, flow):
    execution = born(alice, flow)
    (held,) = claim(worker, flow)
    alice.execute("select flowledger.cancel(%s)", [execution])
    one = [[execution], [held["fence"]], [1], ["2026-01-01"]]
    worker.execute("select flowledger.append_timeline(%s, %s, %s, %s, '{k}', '{n}', %s)", [*one, [Jsonb({})]])
    worker.execute("select flowledger.append_logs(%s, %s, %s, %s, '{stdout}', '{text}')", one)
    for table in ("cancel_wishes", "timeline", "logs"):
        count = f"select count(*) as n from flowledger.{table}".encode()
        assert (alice.execute(count).fetchone()["n"], bob.execute(count).fetchone()["n"]) == (1, 0), table


def test_nobody_starts_an_execution_in_anothers_name(alice, flow):
    assert refused(born, alice, flow, executed_by=BOB).sqlstate == DENIED
    assert refused(born, alice, flow, executed_by=None).sqlstate == DENIED


def test_strangers_and_garbage_see_nothing(as_user, alice, flow):
    born(alice, flow)
    stranger = as_user(role="anon")
    assert refused(stranger.execute, "select * from crewai_flow_executions").sqlstate == DENIED
    nobody = as_user()
    assert nobody.execute("select count(*) as n from crewai_flow_executions").fetchone()["n"] == 0
    for garbage in ("not-a-uuid", "'; drop table crewai_flows; --", "a11ce000"):
        assert refused(as_user(garbage).execute, "select * from crewai_flow_executions").sqlstate == "22P02"


def test_a_flow_one_may_not_see_is_answered_exactly_like_an_unknown_one(alice, bob):
    statement = "insert into crewai_flows (flow_key, flow_name, flow_definition, created_by) values (%s, 'x', '{}', %s)"
    bob.execute(statement, ["HIS-DRAFT", BOB])
    (his,) = bob.execute("select id from crewai_flows where flow_key = 'HIS-DRAFT'").fetchall()
    assert alice.execute("select id from crewai_flows").fetchall() == []
    unknown = uuid4()
    told = {}
    for flow in (his["id"], unknown):
        refusal = refused(born, alice, flow)
        facts = refusal.diag
        told[flow] = (
            refusal.sqlstate,
            facts.message_primary,
            facts.message_detail.replace(str(flow), "FLOW"),
            facts.schema_name,
            facts.table_name,
            facts.constraint_name,
        )
    assert told[his["id"]] == told[unknown]
    assert told[unknown][0] == UNKNOWN_KEY
    # Nor does its author start it: no worker runs a draft, and it would wait for ever.
    assert refused(born, bob, his["id"]).sqlstate == UNKNOWN_KEY


# -- kickoff and keys -------------------------------------------------------------------------------------------------


def test_kickoff_starts_an_execution_in_one_line(alice, flow):
    started = alice.execute("""select (flowledger.kickoff('FLOW', '{"topic": "tea"}')).*""").fetchone()
    assert (started["flow_id"], started["executed_by"], started["status"]) == (flow, ALICE, "pending")
    assert started["input_state"] == {"topic": "tea"}
    assert re.fullmatch(r"FLOW-\d{8}T\d{9}Z-[0-9A-HJKMNP-TV-Z]{16}", started["execution_key"])


def test_kickoff_of_an_unknown_flow_names_it(alice):
    refusal = refused(alice.execute, "select flowledger.kickoff('NO-SUCH')")
    assert (refusal.sqlstate, refusal.diag.message_primary) == (NO_SUCH_FLOW, "there is no flow NO-SUCH")


@pytest.mark.parametrize("length", [1, 62, 63, 64, 100])
def test_every_execution_key_fits_and_none_repeats(alice, length):
    flow_key = ("LONG-FLOW-" * 10)[:length]
    keys = [
        one["key"]
        for one in alice.execute(
            "select flowledger.execution_key(%s) as key from generate_series(1, 2000)", [flow_key]
        ).fetchall()
    ]
    assert len(set(keys)) == 2000
    assert max(map(len, keys)) <= 100
    beginning = flow_key if length <= 63 else rf"{flow_key[:46]}~[0-9a-f]{{16}}"
    assert all(re.fullmatch(beginning + r"-\d{8}T\d{9}Z-[0-9A-HJKMNP-TV-Z]{16}", key) for key in keys)
    letters = {letter for key in keys for letter in key[-16:]}
    assert letters == set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")
