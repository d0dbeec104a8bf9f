"""Follows one execution on the terminal: its steps as they happen, with time and tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flowledger.cli.opening import Ledger
from flowledger.cli.output import err, first_line, short_id, status_text, tokens
from flowledger.domain.duration import format_duration
from flowledger.domain.execution import Execution
from flowledger.domain.status import Status
from flowledger.domain.timeline import Event, EventKind
from flowledger.ledger import executions, timeline

_LOOK_SECONDS = 0.1
_FRAMES_PER_SECOND = 8


@dataclass
class _Step:
    name: str
    started_at: datetime
    ended_at: datetime | None = None
    failed: str = ""
    tokens: int = 0
    tools: list[str] = field(default_factory=list)
    doing: str = ""

    @property
    def status(self) -> Status:
        if self.ended_at is None:
            return Status.RUNNING
        return Status.FAILED if self.failed else Status.COMPLETED

    @property
    def milliseconds(self) -> int:
        return round(((self.ended_at or datetime.now(UTC)) - self.started_at).total_seconds() * 1000)

    @property
    def notes(self) -> str:
        if self.ended_at is None:
            return self.doing
        counted = [f"{tool} ×{self.tools.count(tool)}" for tool in dict.fromkeys(self.tools)]
        return first_line(self.failed) or ", ".join(counted)


class Progress:
    """Steps of one execution, put together from its timeline."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self.sequence = 0

    def take(self, event: Event) -> _Step | None:
        """Adds one event. Answers with the step that it ended, if any."""
        self.sequence = event.sequence
        match event.kind:
            case EventKind.METHOD_STARTED:
                self.steps.append(_Step(event.name, event.at))
            case EventKind.METHOD_FINISHED | EventKind.METHOD_FAILED:
                return self._end(event)
            case EventKind.LLM_STARTED:
                self._now(event, event.name)
            case EventKind.LLM_COMPLETED:
                self._add_tokens(event)
            case EventKind.TOOL_STARTED:
                self._now(event, event.name)
            case EventKind.TOOL_FINISHED | EventKind.TOOL_FAILED:
                if step := self._step_of(event):
                    step.tools.append(event.name)
        return None

    def _end(self, event: Event) -> _Step | None:
        step = self._open(event.name)
        if step is None:
            return None
        step.ended_at = event.at
        if event.kind is EventKind.METHOD_FAILED:
            step.failed = str(event.fields.get("error", "failed"))
        return step

    def _now(self, event: Event, doing: str) -> None:
        if step := self._step_of(event):
            step.doing = doing

    def _add_tokens(self, event: Event) -> None:
        step = self._step_of(event)
        usage = event.fields.get("usage") or {}
        if step is not None:
            step.tokens += int(usage.get("input_tokens", 0)) + int(usage.get("output_tokens", 0))

    def _step_of(self, event: Event) -> _Step | None:
        """The step in which a call happened: the one it names, else the one that began last and still runs."""
        named = event.fields.get("method")
        return self._open(str(named)) if named else next((s for s in reversed(self.steps) if s.ended_at is None), None)

    def _open(self, name: str) -> _Step | None:
        return next((step for step in reversed(self.steps) if step.name == name and step.ended_at is None), None)


async def follow(ledger: Ledger, execution: Execution, *, quiet: bool = False, until: float | None = None) -> Execution:
    """Shows the execution until it has ended and answers with its row; on a terminal live, else a line for each step.

    `until`: how many seconds to wait; None waits for ever. What still runs by then is answered as it is.
    """
    progress = Progress()
    if quiet:
        return await _watch(ledger, execution.id, progress, lambda _: None, until)
    err.print(Text.assemble((execution.flow_key, "bold"), "  ", (short_id(execution.id), "dim")))
    if not err.is_terminal:
        return await _watch(ledger, execution.id, progress, lambda step: err.print(_line(step)), until)
    with Live(console=err, refresh_per_second=_FRAMES_PER_SECOND, get_renderable=lambda: _picture(progress)):
        return await _watch(ledger, execution.id, progress, lambda _: None, until)


async def _watch(
    ledger: Ledger, execution: UUID, progress: Progress, ended: Callable[[_Step], object], until: float | None
) -> Execution:
    give_up_at = None if until is None else asyncio.get_running_loop().time() + until
    while True:
        async with ledger.database.session(ledger.operator) as session:
            # Read first: events are written before the row ends, so a row that has ended has all of them.
            row = await executions.find(session, ledger.operator, str(execution))
            events = await timeline.read(session, execution, after=progress.sequence)
        for event in events:
            if step := progress.take(event):
                ended(step)
        if row.status.is_terminal or (give_up_at and asyncio.get_running_loop().time() > give_up_at):
            return row
        await asyncio.sleep(_LOOK_SECONDS)


def summary(execution: Execution) -> Text:
    """`✓ completed  1 min 36 s  1,377 tokens`, and why if it failed."""
    parts = [format_duration(execution.duration_ms)]
    if execution.token_count is not None:
        parts.append(f"{tokens(execution.token_count)} tokens")
    line = Text.assemble(status_text(execution.status), "  ", "  ".join(part for part in parts if part))
    if execution.error_type:
        line.append(f"\n  {execution.error_type}: {first_line(execution.error_message)}", "red")
    return line


def _line(step: _Step) -> Text:
    count = f"{step.tokens:,} tokens" if step.tokens else ""
    return Text.assemble(
        "  ",
        (status_text(step.status).plain[0], status_text(step.status).style),
        f" {step.name:<24}",
        f"{format_duration(step.milliseconds):>12}  ",
        (f"{count:>14}  ", "dim"),
        (step.notes, "dim"),
    )


def _picture(progress: Progress) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    for step in progress.steps:
        sign = status_text(step.status)
        table.add_row(
            Text.assemble("  ", (sign.plain[0], sign.style), f" {step.name}"),
            Text(format_duration(step.milliseconds), justify="right"),
            Text(f"{step.tokens:,} tokens" if step.tokens else "", "dim", justify="right"),
            Text(step.notes, "dim"),
        )
    return Group(table)
