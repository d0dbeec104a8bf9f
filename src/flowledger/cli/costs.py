"""`flowledger costs`: what was spent, along one dimension."""

from __future__ import annotations

from typing import Annotated

import typer

from flowledger.cli.options import DatabaseOption, DataOption, JsonOption, TokenOption, UrlOption
from flowledger.domain.dimension import Dimension

app = typer.Typer(add_completion=False)


@app.command()
def costs(
    by: Annotated[Dimension, typer.Option()] = Dimension.FLOW,
    since: Annotated[str, typer.Option(help="A span like 30d, or a date; whole days, UTC.")] = "30d",
    until: Annotated[
        str | None, typer.Option(help="A span like 1d, or the date that ends it.", show_default=False)
    ] = None,
    flow: Annotated[str | None, typer.Option(help="Flow key.", show_default=False)] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """What was spent: executions, LLM calls, tokens and dollars, the dearest first."""
    from flowledger.cli.actions import costs

    costs.costs(
        by=by,
        since=since,
        until=until,
        flow=flow,
        as_json=as_json,
        url=url,
        token=token,
        database_url=database_url,
        data_dir=data,
    )
