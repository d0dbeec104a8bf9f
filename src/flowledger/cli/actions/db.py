"""Migrates, checks and describes the database, and tells its address."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from flowledger.cli.exits import Exit
from flowledger.cli.flags import settings
from flowledger.cli.opening import addresses, require_current
from flowledger.cli.output import err, out, write_json
from flowledger.database import check as schema_check
from flowledger.database import migrate as migrations
from flowledger.database.session import connected
from flowledger.errors import InvalidInput
from flowledger.reference import Header, document


def migrate(*, as_json: bool, **flags: Any) -> None:
    with addresses(settings(**flags)) as where:
        applied = [migration.file_name for migration in migrations.migrate(where.owner)]
    if as_json:
        write_json(applied)
    elif applied:
        out.print("\n".join(f"applied {name}" for name in applied))
    else:
        out.print("The schema is up to date.")


def check(*, as_json: bool, **flags: Any) -> None:
    with addresses(settings(**flags)) as where:
        require_current(where)
        with connected(where.owner) as connection:
            found = schema_check.differences(connection)
    if as_json:
        write_json(found)
    elif found:
        for difference in found:
            out.print(Text.assemble(("✗ ", "red"), difference.sentence, "\n  ", (difference.remedy, "dim")))
    else:
        out.print(Text.assemble(("✓ ", "green"), "The database is as it should be."))
    if found:
        raise typer.Exit(Exit.ERROR)


def reference(*, table: str, header: Path | None, head: Mapping[str, str | None], **flags: Any) -> None:
    opening = _header(header, {name: value for name, value in head.items() if value is not None})
    with addresses(settings(**flags)) as where, connected(where.owner) as connection:
        sys.stdout.write(document(connection, table, opening, datetime.now(UTC)))


def export(*, supabase: bool, directory: Path, as_json: bool) -> None:
    if not supabase:
        raise InvalidInput("export", "needs to know for what", "Give --supabase.")
    paths = [str(path) for path in migrations.export_supabase(directory)]
    if as_json:
        write_json(paths)
    else:
        out.print("\n".join(paths))


def url(*, role: str, **flags: Any) -> None:
    with addresses(settings(**flags)) as where:
        roles = {"api": where.api, "worker": where.worker, "owner": where.owner}
        if role not in roles:
            raise InvalidInput("--role", f"{role!r} is not known", f"Use {', '.join(roles)}.")
        sys.stdout.write(roles[role] + "\n")
    if where.embedded is not None:
        err.print(Text("The embedded Postgres runs while `flowledger up` or a worker does.", "dim"))


def _header(file: Path | None, given: dict[str, str]) -> Header:
    lines = {
        "application": "flowledger",
        "database": "flowledger",
        "repository": ".",
        "purpose": "The execution ledger of CrewAI Flows",
        **_read_header(file),
        **given,
    }
    return Header(**lines)


def _read_header(file: Path | None) -> dict[str, str]:
    if file is None:
        return {}
    try:
        read = tomllib.loads(file.read_text())
    except (OSError, ValueError) as unreadable:
        raise InvalidInput("--header", f"{file} cannot be read: {unreadable}") from unreadable
    known = {"application", "database", "repository", "purpose"}
    if unknown := read.keys() - known:
        raise InvalidInput(
            "--header",
            f"{file} has unknown lines: {', '.join(sorted(unknown))}",
            f"Known are {', '.join(sorted(known))}.",
        )
    return {name: str(value) for name, value in read.items()}
