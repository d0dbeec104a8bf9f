"""`flowledger worker`: claims and runs executions until stopped. SIGTERM or Ctrl-C drains; a second one stops now."""

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
def worker(
    slots: SlotsOption = None,
    project: ProjectOption = None,
    python: PythonOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
    metrics_port: MetricsPortOption = None,
) -> None:
    """Claim and run executions until stopped. SIGTERM or Ctrl-C drains; a second one stops now."""
    from flowledger.cli.actions import worker

    worker.worker(
        slots=slots,
        project=project,
        python=python,
        database_url=database_url,
        data_dir=data,
        metrics_port=metrics_port,
    )
