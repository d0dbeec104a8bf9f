"""Reads executions, follows them and ends them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, Literal
from uuid import UUID

import typer
from rich.console import Group, RenderableType
from rich.json import JSON
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flowledger.cli.actions.reading import find, statuses, with_desk
from flowledger.cli.desk import Desk, Inside, Wanted
from flowledger.cli.exits import OUTCOMES, Exit
from flowledger.cli.flags import moment, seconds, settings
from flowledger.cli.output import (
    cost,
    err,
    local_time,
    money,
    out,
    plain,
    status_text,
    tokens,
    write_executions,
    write_json,
)
from flowledger.cli.progress import follow, summary
from flowledger.cli.timeline import timeline_table, told, usage_table
from flowledger.domain.duration import format_duration
from flowledger.domain.execution import Execution, Transition
from flowledger.domain.mode import Mode
from flowledger.domain.usage import Repricing
from flowledger.errors import InvalidInput

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
    wanted = Wanted(
        statuses=statuses(status),
        flow_key=flow,
        mode=mode,
        since=moment(since, "--since"),
        until=moment(until, "--until"),
        meeting=meeting,
        by=_user(by),
    )
    found = with_desk(settings(**flags), lambda desk: desk.page(wanted, limit=limit, after=after))
    if as_json:
        write_json({"executions": found.executions, "next": found.next})
        return
    write_executions(found.executions)
    if found.next:
        err.print(Text(f"more: --after {found.next}", "dim"))


def show(
    *,
    reference: str,
    transitions: bool,
    state: bool,
    error: bool,
    timeline: bool,
    usage: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    async def read(desk: Desk) -> Inside:
        execution = await find(desk, reference)
        # A timeline shows the tokens and cost of its calls too.
        return await desk.inside(execution.id, transitions=transitions, events=timeline, calls=timeline or usage)

    inside = with_desk(settings(**flags), read)
    if as_json:
        parts: dict[str, tuple[bool, Any]] = {
            "transitions": (transitions, plain(inside.transitions)),
            "timeline": (timeline, plain(inside.events)),
            "usage": (usage, [told(call) for call in inside.calls]),
        }
        write_json(
            {
                **plain(inside.execution),
                "repeats": plain(inside.repeats),
                "repeated_by": plain(inside.repeated_by),
                "repricings": plain(inside.repricings),
                **{name: value for name, (asked, value) in parts.items() if asked},
            }
        )
        return
    page = _page(inside, whole_error=error)
    if state or not (timeline or usage or transitions):
        page += _states(inside.execution, whole=state)
    if timeline:
        page += ["", timeline_table(inside.events, inside.calls)]
    if usage:
        page += ["", usage_table(inside.calls)]
    if transitions:
        page += ["", _steps(inside.transitions)]
    out.print(Group(*page), soft_wrap=False)


def watch(*, reference: str, timeout: str | None, as_json: bool, **flags: Any) -> None:
    chosen = settings(**flags)
    patience = seconds(timeout, "--timeout")

    async def watch_it(desk: Desk) -> Execution:
        return await follow(desk, await find(desk, reference), quiet=as_json, until=patience)

    ended = with_desk(chosen, watch_it)
    if as_json:
        write_json(ended)
    else:
        out.print(summary(ended))
    raise typer.Exit(OUTCOMES.get(ended.status, Exit.STOPPED_WAITING))


def logs(*, reference: str, follow_: bool, as_json: bool, **flags: Any) -> None:
    chosen = settings(**flags)

    async def read(desk: Desk) -> None:
        execution, last = await find(desk, reference), 0
        async with aclosing(desk.nudges(execution.id, None)) as nudges:
            async for _ in nudges:
                ended = (await desk.find(str(execution.id))).status.is_terminal
                for line in await desk.logs(execution.id, after=last):
                    last = line.sequence
                    _write_line(line, as_json=as_json)
                if ended or not follow_:
                    return

    with_desk(chosen, read)


def cancel(*, references: list[str], reason: str | None, as_json: bool, **flags: Any) -> None:
    chosen = settings(**flags)

    async def cancel_all(desk: Desk) -> dict[str, str]:
        answers = {}
        for reference in references:
            execution = await find(desk, reference)
            answers[str(execution.id)] = await desk.cancel(execution.id, reason)
        return answers

    answers = with_desk(chosen, cancel_all)
    if as_json:
        write_json(answers)
        return
    words = {"cancelled": "cancelled", "wished": "asked to stop", "ended": "had ended already"}
    for id_, answer in answers.items():
        out.print(f"{id_}  {words[answer]}")


# -- Reading ----------------------------------------------------------------------------------------------------------


def _user(text: str | None) -> UUID | Literal["me"] | None:
    if text == "me":
        return "me"
    try:
        return UUID(text) if text else None
    except ValueError as wrong:
        raise InvalidInput("--by", f"{text!r} is no user id", "Give a UUID, or `me`.") from wrong


# -- Showing ----------------------------------------------------------------------------------------------------------


def _page(inside: Inside, *, whole_error: bool) -> list[RenderableType]:
    parts: list[RenderableType] = [_facts(inside)]
    if inside.execution.error_type:
        parts.append(_error(inside.execution, whole=whole_error))
    return parts


def _states(execution: Execution, *, whole: bool) -> list[RenderableType]:
    return [
        _state(title, value, whole=whole)
        for title, value in (("Input", execution.input_state), ("Output", execution.output_state))
        if value is not None
    ]


def _facts(inside: Inside) -> Table:
    execution, repeats, metadata = inside.execution, inside.repeats, inside.execution.metadata or {}
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
        ("repeated by", "\n".join(f"{link.execution_id}  {link.kind}" for link in inside.repeated_by)),
        ("started", local_time(execution.started_at)),
        ("time", format_duration(execution.duration_ms)),
        ("tokens", tokens(execution.token_count)),
        ("cost", _cost(execution, inside.repricings)),
        ("budget", _budget(metadata)),
        ("failed steps", ", ".join(f"{name} ×{count}" for name, count in metadata.get("failed_steps", {}).items())),
        ("error group", str(metadata.get("error_fingerprint", ""))),
    ):
        if str(value):
            table.add_row(name, value)
    return table


def _cost(execution: Execution, repricings: Sequence[Repricing]) -> str:
    """What the row says; why it says nothing; and what a later price would have made of it."""
    metadata = execution.metadata or {}
    told = cost(execution)
    if execution.cost_usd is None and (known := metadata.get("exact_cost_usd")):
        unpriced = metadata.get("unpriced_models")
        why = f"no price for {', '.join(unpriced)}" if unpriced else "some calls reported no tokens"
        told = f"unknown: at least ${known}, {why}"
    if repricings:
        latest = repricings[0]
        later = money(latest.new_usd) or "still unknown"
        told = f"{told or 'unknown'}; {later} by the prices of {latest.repriced_at:%Y-%m-%d}"
    return told


def _budget(metadata: dict[str, Any]) -> str:
    told = []
    for budget in metadata.get("budgets", ()):
        if "limit_usd" in budget:
            told.append(f"${budget.get('spent_usd')} of ${budget['limit_usd']}")
        if "limit_tokens" in budget:
            told.append(f"{budget.get('spent_tokens', 0):,} of {budget['limit_tokens']:,} tokens")
    return ", ".join(told)


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


def _steps(steps: Sequence[Transition]) -> Table:
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
