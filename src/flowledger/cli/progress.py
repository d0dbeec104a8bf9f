"""Follows one execution on the terminal: its steps as they happen, with time, tokens and dollars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flowledger.cli.desk import Desk
from flowledger.cli.output import cost, err, exact_money, first_line, short_id, status_text, tokens
from flowledger.domain.duration import format_duration
from flowledger.domain.execution import Execution
from flowledger.domain.status import Status
from flowledger.domain.timeline import Event, EventKind
from flowledger.domain.usage import PricedCall

_FRAMES_PER_SECOND = 8
_DEEPEST = 50


@dataclass
class _Step:
    """`spent` is what is known of its cost; None: no call of it had a price."""

    name: str
    started_at: datetime
    ended_at: datetime | None = None
    failed: str = ""
    tokens: int = 0
    spent: Decimal | None = None
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
    """Steps of one execution, put together from its timeline and its LLM calls."""

    def __init__(self) -> None:
        self.sequence = 0
        self.ended: list[_Step] = []
        """Steps whose end was seen; whoever tells of them takes them away."""
        self._steps: dict[int, _Step] = {}
        self._parents: dict[int, int | None] = {}
        self._calls: set[int] = set()

    @property
    def steps(self) -> Sequence[_Step]:
        return list(self._steps.values())

    def take(self, events: Sequence[Event], calls: Sequence[PricedCall]) -> None:
        """Adds what is new of them."""
        for event in events:
            self._take(event)
        for call in calls:
            if call.call.number not in self._calls:
                self._calls.add(call.call.number)
                self._add(call)

    def _take(self, event: Event) -> None:
        self.sequence = event.sequence
        if event.kind.is_beginning:
            self._parents[event.sequence] = event.parent
        step = self._enclosing(event.parent)
        match event.kind:
            case EventKind.METHOD_STARTED:
                self._steps[event.sequence] = _Step(event.name, event.at)
            case EventKind.METHOD_FINISHED | EventKind.METHOD_FAILED:
                self._end(event)
            case EventKind.LLM_STARTED | EventKind.TOOL_STARTED if step:
                step.doing = event.name
            case EventKind.TOOL_FINISHED | EventKind.TOOL_FAILED if step:
                step.tools.append(event.name)

    def _end(self, event: Event) -> None:
        step = self._steps.get(event.began or 0)
        if step is None:
            return
        step.ended_at = event.at
        if event.kind is EventKind.METHOD_FAILED:
            step.failed = str(event.fields.get("error", "failed"))
        self.ended.append(step)

    def _add(self, call: PricedCall) -> None:
        step = self._enclosing(call.call.sequence)
        if step is None:
            return
        if call.call.usage is not None:
            step.tokens += call.call.usage.total
        if call.cost_usd is not None:
            step.spent = (step.spent or Decimal(0)) + call.cost_usd

    def _enclosing(self, sequence: int | None) -> _Step | None:
        """The step in which something happened."""
        for _ in range(_DEEPEST):
            if sequence is None or sequence in self._steps:
                break
            sequence = self._parents.get(sequence)
        return self._steps.get(sequence or 0)


async def follow(desk: Desk, execution: Execution, *, quiet: bool = False, until: float | None = None) -> Execution:
    """Shows the execution until it has ended and answers with its row; on a terminal live, else a line for each step.

    `until`: how many seconds to wait; None waits for ever. What still runs by then is answered as it is.
    """
    progress = Progress()
    if quiet:
        return await _watch(desk, execution, progress, lambda: None, until)
    err.print(Text.assemble((execution.flow_key, "bold"), "  ", (short_id(execution.id), "dim")))
    if not err.is_terminal:
        return await _watch(desk, execution, progress, lambda: _tell(progress), until)
    with Live(console=err, refresh_per_second=_FRAMES_PER_SECOND, get_renderable=lambda: _picture(progress)):
        return await _watch(desk, execution, progress, lambda: None, until)


async def _watch(
    desk: Desk, execution: Execution, progress: Progress, looked: Callable[[], object], until: float | None
) -> Execution:
    row = execution
    async with aclosing(desk.nudges(execution.id, until)) as nudges:
        async for _ in nudges:
            look = await desk.look(execution.id, after=progress.sequence)
            row = look.execution
            progress.take(look.events, look.calls)
            looked()
            if row.status.is_terminal:
                break
    return row


def summary(execution: Execution) -> Text:
    """`✓ completed  1 min 36 s  1,377 tokens  $0.24`, and why if it failed, or which steps did."""
    parts = [format_duration(execution.duration_ms)]
    if execution.token_count is not None:
        parts.append(f"{tokens(execution.token_count)} tokens")
    if execution.cost_usd is not None:
        parts.append(cost(execution))
    elif execution.token_count is not None:
        parts.append("cost unknown")
    line = Text.assemble(status_text(execution.status), "  ", "  ".join(part for part in parts if part))
    if execution.error_type:
        line.append(f"\n  {execution.error_type}: {first_line(execution.error_message)}", "red")
    elif failed := (execution.metadata or {}).get("failed_steps"):
        line.append(f"\n  although steps failed: {', '.join(failed)}", "yellow")
    return line


def _tell(progress: Progress) -> None:
    for step in progress.ended:
        err.print(_line(step))
    progress.ended.clear()


def _line(step: _Step) -> Text:
    return Text.assemble(
        "  ",
        (status_text(step.status).plain[0], status_text(step.status).style),
        f" {step.name:<24}",
        f"{format_duration(step.milliseconds):>12}  ",
        (f"{_tokens(step.tokens):>14}  ", "dim"),
        (f"{_spent(step.spent):>10}  ", "dim"),
        (step.notes, "dim"),
    )


def _picture(progress: Progress) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    for column in ("step", "time", "tokens", "cost", "notes"):
        table.add_column(justify="left" if column in ("step", "notes") else "right")
    for step in progress.steps:
        sign = status_text(step.status)
        table.add_row(
            Text.assemble("  ", (sign.plain[0], sign.style), f" {step.name}"),
            format_duration(step.milliseconds),
            Text(_tokens(step.tokens), "dim"),
            Text(_spent(step.spent), "dim"),
            Text(step.notes, "dim"),
        )
    return Group(table, _totals(progress.steps))


def _totals(steps: Sequence[_Step]) -> Text:
    """What all steps have taken so far; nothing while there is nothing to tell."""
    count = sum(step.tokens for step in steps)
    priced = [step.spent for step in steps if step.spent is not None]
    parts = [_tokens(count), _spent(sum(priced, Decimal(0)) if priced else None)]
    told = "  ".join(part for part in parts if part)
    return Text(f"    {told}" if told else "", "dim")


def _tokens(count: int) -> str:
    return f"{count:,} tokens" if count else ""


def _spent(amount: Decimal | None) -> str:
    return "" if amount is None else exact_money(amount)
