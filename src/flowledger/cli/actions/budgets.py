"""Lists, sets and removes the windows that limit spending."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

from flowledger.cli.actions.reading import with_ledger
from flowledger.cli.flags import settings
from flowledger.cli.opening import Ledger
from flowledger.cli.output import out, short_id, write_json, write_table
from flowledger.database.session import Connection
from flowledger.domain.budget import Budget
from flowledger.domain.reach import OnReach
from flowledger.domain.usage import dollars, exact_text
from flowledger.domain.window import Period, Scope
from flowledger.errors import BudgetNotFound, InvalidInput
from flowledger.ledger import budgets, flows
from flowledger.ledger.budgets import Whose, Window

_MOST_USD = Decimal(10**12)


def list_(*, as_json: bool, **flags: Any) -> None:
    async def read(open_ledger: Ledger) -> list[Window]:
        async with open_ledger.database.session(open_ledger.operator) as session:
            return await budgets.list_(session)

    found = with_ledger(settings(**flags), read)
    if as_json:
        write_json([_facts(window) for window in found])
        return
    write_table(
        ("ID", "OF", "PER", "LIMIT", "SPENT", "SET ASIDE", "LEFT", "AT THE LIMIT"),
        [_cells(window) for window in found],
        right=("ID", "LIMIT", "SPENT", "SET ASIDE", "LEFT"),
    )


def set_(
    *,
    flow: str | None,
    user: str | None,
    everything: bool,
    per: Period,
    usd: str | None,
    tokens: int | None,
    on_reach: OnReach,
    as_json: bool,
    **flags: Any,
) -> None:
    if sum((flow is not None, user is not None, everything)) != 1:
        raise InvalidInput("budget", "is of one thing", "Give one of --flow, --user and --everything.")
    budget, of_user = Budget(_usd(usd), tokens, on_reach), _user(user)

    async def change(open_ledger: Ledger) -> Window:
        async with open_ledger.database.session(open_ledger.operator) as session:
            id_ = await budgets.set_(session, await _whose(session, flow, of_user, everything=everything), per, budget)
            return next(window for window in await budgets.list_(session) if window.id == id_)

    window = with_ledger(settings(**flags), change)
    if as_json:
        write_json(_facts(window))
        return
    limit = _amounts(window.usd, window.tokens)
    out.print(f"{_of(window)}  {limit} a {window.period}, {window.on_reach} at the limit", markup=False)


def remove(*, window: int, as_json: bool, **flags: Any) -> None:
    async def change(open_ledger: Ledger) -> bool:
        async with open_ledger.database.session(open_ledger.operator) as session:
            return await budgets.remove(session, window)

    if not with_ledger(settings(**flags), change):
        raise BudgetNotFound(window)
    if as_json:
        write_json({"id": window, "removed": True})
    else:
        out.print(f"{window}  removed")


async def _whose(session: Connection, flow: str | None, user: UUID | None, *, everything: bool) -> Whose:
    if flow is not None:
        return Whose(Scope.FLOW, flow=await flows.find(session, flow))
    return Whose(Scope.EVERYTHING) if everything else Whose(Scope.USER, user=user)


def _usd(text: str | None) -> Decimal | None:
    if text is None:
        return None
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    # A NaN cannot be compared.
    if not amount.is_finite() or not 0 <= amount <= _MOST_USD:
        raise InvalidInput("--usd", f"{text!r} is no amount from 0 to {_MOST_USD:,}", "Give one like 25 or 0.50.")
    return amount


def _user(text: str | None) -> UUID | None:
    if text is None or text == "each":
        return None
    try:
        return UUID(text)
    except ValueError as wrong:
        raise InvalidInput("--user", f"{text!r} is no user's id", "Give a UUID, or `each`.") from wrong


def _facts(window: Window) -> dict[str, Any]:
    facts = {**vars(window), "left_usd": window.left_usd, "left_tokens": window.left_tokens}
    return {name: exact_text(value) if isinstance(value, Decimal) else value for name, value in facts.items()}


def _cells(window: Window) -> tuple[str, ...]:
    who = f" by {short_id(window.told_of)}" if window.user_id is None and window.told_of else ""
    in_usd, in_tokens = window.usd is not None, window.tokens is not None
    return (
        str(window.id),
        _of(window),
        str(window.period),
        _amounts(window.usd, window.tokens),
        _amounts(window.spent_usd if in_usd else None, window.spent_tokens if in_tokens else None) + who,
        _amounts(window.reserved_usd if in_usd else None, window.reserved_tokens if in_tokens else None),
        _amounts(window.left_usd, window.left_tokens),
        str(window.on_reach),
    )


def _of(window: Window) -> str:
    match window.scope:
        case Scope.FLOW:
            return f"flow {window.flow_key}"
        case Scope.USER:
            return f"user {window.user_id}" if window.user_id else "each user"
        case Scope.EVERYTHING:
            return "everything"


def _amounts(usd: Decimal | None, tokens: int | None) -> str:
    parts = ("" if usd is None else dollars(usd), "" if tokens is None else f"{tokens:,} tokens")
    return ", ".join(part for part in parts if part)
