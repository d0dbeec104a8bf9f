"""Reads executions, follows them and ends them."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any
from uuid import UUID

import typer
from rich.console import Group, RenderableType
from rich.json import JSON
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flowledger.cli.actions.reading import find, statuses, with_ledger
from flowledger.cli.exits import OUTCOMES, Exit
from flowledger.cli.flags import moment, seconds, settings
from flowledger.cli.opening import Ledger
from flowledger.cli.output import err, local_time, money, out, plain, status_text, tokens, write_executions, write_json
from flowledger.cli.progress import follow, summary
from flowledger.domain.duration import format_duration
from flowledger.domain.execution import Execution
from flowledger.domain.mode import Mode
from flowledger.errors import InvalidInput
from flowledger.ledger import executions, timeline
from flowledger.ledger.executions import Filters, Place, Rerun, Transition

_SHOWN_CHARACTERS = 2000


def list_(
    *,
    status: str | None,
    flow: str | None,
    mode: Mode | None,
    since: str | None,
    until: str | None,
    meeting: UUID | None,
    by: str | None,
    limit: int,
    after: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    chosen = settings(**flags)
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


def show(*, reference: str, transitions: bool, state: bool, error: bool, as_json: bool, **flags: Any) -> None:
    chosen = settings(**flags)

    async def read(open_ledger: Ledger) -> tuple[Execution, list[Transition], list[Rerun]]:
        execution = await find(open_ledger, reference)
        async with open_ledger.database.session(open_ledger.operator) as session:
            return (
                execution,
                await executions.transitions(session, execution.id),
                await executions.reruns(session, execution.id),
            )

    execution, steps, links = with_ledger(chosen, read)
    repeats = next((link for link in links if link.execution_id == execution.id), None)
    repeated_by = [link for link in links if link.of_execution == execution.id]
    if as_json:
        write_json(
            {
                **plain(execution),
                "repeats": plain(repeats),
                "repeated_by": plain(repeated_by),
                **({"transitions": plain(steps)} if transitions else {}),
            }
        )
        return
    facts = _facts(execution, repeats, repeated_by)
    out.print(_page(execution, facts, steps if transitions else [], whole_state=state, whole_error=error))


def watch(*, reference: str, timeout: str | None, as_json: bool, **flags: Any) -> None:
    chosen = settings(**flags)
    patience = seconds(timeout, "--timeout")

    async def watch_it(open_ledger: Ledger) -> Execution:
        return await follow(open_ledger, await find(open_ledger, reference), quiet=as_json, until=patience)

    ended = with_ledger(chosen, watch_it)
    if as_json:
        write_json(ended)
    else:
        out.print(summary(ended))
    raise typer.Exit(OUTCOMES.get(ended.status, Exit.STOPPED_WAITING))


def logs(*, reference: str, follow_: bool, as_json: bool, **flags: Any) -> None:
    chosen = settings(**flags)

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


def cancel(*, references: list[str], reason: str | None, as_json: bool, **flags: Any) -> None:
    chosen = settings(**flags)

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
    execution: Execution, facts: Table, steps: list[Transition], *, whole_state: bool, whole_error: bool
) -> RenderableType:
    parts: list[RenderableType] = [facts]
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


def _facts(execution: Execution, repeats: Rerun | None, repeated_by: list[Rerun]) -> Table:
    metadata = execution.metadata or {}
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
