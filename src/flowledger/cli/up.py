"""`flowledger up`: everything on this machine with one command: the embedded Postgres and a worker for this project."""

from __future__ import annotations

import asyncio
import time

import typer
from rich.table import Table
from rich.text import Text

from flowledger import __version__, registry
from flowledger.cli.opening import Addresses, addresses
from flowledger.cli.options import (
    DatabaseOption,
    DataOption,
    ProjectOption,
    PythonOption,
    SlotsOption,
    settings,
)
from flowledger.cli.output import err
from flowledger.cli.worker import work
from flowledger.database import migrate
from flowledger.database.session import address
from flowledger.domain.project import Project
from flowledger.telemetry import configure_logs

app = typer.Typer()


@app.command()
def up(
    slots: SlotsOption = None,
    project: ProjectOption = None,
    python: PythonOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Start everything here: embedded Postgres and a worker for this project. Ctrl-C stops; data stays."""
    began = time.monotonic()
    chosen = settings(slots=slots, project=project, python=python, database_url=database_url, data_dir=data)
    configure_logs(chosen.log_format)
    found = registry.locate(chosen.project, chosen.python)
    with addresses(chosen) as where:
        if where.embedded is None:
            migrate.migrate(where.owner)
        _greet(where, found, time.monotonic() - began)
        asyncio.run(work(chosen, where, found))


def _greet(where: Addresses, found: Project, seconds: float) -> None:
    postgres = where.embedded
    home = (
        f"embedded Postgres {postgres.version} in {postgres.data_dir}"
        if postgres
        else f"Postgres at {address(where.api)}"
    )
    err.print(Text.assemble(("flowledger ", "bold"), f"{__version__}  ·  {home}  ·  ready in {seconds:.1f} s"))
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(style="dim")
    table.add_row("  Project", str(found.root))
    table.add_row("  Database", "flowledger db url  prints its address")
    table.add_row("  Next", "flowledger flows list, then flowledger run FLOW")
    err.print()
    err.print(table)
    err.print(Text("\n  Ctrl-C stops; data stays.\n", "dim"))
