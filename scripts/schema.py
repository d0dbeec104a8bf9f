"""Writes what follows from `sql/schema`: the first migration, the expected catalog, the schema pages of the docs.

    scripts/schema.py               (starts an embedded Postgres for it)
    scripts/schema.py CONNINFO      (an empty database; its role needs what a migration needs)

Until a release carries it, migration 0001 is the living schema itself. From then on it is frozen:
`write_first_migration` goes, and a change is a file in `migrations` and the same change in `schema`.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from flowledger import reference
from flowledger.database import catalog, check
from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.migrate import migrate, migrations

ROOT = Path(__file__).parent.parent
SQL = ROOT / "src" / "flowledger" / "sql"
PAGES = ROOT / "docs" / "reference" / "schema"

FIRST_DATE = "2026-11-23"

HEADER = reference.Header(
    application="flowledger",
    database="flowledger",
    repository="src/flowledger/sql/schema",
    purpose="The execution ledger of CrewAI Flows",
)


def main(conninfo: str) -> None:
    write_first_migration()
    migrate(conninfo)
    with psycopg.connect(conninfo) as conn:
        write_expected(conn)
        write_pages(conn)


def first_migration() -> str:
    parts = [f"-- Migration 0001, {FIRST_DATE}. May be pasted into an SQL editor, and repeated.\n"]
    parts += [
        f"\n-- {'=' * 117}\n-- {file.name}\n\n{file.read_text()}" for file in sorted((SQL / "schema").glob("*.sql"))
    ]
    parts.append(
        "\ninsert into flowledger.schema_migrations (version, name) values (1, 'initial') on conflict do nothing;\n"
    )
    return "".join(parts)


def write_first_migration() -> None:
    (SQL / "migrations" / "0001_initial.sql").write_text(first_migration())
    migrations.cache_clear()


def write_expected(conn: psycopg.Connection) -> None:
    facts = check.snapshot(catalog.read(conn))
    (SQL / "expected.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def write_pages(conn: psycopg.Connection) -> None:
    PAGES.mkdir(parents=True, exist_ok=True)
    tables = catalog.read(conn).tables
    for path in set(PAGES.glob("*.md")) - {PAGES / f"{table.name}.md" for table in tables}:
        path.unlink()
    now = datetime.now(UTC)
    for table in tables:
        _write_unless_only_the_date_differs(
            PAGES / f"{table.name}.md", reference.document(conn, table.full_name, HEADER, now)
        )
    _write_unless_only_the_date_differs(PAGES.parent / "database-schema-overview.md", reference.overview(tables))


def _write_unless_only_the_date_differs(path: Path, text: str) -> None:
    if not path.exists() or undated(path.read_text()) != undated(text):
        path.write_text(text)


def undated(text: str) -> str:
    return re.sub(r"^\*\*Generated\*\*: .*$", "**Generated**:", text, flags=re.MULTILINE)


if __name__ == "__main__":
    if sys.argv[1:]:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as directory, EmbeddedPostgres.start(Path(directory)) as postgres:
            main(postgres.url("flowledger"))
