"""Checks that `sql/schema` and `sql/migrations` say the same; writes the expected catalog and the docs' schema pages.

    scripts/schema.py               (starts an embedded Postgres for it)
    scripts/schema.py CONNINFO      (an empty database; its role needs what a migration needs)

Migrations are frozen once they have landed: a change of the schema is a new file in `migrations` and the same change in
`schema`.
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
from flowledger.database.migrate import migrate

ROOT = Path(__file__).parent.parent
SQL = ROOT / "src" / "flowledger" / "sql"
PAGES = ROOT / "docs" / "reference" / "schema"

HEADER = reference.Header(
    application="flowledger",
    database="flowledger",
    repository="src/flowledger/sql/schema",
    purpose="The execution ledger of CrewAI Flows",
)


def main(conninfo: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as conn:
        living = install_and_undo(conn)
        migrate(conninfo)
        migrated = check.snapshot(catalog.read(conn))
        if differences := told_apart(living, migrated):
            sys.exit("sql/schema and sql/migrations differ:\n  " + "\n  ".join(differences))
        write_expected(migrated)
        write_pages(conn)


def install_and_undo(conn: psycopg.Connection) -> check.Snapshot:
    """What the schema files make of an empty database, which is empty again afterwards."""
    with conn.transaction(force_rollback=True):
        for file in sorted((SQL / "schema").glob("*.sql")):
            conn.execute(file.read_bytes())
        return check.snapshot(catalog.read(conn))


def told_apart(living: check.Snapshot, migrated: check.Snapshot) -> list[str]:
    return [
        f"{kind} {name}: {living[kind].get(name)} in schema, {migrated[kind].get(name)} in migrations"
        for kind in living
        for name in sorted(living[kind].keys() | migrated[kind].keys())
        if living[kind].get(name) != migrated[kind].get(name)
    ]


def write_expected(facts: check.Snapshot) -> None:
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
