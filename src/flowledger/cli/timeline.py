"""How the inside of an execution looks: what happened as a tree, and its LLM calls as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from flowledger.cli.output import exact_money, on_one_line, plain, tokens
from flowledger.domain.duration import format_duration
from flowledger.domain.timeline import Event, Span, SpanStatus, spans
from flowledger.domain.usage import CallStatus, PricedCall, Total

_SIGNS = {
    SpanStatus.RUNNING: ("◐", "blue"),
    SpanStatus.COMPLETED: ("✓", "green"),
    SpanStatus.FAILED: ("✗", "red"),
    SpanStatus.REFUSED: ("⊘", "red"),
    SpanStatus.PAUSED: ("◷", "yellow"),
    SpanStatus.MOMENT: ("·", "dim"),
}
_LONGEST_NOTE = 100
_DEEPEST = 30


def timeline_table(events: Sequence[Event], calls: Iterable[PricedCall]) -> RenderableType:
    """Everything that happened, each below what encloses it, with its start, time, tokens and cost."""
    if not events:
        return Text("nothing was told of what happened inside", "dim")
    told = spans(events)
    begun, depths = told[0].started_at, _depths(told)
    by_sequence = {call.call.sequence: call for call in calls}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    # Where room is short it is taken from names and notes, each of which stays on its line.
    for column in ("AT", "WHAT", "TIME", "TOKENS", "COST"):
        table.add_column(column, justify="left" if column == "WHAT" else "right", no_wrap=column != "WHAT")
    table.add_column("NOTE")
    for span in told:
        call = by_sequence.get(span.sequence)
        table.add_row(
            Text(_offset(begun, span.started_at), "dim"),
            on_one_line(_what(span, depths[span.sequence])),
            "" if span.status is SpanStatus.MOMENT else format_duration(_whole(span.milliseconds)),
            Text(_tokens_of(call), "dim"),
            Text(cost_of(call), "dim"),
            _noted(span),
        )
    return table


def _depths(told: Sequence[Span]) -> dict[int, int]:
    depths: dict[int, int] = {}
    for span in told:
        depths[span.sequence] = min(depths.get(span.parent or 0, -1) + 1, _DEEPEST)
    return depths


def _what(span: Span, depth: int) -> Text:
    sign, style = _SIGNS[span.status]
    first_line = span.name.strip().partition("\n")[0]
    return Text.assemble("  " * depth, (sign, style), " ", (f"{span.subject} ", "dim"), first_line[:60])


def _offset(begun: datetime, at: datetime) -> str:
    return f"+{(at - begun).total_seconds():.3f}"


def _whole(milliseconds: float | None) -> int | None:
    return None if milliseconds is None else round(milliseconds)


def _noted(span: Span) -> Text:
    style = "red" if span.status in (SpanStatus.FAILED, SpanStatus.REFUSED) else "dim"
    return on_one_line(Text(_note(span), style))


def _note(span: Span) -> str:
    fields = span.fields
    note = fields.get("error") or fields.get("reason") or fields.get("message")
    if note is None and (found := fields.get("changes")):
        more = len(found) + fields.get("more_changes", 0) - 3
        note = "state " + ", ".join(_change(change) for change in found[:3]) + (f", {more} more" if more > 0 else "")
    if note is None:
        note = next((fields[name] for name in ("response", "output", "query", "value") if name in fields), "")
    return " ".join(str(note).split())[:_LONGEST_NOTE]


def _change(change: dict[str, Any]) -> str:
    sign = {"add": "+", "remove": "-", "replace": "~"}.get(str(change.get("op")), "~")
    return f"{sign}{change.get('path')}"


# -- LLM calls --------------------------------------------------------------------------------------------------------


def usage_table(calls: Sequence[PricedCall]) -> RenderableType:
    """The LLM calls with their tokens by class, price and cost, and their sum. What no call has is left out."""
    if not calls:
        return Text("no LLM call was seen", "dim")
    total = sum((Total.of(one.call, one.price) for one in calls), Total())
    footers = _footers(total)
    rows = [_row(one) for one in calls]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_footer=True)
    told = {name for name in footers if any(str(row[name]) not in _EMPTY for row in rows)}
    shown = [name for name in footers if name in told or name not in _LEFT_OUT_IF_EMPTY]
    for name in shown:
        gives_way = name in ("STEP", "AGENT", "PRICE")
        left = gives_way or name in ("STATUS", "MODEL")
        table.add_column(name, footers[name], justify="left" if left else "right", no_wrap=not gives_way)
    for row in rows:
        table.add_row(*(on_one_line(row[name]) for name in shown))
    return table


_LEFT_OUT_IF_EMPTY = ("CACHED", "WRITTEN", "REASONING", "FIRST", "AGENT")
_EMPTY = ("", "0")


def _footers(total: Total) -> dict[str, str]:
    usage = total.usage
    return {
        "#": "",
        "STATUS": f"{total.calls} calls",
        "MODEL": "",
        "STEP": "",
        "AGENT": "",
        "INPUT": tokens(usage.input_tokens),
        "CACHED": tokens(usage.cached_input_tokens),
        "WRITTEN": tokens(usage.cache_write_tokens),
        "OUTPUT": tokens(usage.output_tokens),
        "REASONING": tokens(usage.reasoning_tokens),
        "FIRST": "",
        "TIME": "",
        "COST": _sum_of(total),
        "PRICE": "",
    }


def _row(one: PricedCall) -> dict[str, str | Text]:
    call, usage = one.call, one.call.usage
    unknown = Text("?", "yellow")
    attempt = f" (attempt {call.retries + 1})" if call.retries else ""
    return {
        "#": str(call.number),
        "STATUS": Text(f"{call.status}{attempt}", "green" if call.status is CallStatus.COMPLETED else "red"),
        "MODEL": call.model,
        "STEP": call.step or "",
        "AGENT": " ".join((call.agent or "").split()),
        "INPUT": unknown if usage is None else tokens(usage.input_tokens),
        "CACHED": unknown if usage is None else tokens(usage.cached_input_tokens),
        "WRITTEN": unknown if usage is None else tokens(usage.cache_write_tokens),
        "OUTPUT": unknown if usage is None else tokens(usage.output_tokens),
        "REASONING": unknown if usage is None else tokens(usage.reasoning_tokens),
        "FIRST": format_duration(_whole(call.first_token_ms)),
        "TIME": format_duration(_whole(call.latency_ms)),
        "COST": cost_of(one) or unknown,
        "PRICE": "" if one.price is None else f"{one.price.source} {one.price.version}",
    }


def _sum_of(total: Total) -> str:
    known = exact_money(total.priced_usd)
    return known if total.cost_usd is not None else f"at least {known}"


def cost_of(call: PricedCall | None) -> str:
    """Exact; empty when nobody knows it."""
    return "" if call is None or call.cost_usd is None else exact_money(call.cost_usd)


def _tokens_of(call: PricedCall | None) -> str:
    return "" if call is None or call.call.usage is None else tokens(call.call.usage.total)


def told(call: PricedCall) -> dict[str, Any]:
    """A call as JSON has it, money as text."""
    facts = dict(vars(call.call))
    usage = facts.pop("usage")
    return {
        **plain(facts),
        "usage": plain(usage),
        "price": None if call.price is None else call.price.as_json(),
        "cost_usd": plain(call.cost_usd),
        "estimated_usd": plain(call.estimated_usd),
    }
