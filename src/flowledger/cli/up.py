"""`flowledger up`: everything here with one command: embedded Postgres, a worker for this project, the API."""

from __future__ import annotations

import typer

from flowledger.cli.options import (
    DatabaseOption,
    DataOption,
    HostOption,
    MetricsPortOption,
    PortOption,
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
    host: HostOption = None,
    port: PortOption = None,
    metrics_port: MetricsPortOption = None,
) -> None:
    """Start everything here: embedded Postgres, a worker for this project and the API. Ctrl-C stops; data stays."""
    from flowledger.cli.actions import up

    up.up(
        slots=slots,
        project=project,
        python=python,
        database_url=database_url,
        data_dir=data,
        server_host=host,
        server_port=port,
        metrics_port=metrics_port,
    )
