"""`flowledger executions`: list, show, watch, logs, cancel, rerun, prune."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Group, RenderableType
from rich.json import JSON
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flowledger.cli.exits import OUTCOMES, Exit
from flowledger.cli.opening import Ledger
from flowledger.cli.options import (
    DatabaseOption,
    DataOption,
    JsonOption,
    PairsOption,
    ProjectOption,
    PythonOption,
    moment,
    seconds,
    settings,
)
from flowledger.cli.output import err, local_time, money, out, plain, status_text, tokens, write_executions, write_json
from flowledger.cli.progress import follow, summary
from flowledger.cli.reading import find, statuses, with_ledger
from flowledger.domain.duration import format_duration
from flowledger.domain.execution import Execution, Mode
from flowledger.domain.status import Status
from flowledger.errors import InvalidInput
from flowledger.ledger import executions, timeline
from flowledger.ledger.executions import Filters, Place, Rerun, Transition

app = typer.Typer(
    no_args_is_help=True, help="List, show, watch, cancel, repeat and prune executions, and read their logs."
)

_SHOWN_CHARACTERS = 2000

Reference = Annotated[
    str, typer.Argument(metavar="EXECUTION", help="Id, unique prefix of it, key, @last or @failed.", show_default=False)
]


@app.command("list")
@app.command("ls", hidden=True)
def list_(
    status: Annotated[str | None, typer.Option(help="One or more, comma-separated.", show_default=False)] = None,
    flow: Annotated[str | None, typer.Option(help="Flow key.", show_default=False)] = None,
    mode: Annotated[Mode | None, typer.Option(show_default=False)] = None,
    since: Annotated[str | None, typer.Option(help="A span like 24h, or a date.", show_default=False)] = None,
    until: Annotated[str | None, typer.Option(help="A span like 1h, or a date.", show_default=False)] = None,
    meeting: Annotated[UUID | None, typer.Option(help="Board meeting.", show_default=False)] = None,
    by: Annotated[str | None, typer.Option(help="User id, or `me`.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    after: Annotated[str | None, typer.Option(help="`next` of the page before.", show_default=False)] = None,
    as_json: JsonOption = False,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Executions, newest first."""
    chosen = settings(database_url=database_url, data_dir=data)
    place = Place.parse(after) if after else None

    async def page(open_ledger: Ledger) -> list[Execution]:
        filters = Filters(
            statuses=statuses(status),
            flow_key=flow,
            mode=mode,
            since=moment(since, "--since"),
            until=moment(until, "--until"),
            meeting=meeting,
            by=_user(by, open_ledger),
        )
        async with open_ledger.database.session(open_ledger.operator) as session:
            return await executions.list_(session, open_ledger.operator, filters, limit=limit, after=place)

    found = with_ledger(chosen, page)
    following = _place_after(found, limit)
    if as_json:
        write_json({"executions": found, "next": following and str(following)})
        return
    write_executions(found)
    if following:
        err.print(Text(f"more: --after {following}", "dim"))


@app.command()
def show(
    reference: Reference,
    transitions: Annotated[bool, typer.Option("--transitions", help="Every step of its status.")] = False,
    state: Annotated[bool, typer.Option("--state", help="Input and output in full.")] = False,
    error: Annotated[bool, typer.Option("--error", help="The whole stack.")] = False,
    as_json: JsonOption = False,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """One execution."""
    chosen = settings(database_url=database_url, data_dir=data)

    async def read(open_ledger: Ledger) -> tuple[Execution, list[Transition], list[Rerun]]:
        execution = await find(open_ledger, reference)
        async with open_ledger.database.session(open_ledger.operator) as session:
            return (
                execution,
                await executions.transitions(session, execution.id),
                await executions.reruns(session, execution.id),
            )

    execution, steps, links = with_ledger(chosen, read)
    if as_json:
        write_json(
            {
                **plain(execution),
                "repeats": plain(next((link for link in links if link.execution_id == execution.id), None)),
                "repeated_by": plain([link for link in links if link.of_execution == execution.id]),
                **({"transitions": plain(steps)} if transitions else {}),
            }
        )
        return
    out.print(_page(execution, steps if transitions else [], links, whole_state=state, whole_error=error))


@app.command()
def watch(
    reference: Reference = "@last",
    timeout: Annotated[str | None, typer.Option(help="How long to wait, such as 5m.", show_default=False)] = None,
    as_json: JsonOption = False,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Follow an execution until it has ended; exits by its outcome."""
    chosen = settings(database_url=database_url, data_dir=data)
    patience = seconds(timeout, "--timeout")

    async def watch_it(open_ledger: Ledger) -> Execution:
        return await follow(open_ledger, await find(open_ledger, reference), quiet=as_json, until=patience)

    ended = with_ledger(chosen, watch_it)
    if as_json:
        write_json(ended)
    else:
        out.print(summary(ended))
    raise typer.Exit(OUTCOMES.get(ended.status, Exit.STOPPED_WAITING))


@app.command()
def logs(
    reference: Reference = "@last",
    follow_: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the execution has ended.")] = False,
    as_json: JsonOption = False,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """What the flow wrote to stdout and stderr, each on its own stream; with --json one object a line."""
    chosen = settings(database_url=database_url, data_dir=data)

    async def read(open_ledger: Ledger) -> None:
        execution, last = await find(open_ledger, reference), 0
        while True:
            async with open_ledger.database.session(open_ledger.operator) as session:
                ended = (await executions.find(session, open_ledger.operator, str(execution.id))).status.is_terminal
                lines = await timeline.read_logs(session, execution.id, after=last)
            for line in lines:
                last = line.sequence
                _write_line(line, as_json=as_json)
            if ended or not follow_:
                return
            await asyncio.sleep(0.2)

    with_ledger(chosen, read)


@app.command()
def rerun(
    reference: Reference,
    pairs: PairsOption = None,
    edit: Annotated[bool, typer.Option("--edit", help="Change the inputs in $EDITOR first.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Record the execution and leave it to a worker.")] = False,
    as_json: JsonOption = False,
    project: ProjectOption = None,
    python: PythonOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Start a new execution with the inputs of an earlier one, changed or not; followed like `run`, same exit codes."""
    # Brings a worker along if none is at work; the other commands of this group need none of that.
    from flowledger.cli.rerun import repeat

    chosen = settings(project=project, python=python, database_url=database_url, data_dir=data, slots=1)
    repeat(chosen, reference, pairs or [], edit=edit, detach=detach, as_json=as_json)


@app.command()
def prune(
    older_than: Annotated[str, typer.Option("--older-than", help="A span like 90d, or a date.", show_default=False)],
    status: Annotated[
        str | None, typer.Option(help="One or more, comma-separated. Default: all ended ones.", show_default=False)
    ] = None,
    archive: Annotated[
        Path | None, typer.Option(help="Directory to keep what is deleted in, as Parquet files.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be deleted; the default.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete.")] = False,
    as_json: JsonOption = False,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Delete what ended long ago, with its timeline and logs. Tells what it would do, unless given --yes."""
    from flowledger.cli.prune import carry_out, tell

    chosen = settings(database_url=database_url, data_dir=data)
    before = moment(older_than, "--older-than")
    assert before is not None
    wanted = statuses(status) or tuple(one for one in Status if one.is_terminal)
    tell(
        with_ledger(
            chosen, lambda open_ledger: carry_out(open_ledger, wanted, before, archive, delete=yes and not dry_run)
        ),
        as_json=as_json,
    )


@app.command()
def cancel(
    references: Annotated[list[str], typer.Argument(metavar="EXECUTION...", show_default=False)],
    reason: Annotated[str | None, typer.Option(help="Kept with the execution.", show_default=False)] = None,
    as_json: JsonOption = False,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """End executions: a pending one at once, a running one as soon as its worker has killed it."""
    chosen = settings(database_url=database_url, data_dir=data)

    async def cancel_all(open_ledger: Ledger) -> dict[str, str]:
        answers = {}
        for reference in references:
            execution = await find(open_ledger, reference)
            async with open_ledger.database.session(open_ledger.operator) as session:
                answers[str(execution.id)] = await executions.cancel(session, execution.id, reason)
        return answers

    answers = with_ledger(chosen, cancel_all)
    if as_json:
        write_json(answers)
        return
    words = {"cancelled": "cancelled", "wished": "asked to stop", "ended": "had ended already"}
    for id_, answer in answers.items():
        out.print(f"{id_}  {words[answer]}")


# -- Reading ----------------------------------------------------------------------------------------------------------


def _user(text: str | None, open_ledger: Ledger) -> UUID | None:
    if text == "me":
        return open_ledger.me.user
    try:
        return UUID(text) if text else None
    except ValueError as wrong:
        raise InvalidInput("--by", f"{text!r} is no user id", "Give a UUID, or `me`.") from wrong


def _place_after(found: list[Execution], limit: int) -> Place | None:
    if len(found) < limit or (last := found[-1]).started_at is None:
        return None
    return Place(last.started_at, last.id)


# -- Showing ----------------------------------------------------------------------------------------------------------


def _page(
    execution: Execution, steps: list[Transition], links: list[Rerun], *, whole_state: bool, whole_error: bool
) -> RenderableType:
    parts: list[RenderableType] = [_facts(execution, links)]
    if execution.error_type:
        parts.append(_error(execution, whole=whole_error))
    parts += [
        _state(title, value, whole=whole_state)
        for title, value in (("Input", execution.input_state), ("Output", execution.output_state))
        if value is not None
    ]
    if steps:
        parts.append(_steps(steps))
    return Group(*parts)


def _facts(execution: Execution, links: list[Rerun]) -> Table:
    metadata = execution.metadata or {}
    repeated_by = [link for link in links if link.of_execution == execution.id]
    repeats = next((link for link in links if link.execution_id == execution.id), None)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    for name, value in (
        ("status", status_text(execution.status)),
        ("execution", str(execution.id)),
        ("key", execution.execution_key),
        (
            "flow",
            f"{execution.flow_key}  version {metadata['flow_version']}"
            if "flow_version" in metadata
            else execution.flow_key,
        ),
        ("mode", str(execution.execution_mode)),
        ("by", str(execution.executed_by or "")),
        ("meeting", str(execution.board_meeting_id or "")),
        ("rerun of", f"{repeats.of_execution}  {repeats.kind}, attempt {repeats.attempt}" if repeats else ""),
        ("repeated by", "\n".join(f"{link.execution_id}  {link.kind}" for link in repeated_by)),
        ("started", local_time(execution.started_at)),
        ("time", format_duration(execution.duration_ms)),
        ("tokens", tokens(execution.token_count)),
        ("cost", money(execution.cost_usd)),
    ):
        if str(value):
            table.add_row(name, value)
    return table


def _error(execution: Execution, *, whole: bool) -> RenderableType:
    text = Text(execution.error_message or "", "red")
    if execution.error_stack:
        stack = execution.error_stack.rstrip()
        text.append("\n\n" + (stack if whole else _tail(stack)), "default")
    return Panel(text, title=execution.error_type, title_align="left", border_style="red")


def _tail(stack: str, lines: int = 12) -> str:
    kept = stack.splitlines()[-lines:]
    return "\n".join(kept) if len(kept) == len(stack.splitlines()) else "\n".join(["… --error shows all", *kept])


def _state(title: str, value: Any, *, whole: bool) -> RenderableType:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    shown = JSON(text, ensure_ascii=False).text
    shown.no_wrap, shown.overflow = False, "fold"
    if not whole and len(text) > _SHOWN_CHARACTERS:
        shown = shown[:_SHOWN_CHARACTERS].append("\n… --state shows all", "dim")
    return Panel(shown, title=title, title_align="left", border_style="dim")


def _steps(steps: list[Transition]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("AT", "FROM", "TO", "BY", "WHY", "FENCE", "WORKER"):
        table.add_column(column)
    for step in steps:
        table.add_row(
            step.at.astimezone().strftime("%H:%M:%S.%f")[:-3],
            step.from_status or "",
            status_text(step.to_status),
            step.actor,
            step.reason or "",
            str(step.fence or ""),
            str(step.worker_id or "")[:8],
        )
    return table


def _write_line(line: Any, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(plain(line), ensure_ascii=False) + "\n")
        return
    stream = sys.stderr if line.stream == "stderr" else sys.stdout
    stream.write(line.text)
    stream.flush()
