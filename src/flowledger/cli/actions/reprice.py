"""Tells what ended executions would cost at the prices of now; told to, notes it beside their frozen rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

from rich.text import Text

from flowledger.cli.actions.reading import with_ledger
from flowledger.cli.flags import moment, settings
from flowledger.cli.opening import Ledger
from flowledger.cli.output import err, out, write_json, write_table
from flowledger.domain.usage import add_usd, cost, exact_text
from flowledger.errors import FlowNotFound
from flowledger.ledger import flows, prices, repricings
from flowledger.ledger.repricings import PastCall, RepricedCall, Which
from flowledger.prices import Prices, catalogue_file

_EXECUTIONS_AT_ONCE = 200


@dataclass
class Change:
    """What a model's calls cost differently. `newly_priced` of the `calls` had no cost until now."""

    model: str
    provider: str
    calls: int = 0
    newly_priced: int = 0
    counted_usd: Decimal = Decimal(0)
    new_usd: Decimal = Decimal(0)
    prices: set[str] = field(default_factory=set)

    def add(self, repriced: RepricedCall) -> None:
        counted = repriced.call.cost_usd
        self.calls += 1
        self.newly_priced += counted is None
        self.counted_usd = add_usd(self.counted_usd, counted or Decimal(0))
        self.new_usd = add_usd(self.new_usd, repriced.cost_usd)
        self.prices.add(f"{repriced.price.source} {repriced.price.version}")


@dataclass
class Repriced:
    """What was found, and how many executions it was noted of. `recorded` None: it was only told."""

    recorded: int | None = None
    executions: int = 0
    changes: dict[tuple[str, str], Change] = field(default_factory=dict)

    def add(self, calls: Iterable[RepricedCall]) -> None:
        executions: set[UUID] = set()
        for one in calls:
            executions.add(one.call.execution)
            name = one.call.model, one.call.provider
            self.changes.setdefault(name, Change(*name)).add(one)
        self.executions += len(executions)


def reprice(*, since: str, model: str | None, flow: str | None, record: bool, as_json: bool, **flags: Any) -> None:
    chosen, started = settings(**flags), moment(since, "--since")
    assert started is not None

    async def carry_out(open_ledger: Ledger) -> Repriced:
        async with open_ledger.database.session(open_ledger.operator) as session:
            known = Prices(await prices.list_(session), catalogue_file())
            which = Which(started, None if flow is None else _flow(flow, await flows.list_(session)), model)
        with err.status("Pricing …"):
            return await _carry_out(open_ledger, known, which, record=record)

    _tell(with_ledger(chosen, carry_out), as_json=as_json)


async def _carry_out(open_ledger: Ledger, known: Prices, which: Which, *, record: bool) -> Repriced:
    """Page by page, each in a transaction of its own; ended executions never change, so the pages stay as they are."""
    found, place, first = Repriced(recorded=0 if record else None), None, True
    while place or first:
        async with open_ledger.database.session(open_ledger.operator) as session:
            calls, place = await repricings.page(session, which, limit=_EXECUTIONS_AT_ONCE, after=place)
            repriced = [one for call in calls if (one := _at_other_price(known, call))]
            if found.recorded is not None and repriced:
                found.recorded += await repricings.record(session, repriced)
        found.add(repriced)
        first = False
    return found


def _at_other_price(known: Prices, call: PastCall) -> RepricedCall | None:
    """None: it costs the same. So does a call of a model that is not known any more: it keeps its price."""
    price = known.lookup(call.model, call.provider, call.started_at, call.usage.input_tokens)
    if price is None:
        return None
    now = cost(call.usage, price)
    return None if now == call.cost_usd else RepricedCall(call, price, now)


def _flow(key: str, known: Iterable[flows.KnownFlow]) -> UUID:
    for flow in known:
        if flow.flow_key == key:
            return flow.id
    raise FlowNotFound(key)


def _tell(found: Repriced, *, as_json: bool) -> None:
    changes = [found.changes[name] for name in sorted(found.changes)]
    if as_json:
        write_json({"executions": found.executions, "recorded": found.recorded, "changes": _as_json(changes)})
        return
    write_table(
        ("MODEL", "PROVIDER", "CALLS", "NEWLY PRICED", "COUNTED", "NOW", "CHANGE", "PRICES"),
        [
            (
                change.model,
                change.provider,
                str(change.calls),
                str(change.newly_priced),
                exact_text(change.counted_usd),
                exact_text(change.new_usd),
                _signed(_difference(change)),
                ", ".join(sorted(change.prices)),
            )
            for change in changes
        ],
        right=("CALLS", "NEWLY PRICED", "COUNTED", "NOW", "CHANGE"),
    )
    if found.recorded is None:
        told = f"{found.executions:,} executions would cost something else; nothing was noted. --yes notes it."
        err.print(Text(told, "dim"))
        return
    out.print(f"{found.recorded:,} executions repriced")


def _as_json(changes: Iterable[Change]) -> list[dict[str, Any]]:
    return [
        {
            **vars(change),
            "counted_usd": exact_text(change.counted_usd),
            "new_usd": exact_text(change.new_usd),
            "change_usd": exact_text(_difference(change)),
            "prices": sorted(change.prices),
        }
        for change in changes
    ]


def _difference(change: Change) -> Decimal:
    return add_usd(change.new_usd, change.counted_usd.copy_negate())


def _signed(amount: Decimal) -> str:
    return exact_text(amount) if amount <= 0 else f"+{exact_text(amount)}"
