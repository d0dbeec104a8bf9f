"""`check` names every planted difference, and none where there is none."""

from __future__ import annotations

import psycopg
import pytest

from flowledger.database import check

LEDGER = "public.crewai_flow_executions"

# What is done behind the schema's back -> kind, object and fact that must be named.
PLANTED = [
    # Row-level security and policies
    (f"alter table {LEDGER} disable row level security", "table", LEDGER, "row_security"),
    (f"alter table {LEDGER} force row level security", "table", LEDGER, "row_security_forced"),
    (f"drop policy executions_read_own on {LEDGER}", "policy", f"{LEDGER}.executions_read_own", None),
    (f"create policy extra on {LEDGER} for select using (true)", "policy", f"{LEDGER}.extra", None),
    (f"alter policy executions_read_own on {LEDGER} using (true)", "policy", f"{LEDGER}.executions_read_own", "using"),
    (
        f"alter policy executions_create on {LEDGER} with check (true)",
        "policy",
        f"{LEDGER}.executions_create",
        "with_check",
    ),
    (f"alter policy executions_read_own on {LEDGER} to anon", "policy", f"{LEDGER}.executions_read_own", "roles"),
    # Grants
    (f"grant update on {LEDGER} to authenticated", "grant", f"table {LEDGER} to authenticated", "privileges"),
    (f"grant select on {LEDGER} to anon", "grant", f"table {LEDGER} to anon", None),
    (f"grant select on {LEDGER} to public", "grant", f"table {LEDGER} to public", None),
    (f"grant insert (status) on {LEDGER} to authenticated", "grant", f"column {LEDGER}.status to authenticated", None),
    (
        f"revoke insert (metadata) on {LEDGER} from authenticated",
        "grant",
        f"column {LEDGER}.metadata to authenticated",
        None,
    ),
    (
        f"grant select on {LEDGER} to service_role with grant option",
        "grant",
        f"table {LEDGER} to service_role",
        "privileges",
    ),
    ("grant usage on sequence flowledger.fences to anon", "grant", "sequence flowledger.fences to anon", None),
    ("grant create on schema flowledger to authenticated", "grant", "schema flowledger to authenticated", "privileges"),
    (
        "grant execute on function flowledger.reap(interval, integer) to public",
        "grant",
        "function flowledger.reap(grace interval, most integer) to public",
        None,
    ),
    (
        "grant select on flowledger.every_execution to authenticated",
        "grant",
        "view flowledger.every_execution to authenticated",
        None,
    ),
    # Triggers
    (
        f"alter table {LEDGER} disable trigger execution_duration_calculator",
        "trigger",
        f"{LEDGER}.execution_duration_calculator",
        "enabled",
    ),
    (f"drop trigger flow_execution_counter on {LEDGER}", "trigger", f"{LEDGER}.flow_execution_counter", None),
    (
        f"""drop trigger execution_duration_calculator on {LEDGER};
            create trigger execution_duration_calculator before update on {LEDGER} for each row
            when (new.cost_usd is null) execute function calculate_execution_duration()""",
        "trigger",
        f"{LEDGER}.execution_duration_calculator",
        "definition",
    ),
    (
        f"""drop trigger flow_execution_counter on {LEDGER};
            create trigger flow_execution_counter after insert on {LEDGER} for each statement
            execute function update_flow_execution_count()""",
        "trigger",
        f"{LEDGER}.flow_execution_counter",
        "definition",
    ),
    (
        f"create trigger spy after update on {LEDGER} for each row execute function update_flow_execution_count()",
        "trigger",
        f"{LEDGER}.spy",
        None,
    ),
    (f"create rule silence as on update to {LEDGER} do instead nothing", "rule", f"{LEDGER}.silence", None),
    # Functions
    (
        """create or replace function flowledger.is_terminal(status text) returns boolean language sql immutable
           set search_path = pg_catalog, pg_temp as 'select false'""",
        "function",
        "flowledger.is_terminal(status text)",
        "body",
    ),
    (
        "alter function public.update_flow_execution_count() security invoker",
        "function",
        "public.update_flow_execution_count()",
        "security_definer",
    ),
    (
        "alter function public.calculate_execution_duration() reset search_path",
        "function",
        "public.calculate_execution_duration()",
        "settings",
    ),
    (
        "alter function flowledger.cancel(uuid, text) set search_path = public",
        "function",
        "flowledger.cancel(execution uuid, reason text)",
        "settings",
    ),
    (
        "alter function flowledger.is_operator() volatile",
        "function",
        "flowledger.is_operator()",
        "volatility",
    ),
    ("drop function flowledger.fold_execution_counts()", "function", "flowledger.fold_execution_counts()", None),
    (
        "create function flowledger.backdoor() returns void language sql security definer as ''",
        "function",
        "flowledger.backdoor()",
        None,
    ),
    # Columns, constraints, indexes
    (
        f"""alter table {LEDGER} drop constraint crewai_flow_executions_flow_id_fkey,
            add constraint crewai_flow_executions_flow_id_fkey foreign key (flow_id)
            references public.crewai_flows (id) on delete cascade""",
        "constraint",
        f"{LEDGER}.crewai_flow_executions_flow_id_fkey",
        "definition",
    ),
    (
        f"""alter table {LEDGER} drop constraint crewai_flow_executions_status_check,
            add constraint crewai_flow_executions_status_check check (status <> '')""",
        "constraint",
        f"{LEDGER}.crewai_flow_executions_status_check",
        "definition",
    ),
    (
        """alter table flowledger.leases drop constraint deadline_is_after_claim,
           add constraint deadline_is_after_claim check (deadline_at > claimed_at) not valid""",
        "constraint",
        "flowledger.leases.deadline_is_after_claim",
        "validated",
    ),
    ("drop index public.idx_flow_exec_recent", "index", f"{LEDGER}.idx_flow_exec_recent", None),
    (
        f"drop index public.idx_flow_exec_recent; create index idx_flow_exec_recent on {LEDGER} (flow_id, started_at)",
        "index",
        f"{LEDGER}.idx_flow_exec_recent",
        "definition",
    ),
    (f"alter table {LEDGER} alter column status set default 'running'", "column", f"{LEDGER}.status", "default"),
    (f"alter table {LEDGER} alter column flow_id drop not null", "column", f"{LEDGER}.flow_id", "nullable"),
    (f"alter table {LEDGER} add column tenant uuid", "column", f"{LEDGER}.tenant", None),
    ("alter table flowledger.workers alter column slots type bigint", "column", "flowledger.workers.slots", "type"),
    (f"comment on column {LEDGER}.execution_key is null", "column", f"{LEDGER}.execution_key", "description"),
    (f"alter table {LEDGER} reset (fillfactor)", "table", LEDGER, "options"),
    # Whole objects
    ("drop table flowledger.logs cascade", "table", "flowledger.logs", None),
    ("create table flowledger.stray (id integer)", "table", "flowledger.stray", None),
    ("alter sequence flowledger.fences cycle", "sequence", "flowledger.fences", "cycles"),
    (
        f"create or replace view flowledger.every_execution as select * from {LEDGER} where cost_usd is null",
        "view",
        "flowledger.every_execution",
        "definition",
    ),
]


@pytest.fixture
def owner(database):
    with psycopg.connect(database.url("flowledger"), autocommit=True) as conn:
        yield conn


def test_a_migrated_database_has_no_differences(owner):
    assert check.differences(owner) == []


@pytest.mark.parametrize(("planted", "kind", "name", "fact"), PLANTED)
def test_a_planted_difference_is_named_with_its_remedy(owner, planted, kind, name, fact):
    with owner.transaction(force_rollback=True):
        owner.execute(planted)
        found = check.differences(owner)
    named = [one for one in found if (one.kind, one.object, one.fact) == (kind, name, fact)]
    assert named, [one.sentence for one in found]
    assert name in named[0].sentence
    assert named[0].remedy.endswith(".")


def test_a_check_is_compared_by_its_meaning_and_not_by_its_words(owner):
    """A dump and a restore give Postgres its own words back, and it answers with others."""
    name = "crewai_flow_executions_status_check"
    again = f"select pg_get_constraintdef(oid) from pg_constraint where conname = '{name}'"
    with owner.transaction(force_rollback=True):
        (first,) = owner.execute(again).fetchone()
        owner.execute(f"alter table {LEDGER} drop constraint {name}, add constraint {name} {first}".encode())
        (restored,) = owner.execute(again).fetchone()
        assert restored != first
        assert check.differences(owner) == []
        assert owner.execute("select to_regclass('pg_temp.stand_in')").fetchone() == (None,), "nothing is left behind"
        for other in (
            restored.replace("'timeout'", "'timedout'"),
            restored.replace(", ('timeout'", ", ('x'"),
            "check (true)",
        ):
            owner.execute(f"alter table {LEDGER} drop constraint {name}, add constraint {name} {other}".encode())
            (told,) = check.differences(owner)
            assert (told.object, told.fact) == (f"{LEDGER}.{name}", "definition")


def test_where_it_may_not_ask_a_reworded_check_is_told_rather_than_passed(owner):
    name = "crewai_flow_executions_status_check"
    with owner.transaction(force_rollback=True):
        (first,) = owner.execute(
            f"select pg_get_constraintdef(oid) from pg_constraint where conname = '{name}'".encode()
        ).fetchone()
        owner.execute(f"alter table {LEDGER} drop constraint {name}, add constraint {name} {first}".encode())
        owner.execute("set transaction read only")
        assert [one.fact for one in check.differences(owner)] == ["definition"]


def test_a_missing_table_is_told_once_and_not_for_each_of_its_columns(owner):
    with owner.transaction(force_rollback=True):
        owner.execute("drop table flowledger.logs")
        assert {one.kind for one in check.differences(owner)} == {"table"}


def test_remedies_that_are_statements_restore_the_schema(owner):
    plants = [planted for planted, kind, _, fact in PLANTED if (kind, fact) in _STATEMENT_REMEDIES]
    assert len(plants) >= 8
    for planted in plants:
        with owner.transaction(force_rollback=True):
            owner.execute(planted)
            for difference in check.differences(owner):
                owner.execute(difference.remedy.removeprefix("Drop it: ").removesuffix("."))
            assert check.differences(owner) == [], planted


_STATEMENT_REMEDIES = {
    ("table", "row_security"),
    ("table", "row_security_forced"),
    ("trigger", "enabled"),
    ("rule", None),
    ("constraint", "definition"),
    ("index", "definition"),
    ("column", "default"),
    ("column", "nullable"),
}
