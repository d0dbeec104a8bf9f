"""`flowledger tokens`: what programs carry to the API in place of a JWT."""

from __future__ import annotations

from typing import Annotated

import typer

from flowledger.cli.options import DatabaseOption, DataOption, JsonOption
from flowledger.domain.token import Scope

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Personal tokens of the API.")

ExpiresOption = Annotated[
    str | None,
    typer.Option("--expires", metavar="SPAN", help="How long it may be used, like 90d. Default: until it is revoked."),
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="By which you know it again.", show_default=False)],
    scope: Annotated[
        list[Scope] | None,
        typer.Option("--scope", help="read: see; run: start and cancel too; operate: as an operator. Default: run."),
    ] = None,
    expires: ExpiresOption = None,
    as_json: JsonOption = False,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Make a token of your own, and print it. It is shown this once."""
    from flowledger.cli.actions import tokens

    tokens.create(
        name=name,
        scopes=scope or [Scope.RUN],
        expires=expires,
        as_json=as_json,
        database_url=database_url,
        data_dir=data,
    )


@app.command("ls", hidden=True)
@app.command("list")
def list_(as_json: JsonOption = False, database_url: DatabaseOption = None, data: DataOption = None) -> None:
    """List everybody's tokens that may be used, and when each was last used."""
    from flowledger.cli.actions import tokens

    tokens.list_(as_json=as_json, database_url=database_url, data_dir=data)


@app.command()
def revoke(
    reference: Annotated[
        str, typer.Argument(metavar="TOKEN", help="Its id, or the name of one of your own.", show_default=False)
    ],
    as_json: JsonOption = False,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """End a token at once."""
    from flowledger.cli.actions import tokens

    tokens.revoke(reference=reference, as_json=as_json, database_url=database_url, data_dir=data)
