"""`flowledger flows`: what the project holds, seen fresh at each call, without the database; and what the ledger says
of it: what waits, runs and is paused.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.json import JSON
from rich.text import Text
from rich.tree import Tree

from flowledger import registry
from flowledger.cli.exits import Exit
from flowledger.cli.opening import Ledger, storage
from flowledger.cli.options import DatabaseOption, DataOption, JsonOption, ProjectOption, PythonOption, settings
from flowledger.cli.output import err, first_line, local_time, out, write_json, write_table
from flowledger.cli.reading import with_ledger
from flowledger.domain.flow import Discovery, Flow
from flowledger.ledger import flows
from flowledger.ledger.flows import FlowStatus

app = typer.Typer(
    no_args_is_help=True, help="List the project's flows, show their graph and input schema; pause and resume them."
)

Name = Annotated[str, typer.Argument(metavar="FLOW", help="Key, class name or entry point.", show_default=False)]


@app.command("list")
@app.command("ls", hidden=True)
def list_(as_json: JsonOption = False, project: ProjectOption = None, python: PythonOption = None) -> None:
    """The flows of the project; broken modules are listed beside the good ones. Exits 1 if there are any."""
    found = _discover(project, python)
    if as_json:
        write_json(found)
    else:
        write_table(
            ("FLOW", "CLASS", "INPUTS", "DESCRIPTION"),
            [(flow.key, flow.entry_point, _inputs(flow), first_line(flow.description)) for flow in found.flows],
        )
        for broken in found.broken:
            err.print(
                Text.assemble(("✗ ", "red"), broken.module, (f"  {broken.error_type}: {broken.error_message}", "red"))
            )
        for warning in found.warnings:
            err.print(Text.assemble(("! ", "yellow"), warning))
    if found.broken:
        raise typer.Exit(Exit.ERROR)


@app.command()
def show(name: Name, as_json: JsonOption = False, project: ProjectOption = None, python: PythonOption = None) -> None:
    """One flow: description, inputs, graph and where it is."""
    flow = registry.find(_discover(project, python), name)
    if as_json:
        write_json(flow)
        return
    out.print(Text.assemble((flow.key, "bold"), f"  {flow.entry_point}  ", (flow.fingerprint[:12], "dim")))
    if flow.description:
        out.print(flow.description)
    out.print(_tree(flow))
    if flow.input_schema is not None:
        out.print(JSON(json.dumps(flow.input_schema)))


@app.command()
def graph(
    name: Name,
    format_: Annotated[str, typer.Option("--format", help="text or mermaid.")] = "text",
    as_json: JsonOption = False,
    project: ProjectOption = None,
    python: PythonOption = None,
) -> None:
    """How the flow's methods hang together, routers with their labels."""
    flow = registry.find(_discover(project, python), name)
    if as_json:
        write_json(flow.graph)
    elif format_ == "mermaid":
        out.print(_mermaid(flow), markup=False)
    else:
        out.print(_tree(flow))


@app.command()
def schema(name: Name, project: ProjectOption = None, python: PythonOption = None) -> None:
    """The JSON Schema of the flow's inputs; `{}` when it takes anything."""
    write_json(registry.find(_discover(project, python), name).input_schema or {})


@app.command()
def status(as_json: JsonOption = False, database_url: DatabaseOption = None, data: DataOption = None) -> None:
    """What the ledger's flows do now: what waits, what runs, what is paused and why."""

    async def read(open_ledger: Ledger) -> list[FlowStatus]:
        async with open_ledger.database.session(open_ledger.operator) as session:
            return await flows.statuses(session)

    found = with_ledger(settings(database_url=database_url, data_dir=data), read)
    if as_json:
        write_json(found)
        return
    write_table(
        ("FLOW", "VERSION", "WAITING", "RUNNING", "LIMIT", "PAUSED"),
        [
            (one.flow_key, str(one.version), str(one.waiting), str(one.running), _limit(one), _pause(one))
            for one in found
        ],
        right=("VERSION", "WAITING", "RUNNING"),
    )


Key = Annotated[str, typer.Argument(metavar="FLOW", help="The flow's key.", show_default=False)]


@app.command()
def pause(
    key: Key,
    reason: Annotated[str | None, typer.Option(help="Kept with the flow and shown.", show_default=False)] = None,
    as_json: JsonOption = False,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Let nothing of a flow start. What runs goes on; what is asked for waits."""

    async def change(open_ledger: Ledger) -> bool:
        async with open_ledger.database.session(open_ledger.operator) as session:
            return await flows.pause(session, key, reason)

    changed = with_ledger(settings(database_url=database_url, data_dir=data), change)
    _tell(key, "paused", "was paused already", changed=changed, as_json=as_json)


@app.command()
def resume(key: Key, as_json: JsonOption = False, database_url: DatabaseOption = None, data: DataOption = None) -> None:
    """Let a paused flow start again, whoever paused it."""

    async def change(open_ledger: Ledger) -> bool:
        async with open_ledger.database.session(open_ledger.operator) as session:
            return await flows.resume(session, key)

    changed = with_ledger(settings(database_url=database_url, data_dir=data), change)
    _tell(key, "resumed", "was not paused", changed=changed, as_json=as_json)


def _tell(key: str, done: str, idle: str, *, changed: bool, as_json: bool) -> None:
    if as_json:
        write_json({"flow_key": key, "changed": changed})
    else:
        out.print(f"{key}  {done if changed else idle}")


def _limit(one: FlowStatus) -> str:
    parts = [str(one.concurrency) if one.concurrency else ""]
    parts.append(f"{one.concurrency_per_user} a user" if one.concurrency_per_user else "")
    return ", ".join(part for part in parts if part)


def _pause(one: FlowStatus) -> str:
    if one.paused_at is None:
        return ""
    return f"{local_time(one.paused_at)} by {one.paused_by}" + (f": {one.paused_reason}" if one.paused_reason else "")


def _discover(project: str | None, python: object) -> Discovery:
    chosen = settings(project=project, python=python)
    found = registry.locate(chosen.project, chosen.python)
    with err.status(f"Looking at {found.root.name} …"):
        return registry.discover(found, seconds=chosen.import_seconds, secrets=(), storage=storage(chosen))


def _inputs(flow: Flow) -> str:
    if flow.input_schema is None:
        return "any"
    required = set(flow.input_schema.get("required", ()))
    return ", ".join(f"{name}{'*' if name in required else ''}" for name in flow.input_schema.get("properties", {}))


def _tree(flow: Flow) -> Tree:
    tree = Tree(Text(flow.key, "bold"), guide_style="dim")
    seen: set[str] = set()

    def grow(branch: Tree, method: str, label: str) -> None:
        node = flow.graph["nodes"].get(method, {})
        text = Text.assemble((f"{label} → " if label else "", "yellow"), method)
        if node.get("is_router"):
            text.append("  router", "dim")
        if str(node.get("condition_type") or "").upper() == "AND":
            text.append(f"  waits for {', '.join(node.get('trigger_methods', []))}", "dim")
        if method in seen:
            branch.add(text.append("  ↑", "dim"))
            return
        seen.add(method)
        below = branch.add(text)
        for edge in flow.graph["edges"]:
            if edge["source"] == method:
                grow(below, edge["target"], str(edge.get("router_event") or ""))

    for start in flow.graph["start_methods"]:
        grow(tree, start, "")
    return tree


def _mermaid(flow: Flow) -> str:
    lines = ["flowchart TD"]
    for name, node in flow.graph["nodes"].items():
        lines.append(f"  {name}{{{{{name}}}}}" if node.get("is_router") else f"  {name}[{name}]")
    for edge in flow.graph["edges"]:
        label = f"|{edge['router_event']}|" if edge.get("router_event") else ""
        lines.append(f"  {edge['source']} -->{label} {edge['target']}")
    return "\n".join(lines)
