"""`flowledger db`: migrate, check, reference, export, url."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowledger.cli.options import DatabaseOption, DataOption, JsonOption, offering

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Migrate and check the database; print its reference document."
)

_LEDGER_TABLE = "crewai_flow_executions"


@app.command()
def migrate(as_json: JsonOption = False, database_url: DatabaseOption = None, data: DataOption = None) -> None:
    """Install the schema or bring it up to date, as the database's owner."""
    from flowledger.cli.actions import db

    db.migrate(as_json=as_json, database_url=database_url, data_dir=data)


@app.command()
def check(as_json: JsonOption = False, database_url: DatabaseOption = None, data: DataOption = None) -> None:
    """Compare the live database with the expected schema, rights and function bodies included; exits 0 or 1."""
    from flowledger.cli.actions import db

    db.check(as_json=as_json, database_url=database_url, data_dir=data)


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
    from flowledger.cli.actions import db

    head = {"application": application, "database": database, "repository": repository, "purpose": purpose}
    db.reference(table=table, header=header, head=head, database_url=database_url, data_dir=data)


@app.command()
def export(
    supabase: Annotated[bool, typer.Option("--supabase", help="As migrations of a Supabase project.")] = False,
    directory: Annotated[Path, typer.Option(help="Where the files go.")] = Path("supabase/migrations"),
    as_json: JsonOption = False,
) -> None:
    """Write the migrations as files for another tool to apply."""
    from flowledger.cli.actions import db

    db.export(supabase=supabase, directory=directory, as_json=as_json)


@app.command()
def url(
    role: Annotated[
        str, typer.Option(help="api, worker or owner.", autocompletion=offering("api", "worker", "owner"))
    ] = "api",
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Print the database's address, password included, for psql and other tools.

    The embedded Postgres answers there as long as something of flowledger's uses it.
    """
    from flowledger.cli.actions import db

    db.url(role=role, database_url=database_url, data_dir=data)
