"""`flowledger errors`: what failed, in groups."""

from __future__ import annotations

from typing import Annotated

import typer

from flowledger.cli.options import DatabaseOption, DataOption, JsonOption, TokenOption, UrlOption

app = typer.Typer(add_completion=False)


@app.command()
def errors(
    since: Annotated[str, typer.Option(help="A span like 30d, or a date.")] = "30d",
    flow: Annotated[str | None, typer.Option(help="Flow key.", show_default=False)] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """What failed: the same error in the same place is one, the latest first, with what it wasted."""
    from flowledger.cli.actions import errors

    errors.errors(
        since=since, flow=flow, as_json=as_json, url=url, token=token, database_url=database_url, data_dir=data
    )
