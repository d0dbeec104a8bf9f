"""`flowledger login`: another one-time link, when the one that `flowledger up` printed is used or too old."""

from __future__ import annotations

import typer

from flowledger.cli.options import DatabaseOption, DataOption

app = typer.Typer(add_completion=False)


@app.command()
def login(database_url: DatabaseOption = None, data: DataOption = None) -> None:
    """Print a one-time link that lets a browser in to the API of `flowledger up`. It is good for 10 minutes."""
    from flowledger.cli.actions import login

    login.login(database_url=database_url, data_dir=data)
