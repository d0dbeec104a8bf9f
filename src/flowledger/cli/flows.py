"""`flowledger flows`: list, show, graph, schema."""

from __future__ import annotations

from typing import Annotated

import typer

from flowledger.cli.options import JsonOption, ProjectOption, PythonOption, offering

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="List the project's flows; show their graph and input schema."
)

Name = Annotated[str, typer.Argument(metavar="FLOW", help="Key, class name or entry point.", show_default=False)]


@app.command("list")
@app.command("ls", hidden=True)
def list_(as_json: JsonOption = False, project: ProjectOption = None, python: PythonOption = None) -> None:
    """The flows of the project; broken modules are listed beside the good ones. Exits 1 if there are any."""
    from flowledger.cli.actions import flows

    flows.list_(as_json=as_json, project=project, python=python)


@app.command()
def show(name: Name, as_json: JsonOption = False, project: ProjectOption = None, python: PythonOption = None) -> None:
    """One flow: description, inputs, graph and where it is."""
    from flowledger.cli.actions import flows

    flows.show(name=name, as_json=as_json, project=project, python=python)


@app.command()
def graph(
    name: Name,
    format_: Annotated[
        str, typer.Option("--format", help="text or mermaid.", autocompletion=offering("text", "mermaid"))
    ] = "text",
    as_json: JsonOption = False,
    project: ProjectOption = None,
    python: PythonOption = None,
) -> None:
    """How the flow's methods hang together, routers with their labels."""
    from flowledger.cli.actions import flows

    flows.graph(name=name, format_=format_, as_json=as_json, project=project, python=python)


@app.command()
def schema(name: Name, project: ProjectOption = None, python: PythonOption = None) -> None:
    """The JSON Schema of the flow's inputs; `{}` when it takes anything."""
    from flowledger.cli.actions import flows

    flows.schema(name=name, project=project, python=python)
