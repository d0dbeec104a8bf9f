"""How results look: a table for eyes, tab-separated columns for pipes, JSON for programs. Results go to stdout.

Status is shape, word and colour, as on every other surface. Times are local for eyes and UTC in JSON; money is a string
in JSON, never a float.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flowledger.domain.duration import format_duration
from flowledger.domain.execution import Execution
from flowledger.domain.status import Status
from flowledger.domain.usage import exact_text

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_GIVES_WAY = frozenset({"ERROR", "DESCRIPTION", "INPUTS"})
_SIGNS = {
    Status.PENDING: ("○", "dim"),
    Status.RUNNING: ("◐", "blue"),
    Status.COMPLETED: ("✓", "green"),
    Status.FAILED: ("✗", "red"),
    Status.CANCELLED: ("⊘", "dim"),
    Status.TIMEOUT: ("◷", "yellow"),
}


def status_text(status: Status) -> Text:
    sign, style = _SIGNS[status]
    return Text(f"{sign} {status}", style)


def short_id(id_: UUID) -> str:
    return str(id_)[:8]


def local_time(at: datetime | None, *, today: date | None = None) -> str:
    """`14:41:37` for today, `Sun 11:20` for this week, else the date."""
    if at is None:
        return ""
    at = at.astimezone()
    today = today or datetime.now().astimezone().date()
    if at.date() == today:
        return at.strftime("%H:%M:%S")
    if (today - at.date()).days < 7:
        return at.strftime("%a %H:%M")
    return at.strftime("%Y-%m-%d %H:%M")


def tokens(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def money(cost: Decimal | None) -> str:
    return "" if cost is None else f"${cost:.4f}".rstrip("0").rstrip(".")


def exact_money(amount: Decimal) -> str:
    """To the millionth of a dollar: single calls cost less than a hundredth of a cent."""
    return f"${amount:.6f}".rstrip("0").rstrip(".") if amount < 1 else money(amount)


def cost(execution: Execution) -> str:
    """What the execution cost, with the digits that its column has no room for; empty when nobody knows."""
    if execution.cost_usd is None:
        return ""
    exact = (execution.metadata or {}).get("exact_cost_usd")
    return money(execution.cost_usd) if exact is None else exact_money(Decimal(exact))


def first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def write_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(plain(value), indent=2 if out.is_terminal else None, ensure_ascii=False) + "\n")


def plain(value: Any) -> Any:
    """The value as JSON has it: the API's keys, UTC times, money as string."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return exact_text(value)
    if isinstance(value, UUID):
        return str(value)
    return value


def write_result(execution: Execution) -> None:
    """What the flow returned: text as it is, anything else as JSON. Nothing if there is no result."""
    output = execution.output_state
    result = output.get("result") if isinstance(output, dict) else None
    if isinstance(result, str):
        sys.stdout.write(result + "\n")
    elif result is not None:
        write_json(result)


def write_table(columns: Sequence[str], rows: Iterable[Sequence[Text | str]], *, right: Sequence[str] = ()) -> None:
    """A table for eyes; in a pipe the same columns, tab-separated, without the heading."""
    if not out.is_terminal:
        for row in rows:
            sys.stdout.write("\t".join(str(cell).replace("\t", " ") for cell in row) + "\n")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        # Where room is short it is taken from the errors, each of which stays on its line.
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column not in _GIVES_WAY)
    for row in rows:
        table.add_row(*(on_one_line(cell) for cell in row))
    out.print(table, soft_wrap=False)


def on_one_line(cell: Text | str) -> Text:
    """A cell that is cut where room is short, and never takes a second line."""
    text = cell.copy() if isinstance(cell, Text) else Text(cell)
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def write_executions(executions: Sequence[Execution]) -> None:
    """The list that `executions list` and the demo show."""
    eyes = out.is_terminal
    write_table(
        ("STATUS", "EXECUTION", "FLOW", "STARTED", "TIME", "TOKENS", "COST", "MODE", "ERROR"),
        [
            (
                status_text(execution.status) if eyes else str(execution.status),
                short_id(execution.id) if eyes else str(execution.id),
                execution.flow_key,
                local_time(execution.started_at) if eyes else _iso(execution.started_at),
                format_duration(execution.duration_ms) if eyes else str(execution.duration_ms or ""),
                tokens(execution.token_count) if eyes else str(execution.token_count or ""),
                cost(execution) if eyes else str(plain(execution.cost_usd) or ""),
                str(execution.execution_mode),
                _why(execution),
            )
            for execution in executions
        ],
        right=("TIME", "TOKENS", "COST"),
    )


def _iso(at: datetime | None) -> str:
    return str(plain(at) or "")


def _why(execution: Execution) -> str:
    if execution.error_type is None:
        return ""
    return f"{execution.error_type}: {first_line(execution.error_message)}"
