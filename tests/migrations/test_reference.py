"""The reference document comes out of the catalog as it went into the specification, on every Postgres."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flowledger import reference
from flowledger.database import catalog, check
from flowledger.database.migrate import migrate
from flowledger.errors import InvalidInput

ROOT = Path(__file__).parent.parent.parent
REFERENCE = Path(__file__).parent / "reference" / "crewai_flow_executions.md"
PAGES = ROOT / "docs" / "reference"
SQL = ROOT / "src" / "flowledger" / "sql"

sys.path.insert(0, str(ROOT / "scripts"))
import schema as schema_script  # noqa: E402 - the script is no package

HEADER = reference.Header(
    application="EHG_Engineer - LEO Protocol Management Dashboard",
    database="dedlbzhpgkmetvhbkyzq",
    repository="/mnt/c/_EHG/EHG_Engineer/",
    purpose="Strategic Directive management, PRD tracking, retrospectives, LEO Protocol configuration",
)
GENERATED_AT = datetime(2025, 10, 28, 12, 24, 22, 172000, UTC)


def test_the_ledgers_document_equals_the_reference_byte_for_byte(plain):
    assert _document_of_ledger(plain).encode() == REFERENCE.read_bytes()


def test_the_ledgers_document_equals_the_reference_on_supabase_too(supabase):
    assert _document_of_ledger(supabase).encode() == REFERENCE.read_bytes()


def _document_of_ledger(target):
    migrate(target.conninfo)
    with target.connect() as conn:
        return reference.document(conn, "crewai_flow_executions", HEADER, GENERATED_AT)


def test_rows_are_counted_as_the_owner_sees_them_with_thousands_commas(plain):
    migrate(plain.conninfo)
    with plain.connect() as conn:
        conn.execute("insert into flowledger.settings select 's' || n, '0', '' from generate_series(1, 1233) as n")
        assert "**Rows**: 1,234\n" in reference.document(conn, "settings", HEADER, GENERATED_AT)


def test_a_difference_in_the_table_is_a_difference_in_the_document(plain):
    migrate(plain.conninfo)
    with plain.connect() as conn:
        conn.execute("alter table crewai_flow_executions alter column status drop default")
        told = reference.document(conn, "crewai_flow_executions", HEADER, GENERATED_AT)
    assert told.encode() != REFERENCE.read_bytes()


def test_a_table_that_is_not_ours_has_no_document(plain):
    with plain.connect() as conn, pytest.raises(InvalidInput):
        reference.document(conn, "crewai_flow_executions", HEADER, GENERATED_AT)


def test_the_documented_schema_is_the_database(plain):
    migrate(plain.conninfo)
    with plain.connect() as conn:
        tables = catalog.read(conn).tables
        pages = {
            f"{table.name}.md": reference.document(conn, table.full_name, schema_script.HEADER, GENERATED_AT)
            for table in tables
        }
    written = {path.name: path.read_text() for path in (PAGES / "schema").glob("*.md")}
    assert {name: schema_script.undated(text) for name, text in written.items()} == {
        name: schema_script.undated(text) for name, text in pages.items()
    }
    assert (PAGES / "database-schema-overview.md").read_text() == reference.overview(tables)


def test_the_expected_schema_is_the_database(plain):
    migrate(plain.conninfo)
    with plain.connect() as conn:
        assert check.snapshot(catalog.read(conn)) == check.expected()


def test_the_living_schema_and_the_migrations_make_the_same_database(plain):
    with plain.connect() as conn:
        living = schema_script.install_and_undo(conn)
        migrate(plain.conninfo)
        assert schema_script.told_apart(living, check.snapshot(catalog.read(conn))) == []


def test_a_change_that_only_the_schema_files_have_is_found(plain):
    with plain.connect() as conn:
        living = schema_script.install_and_undo(conn)
        migrate(plain.conninfo)
        conn.execute("alter table flowledger.queue drop column expires_at")
        told = "\n".join(schema_script.told_apart(living, check.snapshot(catalog.read(conn))))
    assert "column flowledger.queue.expires_at" in told
