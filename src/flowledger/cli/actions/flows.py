"""Shows what the project holds, seen fresh at each call, without the database, or what a server knows of it; and what
the ledger says of its flows: what waits, runs and is paused.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import typer
from rich.json import JSON
from rich.text import Text
from rich.tree import Tree

from flowledger import registry
from flowledger.cli.actions.reading import with_desk, with_server
from flowledger.cli.exits import Exit
from flowledger.cli.flags import settings
from flowledger.cli.opening import storage
from flowledger.cli.output import err, first_line, local_time, out, write_json, write_table
from flowledger.domain.controls import FlowControls
from flowledger.domain.duration import format_duration
from flowledger.domain.flow import Discovery, Flow
from flowledger.domain.graph import Graph, mermaid, outline
from flowledger.domain.project import Project
from flowledger.domain.usage import dollars
from flowledger.ledger.flows import FlowStatus
from flowledger.settings import Settings


def list_(*, as_json: bool, **flags: Any) -> None:
    found = _discover(**flags)
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


def show(*, name: str, as_json: bool, **flags: Any) -> None:
    chosen = settings(**flags)
    flow = registry.find(_discover(**flags), name)
    limits = None if chosen.url is not None else _limits(flow, chosen)
    if as_json:
        write_json({**vars(flow), "limits": limits})
        return
    out.print(Text.assemble((flow.key, "bold"), f"  {flow.entry_point}  ", (flow.fingerprint[:12], "dim")))
    if flow.description:
        out.print(flow.description)
    out.print(_tree(flow))
    for limit, value in ({} if limits is None else limits.that_apply).items():
        out.print(Text.assemble((f"{limit:<22}", "dim"), _limit_text(limit, value)))
    if flow.input_schema is not None:
        out.print(JSON(json.dumps(flow.input_schema)))


def graph(*, name: str, format_: str, as_json: bool, **flags: Any) -> None:
    flow = registry.find(_discover(**flags), name)
    if as_json:
        write_json(flow.graph)
    elif format_ == "mermaid":
        out.print(mermaid(Graph.of(flow.graph)), markup=False)
    else:
        out.print(_tree(flow))


def schema(*, name: str, **flags: Any) -> None:
    write_json(registry.find(_discover(**flags), name).input_schema or {})


def status(*, as_json: bool, **flags: Any) -> None:
    found = with_desk(settings(**flags), lambda desk: desk.statuses())
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


def pause(*, key: str, reason: str | None, as_json: bool, **flags: Any) -> None:
    changed = with_desk(settings(**flags), lambda desk: desk.pause(key, reason))
    _tell(key, "paused", "was paused already", changed=changed, as_json=as_json)


def resume(*, key: str, as_json: bool, **flags: Any) -> None:
    changed = with_desk(settings(**flags), lambda desk: desk.resume(key))
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


def _limit_text(name: str, value: Any) -> str:
    if isinstance(value, Decimal):
        return dollars(value)
    if name.endswith("_seconds"):
        return format_duration(round(value * 1000))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, tuple) else f"{value:,}"


def _limits(flow: Flow, chosen: Settings) -> FlowControls:
    project = registry.locate(chosen.project, chosen.python)
    return registry.controls(project).get(flow.key, FlowControls()).over(chosen.timeout_seconds)


def _discover(**flags: Any) -> Discovery:
    """What the project holds; what the server knows, where one is named."""
    chosen = settings(**flags)
    if chosen.url is not None:
        return with_server(chosen, lambda served: served.discovery())
    return _look_at(registry.locate(chosen.project, chosen.python), chosen)


def _look_at(project: Project, chosen: Settings) -> Discovery:
    with err.status(f"Looking at {project.root.name} …"):
        return registry.discover(project, seconds=chosen.import_seconds, secrets=(), storage=storage(chosen))


def _inputs(flow: Flow) -> str:
    if flow.input_schema is None:
        return "any"
    required = set(flow.input_schema.get("required", ()))
    return ", ".join(f"{name}{'*' if name in required else ''}" for name in flow.input_schema.get("properties", {}))


def _tree(flow: Flow) -> Tree:
    tree = Tree(Text(flow.key, "bold"), guide_style="dim")
    above = [tree]
    for line in outline(Graph.of(flow.graph)):
        label = (f"{line.label} → " if line.label else "", "yellow")
        del above[line.depth + 1 :]
        above.append(above[-1].add(Text.assemble(label, line.method, (line.remarks, "dim"))))
    return tree
