"""`flowledger doctor`: looks at machine, project and database, and gives a remedy for each thing found wanting."""

from __future__ import annotations

import typer

from flowledger.cli.options import DatabaseOption, DataOption, JsonOption, ProjectOption, PythonOption

app = typer.Typer(add_completion=False)


@app.command()
def doctor(
    as_json: JsonOption = False,
    project: ProjectOption = None,
    python: PythonOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Check Python, CrewAI, fork safety, Postgres, schema and permissions; exits 1 if something is wrong."""
    from flowledger.cli.actions import doctor

    doctor.doctor(as_json=as_json, project=project, python=python, database_url=database_url, data_dir=data)
