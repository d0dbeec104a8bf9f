"""`flowledger flows`: list, show, graph, schema of a project's or server's; status, pause, resume of the ledger's."""

from __future__ import annotations

from typing import Annotated

import typer

from flowledger.cli.options import (
    DatabaseOption,
    DataOption,
    JsonOption,
    ProjectOption,
    PythonOption,
    TokenOption,
    UrlOption,
    offering,
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="List the project's flows, show their graph and input schema; pause and resume them.",
)

Name = Annotated[str, typer.Argument(metavar="FLOW", help="Key, class name or entry point.", show_default=False)]
Key = Annotated[str, typer.Argument(metavar="FLOW", help="The flow's key.", show_default=False)]


@app.command("list")
@app.command("ls", hidden=True)
def list_(
    as_json: JsonOption = False,
    project: ProjectOption = None,
    python: PythonOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """The flows of the project; broken modules are listed beside the good ones. Exits 1 if there are any."""
    from flowledger.cli.actions import flows

    flows.list_(as_json=as_json, project=project, python=python, url=url, token=token)


@app.command()
def show(
    name: Name,
    as_json: JsonOption = False,
    project: ProjectOption = None,
    python: PythonOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """One flow: description, graph, the limits that apply, inputs and where it is."""
    from flowledger.cli.actions import flows

    flows.show(name=name, as_json=as_json, project=project, python=python, url=url, token=token)


@app.command()
def graph(
    name: Name,
    format_: Annotated[
        str, typer.Option("--format", help="text or mermaid.", autocompletion=offering("text", "mermaid"))
    ] = "text",
    as_json: JsonOption = False,
    project: ProjectOption = None,
    python: PythonOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """How the flow's methods hang together, routers with their labels."""
    from flowledger.cli.actions import flows

    flows.graph(name=name, format_=format_, as_json=as_json, project=project, python=python, url=url, token=token)


@app.command()
def schema(
    name: Name,
    project: ProjectOption = None,
    python: PythonOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """The JSON Schema of the flow's inputs; `{}` when it takes anything."""
    from flowledger.cli.actions import flows

    flows.schema(name=name, project=project, python=python, url=url, token=token)


@app.command()
def status(
    as_json: JsonOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """What the ledger's flows do now: what waits, what runs, what is paused and why."""
    from flowledger.cli.actions import flows

    flows.status(as_json=as_json, url=url, token=token, database_url=database_url, data_dir=data)


@app.command()
def pause(
    key: Key,
    reason: Annotated[str | None, typer.Option(help="Kept with the flow and shown.", show_default=False)] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Let nothing of a flow start. What runs goes on; what is asked for waits."""
    from flowledger.cli.actions import flows

    flows.pause(key=key, reason=reason, as_json=as_json, url=url, token=token, database_url=database_url, data_dir=data)


@app.command()
def resume(
    key: Key,
    as_json: JsonOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Let a paused flow start again, whoever paused it."""
    from flowledger.cli.actions import flows

    flows.resume(key=key, as_json=as_json, url=url, token=token, database_url=database_url, data_dir=data)
