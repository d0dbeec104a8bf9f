"""Tells what was spent, and when the sum is a lower bound."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import Any

from rich.text import Text

from flowledger.cli.actions.reading import with_desk
from flowledger.cli.flags import moment, settings
from flowledger.cli.output import err, money, out, plain, tokens, write_json, write_table
from flowledger.domain.dimension import Dimension
from flowledger.domain.usage import exact_text
from flowledger.errors import InvalidInput
from flowledger.ledger import spending
from flowledger.ledger.spending import Days, Spent


def costs(*, by: Dimension, since: str, until: str | None, flow: str | None, as_json: bool, **flags: Any) -> None:
    chosen, days = settings(**flags), _days(since, until)

    found = with_desk(chosen, lambda desk: desk.costs(by, days, flow))
    total = spending.total(found)
    if as_json:
        write_json(
            {
                "by": by,
                "flow": flow,
                "first_day": days.first,
                "last_day": days.last,
                "rows": [{"key": _key(spent, by) or None, **_facts(spent)} for spent in found],
                "total": _facts(total),
            }
        )
        return
    _write(by, found, total)
    if total.is_lower_bound:
        err.print(Text(_why_lower(total), "dim"))


def _days(since: str, until: str | None) -> Days:
    begin, end = moment(since, "--since", zone=UTC), moment(until, "--until", zone=UTC)
    if begin is not None and end is not None and end <= begin:
        raise InvalidInput("--until", f"{until} is not after {since}", "Give a later date, or a shorter span.")
    return Days.between(begin, end)


def _write(by: Dimension, found: Sequence[Spent], total: Spent) -> None:
    eyes = out.is_terminal
    # A column that says the same as the one before it says nothing.
    repriced = total.repriced_usd != total.cost_usd or not eyes
    rows: list[Sequence[Text | str]] = [
        _cells(_key(spent, by) or ("none" if eyes else ""), spent, repriced=repriced) for spent in found
    ]
    if eyes and len(found) > 1:
        rows.append([Text(cell, "bold") for cell in _cells("total", total, repriced=repriced)])
    numbers = (
        "EXECUTIONS",
        "FAILED",
        "CALLS",
        "INPUT",
        "CACHED",
        "OUTPUT",
        "COST",
        *(("REPRICED",) if repriced else ()),
    )
    write_table((by.upper(), *numbers), rows, right=numbers)


def _cells(name: str, spent: Spent, *, repriced: bool) -> list[str]:
    count, cost = (tokens, money) if out.is_terminal else (_bare, _bare)
    amounts = [spent.cost_usd, *([spent.repriced_usd] if repriced else [])]
    bound = "≥ " if out.is_terminal and spent.is_lower_bound else ""
    counted = (spent.executions, spent.failed, spent.calls, spent.usage.input_tokens, spent.usage.cached_input_tokens)
    return [name, *map(count, counted), count(spent.usage.output_tokens), *(bound + cost(amount) for amount in amounts)]


def _bare(value: Any) -> str:
    return "" if value is None else str(plain(value))


def _key(spent: Spent, by: Dimension) -> str:
    return str(spent.day) if by is Dimension.DAY else spent.key or ""


def _facts(spent: Spent) -> dict[str, Any]:
    """Of one row or the total, as JSON has it."""
    facts = {name: value for name, value in vars(spent).items() if name not in ("day", "key", "usage")}
    money = {name: exact_text(facts[name]) for name in ("cost_usd", "repriced_usd")}
    return {**facts, **vars(spent.usage), **money, "is_lower_bound": spent.is_lower_bound}


def _why_lower(total: Spent) -> str:
    lacking = (
        (total.unpriced_calls, "of a model without a price"),
        (total.unknown_calls, "that nobody reported tokens of"),
    )
    parts = [f"{count:,} {'call' if count == 1 else 'calls'} {which}" for count, which in lacking if count]
    return (
        f"The cost is a lower bound: it lacks {' and '.join(parts)}. "
        "`flowledger prices check` names the models without a price."
    )
