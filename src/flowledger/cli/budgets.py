"""`flowledger budgets`: list, set, remove what may be spent in a day or a month."""

from __future__ import annotations

from typing import Annotated

import typer

from flowledger.cli.options import DatabaseOption, DataOption, JsonOption, offering
from flowledger.domain.window import Period

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="List, set and remove what may be spent in a day or a month.",
)


@app.command("list")
@app.command("ls", hidden=True)
def list_(as_json: JsonOption = False, database_url: DatabaseOption = None, data: DataOption = None) -> None:
    """Every window: its limit, what is spent and set aside in it now, and what is left."""
    from flowledger.cli.actions import budgets

    budgets.list_(as_json=as_json, database_url=database_url, data_dir=data)


@app.command("set")
def set_(
    per: Annotated[Period, typer.Option(help="Days and months are UTC's.", show_default=False)],
    flow: Annotated[str | None, typer.Option(help="Of one flow: its key.", show_default=False)] = None,
    user: Annotated[
        str | None,
        typer.Option(
            help="Of one user: the id; or `each`: of every user alone.",
            show_default=False,
            autocompletion=offering("each"),
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--everything", help="Of all flows and users together.")] = False,
    usd: Annotated[str | None, typer.Option(metavar="USD", help="The most, in USD.", show_default=False)] = None,
    tokens: Annotated[
        int | None, typer.Option(min=0, max=10**15, help="The most, in tokens.", show_default=False)
    ] = None,
    on_reach: Annotated[
        str,
        typer.Option(help="stop: nothing starts any more; warn: it is said.", autocompletion=offering("stop", "warn")),
    ] = "stop",
    as_json: JsonOption = False,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Limit what a flow, a user or everybody may spend in a day or a month; a limit that is there is changed."""
    from flowledger.cli.actions import budgets

    budgets.set_(
        flow=flow,
        user=user,
        everything=everything,
        per=per,
        usd=usd,
        tokens=tokens,
        on_reach=on_reach,
        as_json=as_json,
        database_url=database_url,
        data_dir=data,
    )


@app.command()
def remove(
    window: Annotated[int, typer.Argument(metavar="ID", help="As `budgets list` shows it.", show_default=False)],
    as_json: JsonOption = False,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Take a limit away."""
    from flowledger.cli.actions import budgets

    budgets.remove(window=window, as_json=as_json, database_url=database_url, data_dir=data)
