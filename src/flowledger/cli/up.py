"""`flowledger up`: everything on this machine with one command: the embedded Postgres and a worker for this project."""

from __future__ import annotations

import typer

from flowledger.cli.options import (
    DatabaseOption,
    DataOption,
    MetricsPortOption,
    ProjectOption,
    PythonOption,
    SlotsOption,
)

app = typer.Typer(add_completion=False)


@app.command()
def up(
    slots: SlotsOption = None,
    project: ProjectOption = None,
    python: PythonOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
    metrics_port: MetricsPortOption = None,
) -> None:
    """Start everything here: embedded Postgres and a worker for this project. Ctrl-C stops; data stays."""
    from flowledger.cli.actions import up

    up.up(
        slots=slots,
        project=project,
        python=python,
        database_url=database_url,
        data_dir=data,
        metrics_port=metrics_port,
    )
