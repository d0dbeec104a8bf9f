"""`flowledger db`: migrate, check, reference, export, url."""

from __future__ import annotations

import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from flowledger.cli.exits import Exit
from flowledger.cli.opening import addresses, require_current
from flowledger.cli.options import DatabaseOption, DataOption, JsonOption, settings
from flowledger.cli.output import err, out, write_json
from flowledger.database import check as schema_check
from flowledger.database import migrate as migrations
from flowledger.database.session import connected
from flowledger.errors import InvalidInput
from flowledger.reference import Header, document

app = typer.Typer(no_args_is_help=True, help="Migrate and check the database; print its reference document.")

_LEDGER_TABLE = "crewai_flow_executions"


@app.command()
def migrate(as_json: JsonOption = False, database_url: DatabaseOption = None, data: DataOption = None) -> None:
    """Install the schema or bring it up to date, as the database's owner."""
    with addresses(settings(database_url=database_url, data_dir=data)) as where:
        applied = [migration.file_name for migration in migrations.migrate(where.owner)]
    if as_json:
        write_json(applied)
    elif applied:
        out.print("\n".join(f"applied {name}" for name in applied))
    else:
        out.print("The schema is up to date.")


@app.command()
def check(as_json: JsonOption = False, database_url: DatabaseOption = None, data: DataOption = None) -> None:
    """Compare the live database with the expected schema, rights and function bodies included; exits 0 or 1."""
    with addresses(settings(database_url=database_url, data_dir=data)) as where:
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


@app.command()
def reference(
    table: Annotated[str, typer.Argument(help="A table of flowledger's.")] = _LEDGER_TABLE,
    header: Annotated[
        Path | None,
        typer.Option(help="TOML file with application, database, repository, purpose.", show_default=False),
    ] = None,
    application: Annotated[str | None, typer.Option(show_default=False)] = None,
    database: Annotated[str | None, typer.Option(show_default=False)] = None,
    repository: Annotated[str | None, typer.Option(show_default=False)] = None,
    purpose: Annotated[str | None, typer.Option(show_default=False)] = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Print a table's reference document from the live catalog."""
    flags = {"application": application, "database": database, "repository": repository, "purpose": purpose}
    head = _header(header, {name: value for name, value in flags.items() if value is not None})
    with addresses(settings(database_url=database_url, data_dir=data)) as where, connected(where.owner) as connection:
        sys.stdout.write(document(connection, table, head, datetime.now(UTC)))


@app.command()
def export(
    supabase: Annotated[bool, typer.Option("--supabase", help="As migrations of a Supabase project.")] = False,
    directory: Annotated[Path, typer.Option(help="Where the files go.")] = Path("supabase/migrations"),
    as_json: JsonOption = False,
) -> None:
    """Write the migrations as files for another tool to apply."""
    if not supabase:
        raise InvalidInput("export", "needs to know for what", "Give --supabase.")
    paths = [str(path) for path in migrations.export_supabase(directory)]
    if as_json:
        write_json(paths)
    else:
        out.print("\n".join(paths))


@app.command()
def url(
    role: Annotated[str, typer.Option(help="api, worker or owner.")] = "api",
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Print the database's address, password included, for psql and other tools.

    The embedded Postgres answers there as long as something of flowledger's uses it.
    """
    with addresses(settings(database_url=database_url, data_dir=data)) as where:
        roles = {"api": where.api, "worker": where.worker, "owner": where.owner}
        if role not in roles:
            raise InvalidInput("--role", f"{role!r} is not known", f"Use {', '.join(roles)}.")
        sys.stdout.write(roles[role] + "\n")
    if where.embedded is not None:
        err.print(Text("The embedded Postgres runs while `flowledger up` or a worker does.", "dim"))


def _header(file: Path | None, flags: dict[str, str]) -> Header:
    given = {
        "application": "flowledger",
        "database": "flowledger",
        "repository": ".",
        "purpose": "The execution ledger of CrewAI Flows",
        **_read_header(file),
        **flags,
    }
    return Header(**given)


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
