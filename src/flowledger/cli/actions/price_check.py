"""Finds models that have no price, and prices of the team's that do not do what they seem to."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import typer
from rich.text import Text

from flowledger.cli.actions.reading import with_ledger
from flowledger.cli.exits import Exit
from flowledger.cli.flags import moment, settings
from flowledger.cli.opening import Ledger
from flowledger.cli.output import out, write_json
from flowledger.domain.price import SeenModel, TeamPrice
from flowledger.domain.usage import Price, exact_text
from flowledger.ledger import prices
from flowledger.prices import Prices, catalogue_file

_FARTHEST = 2
"""How many times a team's price may be that of the catalogues, or the other way round, before somebody should look."""

UNPRICED = "unpriced"


@dataclass(frozen=True)
class Finding:
    kind: str
    model: str
    provider: str | None
    sentence: str
    remedy: str


@dataclass(frozen=True)
class Table:
    """The team's prices, the models that were seen lately, and the names of all that ever were."""

    team: Sequence[TeamPrice]
    seen: Sequence[SeenModel]
    ever_seen: Collection[str]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Models with their providers, as seen and as the team names them."""
        named = [(own.model, own.provider) for own in self.team if own.provider]
        return list(dict.fromkeys([*((one.model, one.provider) for one in self.seen), *named]))


def check(*, since: str, as_json: bool, **flags: Any) -> None:
    chosen, lately = settings(**flags), moment(since, "--since")
    assert lately is not None

    async def read(open_ledger: Ledger) -> Table:
        async with open_ledger.database.session(open_ledger.operator) as session:
            seen = await prices.seen(session, open_ledger.operator, lately)
            return Table(await prices.list_(session), seen, await prices.ever_seen(session))

    table = with_ledger(chosen, read)
    found = list(findings(Prices(table.team, catalogue_file()), table, datetime.now(UTC)))
    if as_json:
        write_json(found)
    else:
        _write(found)
    if any(finding.kind == UNPRICED for finding in found):
        raise typer.Exit(Exit.ERROR)


def findings(known: Prices, table: Table, now: datetime) -> Iterator[Finding]:
    yield from _unpriced(known, table, now)
    yield from _shadowed(known, table, now)
    yield from _differing(known, table, now)
    yield from _unused(table)


def _unpriced(known: Prices, table: Table, now: datetime) -> Iterator[Finding]:
    for one in table.seen:
        if known.lookup(one.model, one.provider, now) is None:
            yield Finding(
                UNPRICED,
                one.model,
                one.provider,
                f"has no price: executions with one of its {one.calls:,} calls have no cost",
                f"flowledger prices set {one.model} --provider {one.provider} --input USD --output USD",
            )
        elif one.unpriced_calls:
            yield Finding(
                "repriceable",
                one.model,
                one.provider,
                f"has a price now, and {one.unpriced_calls:,} calls from before it have none",
                f"flowledger prices reprice --model {one.model}",
            )


def _shadowed(known: Prices, table: Table, now: datetime) -> Iterator[Finding]:
    for model, provider in table.pairs:
        fitting = known.set_by_team(model, provider, now)
        for own in fitting[1:]:
            first = fitting[0]
            # That an older price gives way to a newer one is what dates are for.
            if _began(own) >= _began(first):
                yield Finding(
                    "shadowed",
                    model,
                    provider,
                    f"does not get the price {_named(own)}: the one {_named(first)} comes first",
                    f"Remove one of them, or set the one {_named(first)} anew.",
                )


def _differing(known: Prices, table: Table, now: datetime) -> Iterator[Finding]:
    catalogues = known.with_team(())
    for model, provider in table.pairs:
        own = next(iter(known.set_by_team(model, provider, now)), None)
        theirs = catalogues.lookup(model, provider, now)
        if own is not None and theirs is not None and (told := _difference(own.price, theirs)):
            yield Finding(
                "differs", model, provider, told, "Prices are USD per million tokens; set it anew if it is a mistake."
            )


def _difference(ours: Price, theirs: Price) -> str | None:
    for name, mine, other in (("input", ours.input, theirs.input), ("output", ours.output, theirs.output)):
        low, high = sorted((mine, other))
        if high > _FARTHEST * low:
            return (
                f"{name} is ${exact_text(mine)} with the team and ${exact_text(other)} in {theirs.source} "
                f"{theirs.version}" + (f", {_times(high / low)} times" if low else "")
            )
    return None


def _times(ratio: Decimal) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"


def _unused(table: Table) -> Iterator[Finding]:
    used = {name.lower() for name in table.ever_seen} | {one.model.lower() for one in table.seen}
    for own in table.team:
        if not used & {own.model, own.model.partition("/")[2]}:
            yield Finding(
                "unused",
                own.model,
                own.provider,
                f"the price {_named(own)} was never used: no call was ever made of this model",
                "Compare the name with those of `flowledger prices list`.",
            )


def _began(own: TeamPrice) -> datetime:
    return own.since or datetime.min.replace(tzinfo=UTC)


def _named(own: TeamPrice) -> str:
    since = "always" if own.since is None else f"since {own.since.astimezone(UTC):%Y-%m-%d}"
    return f"of {own.model} for {own.provider or 'any provider'} {since}"


def _write(found: Sequence[Finding]) -> None:
    if not found:
        out.print(Text.assemble(("✓ ", "green"), "Every model that was used has a price."))
    for finding in found:
        sign = ("✗ ", "red") if finding.kind == UNPRICED else ("! ", "yellow")
        name = f"{finding.model} ({finding.provider or 'any'})  "
        out.print(Text.assemble(sign, (name, "bold"), finding.sentence, "\n  ", (finding.remedy, "dim")))
