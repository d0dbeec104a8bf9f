"""Migrations: from nothing, from a document's tables, on a platform; and every refusal leaves all as it was."""

from __future__ import annotations

import threading
from pathlib import Path

import psycopg
import pytest

from flowledger.database import catalog, check
from flowledger.database import migrate as migrating
from flowledger.database.migrate import Migration, export_supabase, migrate, migrations, require_current, version
from flowledger.errors import (
    DatabaseUnreachable,
    MigrationChanged,
    PermissionRefused,
    SchemaNotOurs,
    SchemaTooNew,
    SchemaTooOld,
    ServerTooOld,
)

DOCUMENT_TABLES = (Path(__file__).parent / "document_tables.sql").read_text()
VERSIONS = [1, 2, 3, 4, 5, 6]


def one(target, statement, *values):
    with target.connect() as conn:
        return conn.execute(statement, values).fetchone()[0]


# -- From nothing -----------------------------------------------------------------------------------------------------


def test_a_plain_owner_installs_everything_once(plain):
    assert [migration.version for migration in migrate(plain.conninfo)] == VERSIONS
    assert migrate(plain.conninfo) == []
    with plain.connect() as conn:
        assert version(conn) == VERSIONS[-1]
        require_current(conn)
        assert check.differences(conn) == []
    noted = one(
        plain, "select array_agg(sha256 || ' ' || applied_by order by version) from flowledger.schema_migrations"
    )
    assert noted == [f"{migration.sha256} plain_owner" for migration in migrations()]


def test_an_owner_whose_schema_public_is_the_superusers_installs_as_on_postgres_14(plain):
    plain.execute_as_superuser("alter schema public owner to superuser", "grant create on schema public to public")
    migrate(plain.conninfo)
    with plain.connect() as conn:
        assert check.differences(conn) == []


def test_two_processes_that_migrate_at_once_apply_each_migration_once(plain):
    applied: list[list[Migration]] = []
    threads = [threading.Thread(target=lambda: applied.append(migrate(plain.conninfo))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(migration.version for one in applied for migration in one) == VERSIONS


def test_a_migration_that_fails_leaves_nothing(plain, monkeypatch):
    broken = Migration(VERSIONS[-1] + 1, "broken", "create table flowledger.half (); select 1 / 0;")
    monkeypatch.setattr(migrating, "migrations", lambda: (*migrations(), broken))
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(plain.conninfo)
    with plain.connect() as conn:
        assert version(conn) == VERSIONS[-1]
        assert check.differences(conn) == []


def test_pasted_migrations_count_and_may_be_repeated(plain):
    with plain.connect() as conn:
        assert version(conn) == 0
        with pytest.raises(SchemaTooOld):
            require_current(conn)
        for migration in (*migrations(), *migrations()):
            conn.execute(migration.text.encode())
        assert version(conn) == VERSIONS[-1]
        assert conn.execute("select count(sha256) from flowledger.schema_migrations").fetchone() == (0,)
    assert migrate(plain.conninfo) == []
    noted = one(plain, "select array_agg(sha256 order by version) from flowledger.schema_migrations")
    assert noted == [migration.sha256 for migration in migrations()]
    with plain.connect() as conn:
        assert check.differences(conn) == []


def test_repeated_migrations_repair_what_they_can(plain):
    migrate(plain.conninfo)
    with plain.connect() as conn:
        conn.execute("drop policy executions_read_own on crewai_flow_executions")
        conn.execute("grant all on crewai_flow_executions to anon")
        conn.execute("alter function flowledger.cancel(uuid, text) security invoker")
        assert len(check.differences(conn)) == 3
        for migration in migrations():
            conn.execute(migration.text.encode())
        assert check.differences(conn) == []


# -- On Supabase ------------------------------------------------------------------------------------------------------


def test_a_supabase_project_takes_the_schema_and_its_platform_stays_as_it_was(supabase):
    platform = """
      select array_agg(told order by told) from (
        select nspname || nspowner::regrole || coalesce(nspacl::text, '') from pg_namespace
        where nspname in ('auth', 'public')
        union all select oid::regprocedure || prosrc || coalesce(proacl::text, '') from pg_proc
        where pronamespace = 'auth'::regnamespace
        union all select rolname || rolsuper || rolinherit || rolbypassrls || rolcanlogin from pg_roles
      ) as platform (told)"""
    before = one(supabase, platform)
    migrate(supabase.conninfo)
    assert one(supabase, platform) == before
    with supabase.connect() as conn:
        assert check.differences(conn) == []


def test_a_supabase_user_starts_a_flow_with_a_plain_insert_and_sees_only_their_own(supabase):
    migrate(supabase.conninfo)
    ada, bob = "a" * 8 + "-0000-0000-0000-000000000001", "b" * 8 + "-0000-0000-0000-000000000002"
    flow = one(
        supabase,
        "insert into crewai_flows (flow_key, flow_name, flow_definition, status)"
        " values ('FLOW', 'Flow', '{}', 'active') returning id",
    )
    with supabase.connect("authenticator") as conn:
        conn.execute("set role authenticated")
        conn.execute("select set_config('request.jwt.claims', %s, false)", [f'{{"sub": "{ada}"}}'])
        conn.execute(
            "insert into crewai_flow_executions (flow_id, execution_key, executed_by) values (%s, 'FLOW-1', %s)",
            [flow, ada],
        )
        assert conn.execute("select execution_key from crewai_flow_executions").fetchall() == [("FLOW-1",)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("truncate crewai_flow_executions")
        conn.execute("select set_config('request.jwt.claims', %s, false)", [f'{{"sub": "{bob}"}}'])
        assert conn.execute("select count(*) from crewai_flow_executions").fetchone() == (0,)
    with supabase.connect("authenticator") as conn:
        conn.execute("set role service_role")
        assert conn.execute("select count(*) from flowledger.every_execution").fetchone() == (1,)


def test_the_exported_files_are_the_migrations_byte_for_byte(tmp_path):
    paths = export_supabase(tmp_path / "supabase" / "migrations")
    assert [path.name for path in paths] == [
        "20261123000001_flowledger_0001.sql",
        "20261123000002_flowledger_0002.sql",
        "20261127000003_flowledger_0003.sql",
        "20261127000004_flowledger_0004.sql",
        "20261127000005_flowledger_0005.sql",
        "20261127000006_flowledger_0006.sql",
    ]
    assert [path.read_bytes() for path in paths] == [migration.text.encode() for migration in migrations()]
    assert export_supabase(tmp_path / "supabase" / "migrations") == paths


def test_exported_files_install_a_supabase_project_as_its_tool_applies_it(supabase, tmp_path):
    with supabase.connect() as conn:
        for path in export_supabase(tmp_path):
            conn.execute(path.read_bytes())
        assert version(conn) == VERSIONS[-1]
        assert check.differences(conn) == []


# -- Adoption ---------------------------------------------------------------------------------------------------------


def test_tables_whose_document_is_equal_are_adopted_with_their_rows(plain):
    _install_document_tables(plain)
    before = one(plain, "select array_agg(e::text order by e.id) from crewai_flow_executions as e")
    assert [migration.version for migration in migrate(plain.conninfo)] == VERSIONS
    with plain.connect() as conn:
        assert check.differences(conn) == []
        counts = conn.execute("select flow_key, execution_count from crewai_flows order by flow_key").fetchall()
        waiting = conn.execute("select count(*) from flowledger.queue").fetchone()
    assert one(plain, "select array_agg(e::text order by e.id) from crewai_flow_executions as e") == before
    assert counts == [("IDLE", 0), ("OLD", 3)]
    # Nobody knows whether an old pending row is still meant.
    assert waiting == (0,)


def test_a_deleted_flow_takes_no_adopted_execution_with_it(plain):
    _install_document_tables(plain)
    migrate(plain.conninfo)
    with plain.connect() as conn, pytest.raises(psycopg.errors.ForeignKeyViolation):
        conn.execute("delete from crewai_flows where flow_key = 'OLD'")


DEVIATIONS = [
    ("alter table crewai_flow_executions alter column cost_usd type numeric(12, 4)", "cost_usd: type"),
    ("alter table crewai_flow_executions alter column status drop default", "status: default"),
    ("alter table crewai_flow_executions alter column flow_id drop not null", "flow_id: nullable"),
    ("alter table crewai_flow_executions add column tenant uuid", "tenant"),
    ("alter table crewai_flow_executions drop column error_stack", "error_stack"),
    ("drop index idx_flow_exec_recent", "idx_flow_exec_recent"),
    ("create policy everybody on crewai_flow_executions for select using (true)", "everybody"),
    ("alter table crewai_flow_executions disable row level security", "row_security"),
    ("drop trigger flow_execution_counter on crewai_flow_executions", "flow_execution_counter"),
    ("alter table crewai_flow_executions drop constraint crewai_flow_executions_status_check", "status_check"),
    ("comment on column crewai_flow_executions.execution_key is 'other'", "description"),
    ("create policy everybody on crewai_flows for select using (true)", "everybody"),
    ("alter table crewai_flows drop column tags", "tags"),
    ("create schema flowledger create table flowledger.queue (id integer)", "queue"),
    (
        """create table mine (id integer); create trigger theirs after insert on mine
           for each row execute function update_flow_execution_count()""",
        "theirs on mine",
    ),
]


def test_each_deviation_from_the_document_is_named(plain):
    _install_document_tables(plain)
    with plain.connect() as conn:
        assert check.strangers(conn) == []
        for change, named in DEVIATIONS:
            with conn.transaction(force_rollback=True):
                conn.execute(change.encode())
                assert [sentence for sentence in check.strangers(conn) if named in sentence], change


def test_tables_that_deviate_are_refused_and_nothing_is_changed(plain):
    _install_document_tables(plain)
    with plain.connect() as conn:
        conn.execute("alter table crewai_flow_executions alter column status drop default")
        before = check.snapshot(catalog.read(conn))
    with pytest.raises(SchemaNotOurs) as refusal:
        migrate(plain.conninfo)
    assert refusal.value.differences == (
        "column public.crewai_flow_executions.status: default is nothing, expected 'pending'::character varying",
    )
    with plain.connect() as conn:
        assert check.snapshot(catalog.read(conn)) == before
        assert version(conn) == 0


def _install_document_tables(target):
    target.execute_as_superuser(
        "create schema auth",
        "create function auth.uid() returns uuid language sql stable as"
        " $$ select nullif(current_setting('request.jwt.claim.sub', true), '')::uuid $$",
        "grant usage on schema auth to public",
    )
    with target.connect() as conn:
        conn.execute(DOCUMENT_TABLES.encode())


# -- Refusals ---------------------------------------------------------------------------------------------------------


def test_a_migration_that_reads_differently_than_it_did_is_refused(plain, monkeypatch):
    migrate(plain.conninfo)
    changed = Migration(1, "initial", migrations()[0].text + "\n")
    known = (changed, *migrations()[1:])
    monkeypatch.setattr(migrating, "migrations", lambda: known)
    with pytest.raises(MigrationChanged) as refusal:
        migrate(plain.conninfo)
    assert refusal.value.name == "0001_initial.sql"


def test_a_database_of_a_later_version_is_refused(plain):
    migrate(plain.conninfo)
    with plain.connect() as conn:
        conn.execute("insert into flowledger.schema_migrations (version, name) values (7, 'later')")
        with pytest.raises(SchemaTooNew):
            require_current(conn)
    with pytest.raises(SchemaTooNew) as refusal:
        migrate(plain.conninfo)
    assert (refusal.value.found, refusal.value.known) == (7, VERSIONS[-1])


def test_a_server_that_is_too_old_is_refused(plain, monkeypatch):
    monkeypatch.setattr(migrating, "OLDEST_SERVER", 99)
    with pytest.raises(ServerTooOld) as refusal:
        migrate(plain.conninfo)
    assert refusal.value.found == str(plain.server.major)
    with plain.connect() as conn:
        assert version(conn) == 0


def test_a_role_that_may_not_create_is_told_so(plain):
    plain.execute_as_superuser("revoke create on database plain from public", "create role guest login")
    with pytest.raises(PermissionRefused):
        migrate(plain.conninfo_of("guest"))
    plain.execute_as_superuser("drop role guest")


def test_a_server_that_does_not_answer_is_named(tmp_path):
    with pytest.raises(DatabaseUnreachable):
        migrate(f"host={tmp_path} dbname=nowhere")
