"""`flowledger prices`: list, set, remove, import, check, reprice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowledger.cli.options import DatabaseOption, DataOption, JsonOption

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="List, set, import and check the prices of models; price old executions again.",
)

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="As in `prices list`, or PROVIDER/MODEL.", show_default=False)
]
ProviderOption = Annotated[
    str | None, typer.Option(help="For this provider's calls only. Default: whoever serves it.", show_default=False)
]
SinceDayOption = Annotated[
    str | None,
    typer.Option(
        "--since", metavar="DATE", help="For calls that begin then or later, UTC. Default: all.", show_default=False
    ),
]
SeenSinceOption = Annotated[str, typer.Option("--since", help="Calls to look at: a span like 30d, or a date.")]


def _usd(told: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(metavar="USD", help=told, show_default=False)
    return option


@app.command("list")
@app.command("ls", hidden=True)
def list_(
    since: SeenSinceOption = "30d",
    as_json: JsonOption = False,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """What each used model costs now, and the prices that the team has set, in USD per million tokens."""
    from flowledger.cli.actions import prices

    prices.list_(since=since, as_json=as_json, database_url=database_url, data_dir=data)


@app.command("set")
def set_(
    model: Model,
    input_: Annotated[str, typer.Option("--input", metavar="USD", help="Input, per million.", show_default=False)],
    output: Annotated[str, _usd("Output, per million.")],
    cached_input: Annotated[str | None, _usd("Input read from a cache. Default: as input.")] = None,
    cache_write: Annotated[str | None, _usd("Input written to a cache. Default: as input.")] = None,
    reasoning: Annotated[str | None, _usd("Reasoning. Default: as output.")] = None,
    per_call: Annotated[str | None, _usd("For each call, whatever its size. Default: nothing.")] = None,
    provider: ProviderOption = None,
    since: SinceDayOption = None,
    as_json: JsonOption = False,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Set a price in USD per million tokens. It comes before every catalogue's; 0 says that the model is free."""
    from flowledger.cli.actions import prices

    prices.set_(
        {
            "model": model,
            "provider": provider,
            "since": since,
            "input": input_,
            "output": output,
            "cached_input": cached_input,
            "cache_write": cache_write,
            "reasoning": reasoning,
            "call": per_call,
        },
        as_json=as_json,
        database_url=database_url,
        data_dir=data,
    )


@app.command()
def remove(
    model: Model,
    provider: ProviderOption = None,
    since: SinceDayOption = None,
    as_json: JsonOption = False,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Forget a price that was set with this provider and date. What it priced keeps its cost."""
    from flowledger.cli.actions import prices

    prices.remove(
        model=model, provider=provider, since=since, as_json=as_json, database_url=database_url, data_dir=data
    )


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV or JSON.", show_default=False)],
    as_json: JsonOption = False,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Set all prices of a file, or none of them.

    Columns: model, provider, since, input, output, cached_input, cache_write, reasoning, call.
    """
    from flowledger.cli.actions import prices

    prices.import_(file=file, as_json=as_json, database_url=database_url, data_dir=data)


@app.command()
def check(
    since: SeenSinceOption = "30d",
    as_json: JsonOption = False,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Find models without a price, and team prices that look wrong. Exits 1 if a model has no price."""
    from flowledger.cli.actions import price_check

    price_check.check(since=since, as_json=as_json, database_url=database_url, data_dir=data)


@app.command()
def reprice(
    since: Annotated[str, typer.Option(help="Executions that started since: a span like 30d, or a date.")] = "30d",
    model: Annotated[str | None, typer.Option(help="Calls of this model only.", show_default=False)] = None,
    flow: Annotated[str | None, typer.Option(help="Flow key.", show_default=False)] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Note it.")] = False,
    as_json: JsonOption = False,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Price ended executions again at what is known now. Tells what would change, unless given --yes.

    Their rows keep what they say; the new figure stands beside it.
    """
    from flowledger.cli.actions import reprice

    reprice.reprice(
        since=since, model=model, flow=flow, record=yes, as_json=as_json, database_url=database_url, data_dir=data
    )
