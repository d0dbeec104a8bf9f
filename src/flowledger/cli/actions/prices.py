"""Shows what models cost, and sets, imports and removes the team's own prices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.text import Text

from flowledger.cli.actions import price_file
from flowledger.cli.actions.reading import with_ledger
from flowledger.cli.flags import moment, settings
from flowledger.cli.opening import Ledger
from flowledger.cli.output import out, write_json, write_table
from flowledger.domain import price
from flowledger.domain.price import SeenModel, TeamPrice
from flowledger.domain.usage import PRICED_CLASSES, Price, exact_text
from flowledger.errors import PriceNotFound
from flowledger.ledger import prices
from flowledger.prices import Listed, Prices, catalogue_file, listed_prices


def list_(*, since: str, as_json: bool, **flags: Any) -> None:
    chosen, lately = settings(**flags), moment(since, "--since")
    assert lately is not None

    async def read(open_ledger: Ledger) -> tuple[list[TeamPrice], list[SeenModel]]:
        async with open_ledger.database.session(open_ledger.operator) as session:
            return await prices.list_(session), await prices.seen(session, open_ledger.operator, lately)

    team, seen = with_ledger(chosen, read)
    listed = listed_prices(Prices(team, catalogue_file()), team, seen, datetime.now(UTC))
    if as_json:
        write_json([{**vars(one), "price": one.price and one.price.as_json()} for one in listed])
    else:
        _write(listed)


def set_(given: Mapping[str, str | None], *, as_json: bool, **flags: Any) -> None:
    _set([price.written(given, _option)], as_json=as_json, **flags)


def import_(*, file: Path, as_json: bool, **flags: Any) -> None:
    _set(price_file.read(file), as_json=as_json, **flags)


def remove(*, model: str, provider: str | None, since: str | None, as_json: bool, **flags: Any) -> None:
    key = (
        price.name(model, "MODEL"),
        None if provider is None else price.name(provider, "--provider"),
        None if since is None else price.since(since, "--since"),
    )

    async def remove_it(open_ledger: Ledger) -> None:
        async with open_ledger.database.session(open_ledger.operator) as session:
            if not await prices.remove(session, *key):
                raise PriceNotFound(key[0], _known(await prices.list_(session), key[0]))

    with_ledger(settings(**flags), remove_it)
    if as_json:
        write_json({"removed": True})
    else:
        out.print(Text(f"{key[0]}  removed"))


def _set(given: Sequence[TeamPrice], *, as_json: bool, **flags: Any) -> None:
    async def set_all(open_ledger: Ledger) -> int:
        async with open_ledger.database.session(open_ledger.operator) as session:
            return await prices.set_(session, given)

    changed = with_ledger(settings(**flags), set_all)
    if as_json:
        write_json({"given": len(given), "changed": changed})
    else:
        out.print(
            f"{changed:,} of {len(given):,} prices set" + ("" if changed == len(given) else ", the others are so")
        )


def _option(part: str) -> str:
    names = {"model": "MODEL", "call": "--per-call"}
    return names.get(part, f"--{part.replace('_', '-')}")


def _known(team: Iterable[TeamPrice], model: str) -> tuple[str, ...]:
    return tuple(
        " ".join(
            ["one"]
            + ([f"--provider {own.provider}"] if own.provider else [])
            + ([f"--since {own.since.astimezone(UTC).isoformat().replace('+00:00', 'Z')}"] if own.since else [])
        )
        for own in team
        if own.model == model
    )


def _write(listed: Sequence[Listed]) -> None:
    write_table(
        ("MODEL", "PROVIDER", *(_TITLES[name] for name in PRICED_CLASSES), "SOURCE", "VERSION", "SINCE", "CALLS"),
        [
            (
                Text(one.model, "" if one.applies else "dim"),
                one.provider or "any",
                *(_amount(one.price, name) for name in PRICED_CLASSES),
                Text("unknown", "red") if one.price is None else one.price.source,
                "" if one.price is None else one.price.version,
                _since(one),
                f"{one.calls:,}" if out.is_terminal else str(one.calls),
            )
            for one in listed
        ],
        right=(*_TITLES.values(), "CALLS"),
    )


_TITLES = {
    "input": "INPUT",
    "output": "OUTPUT",
    "cached_input": "CACHED",
    "cache_write": "WRITTEN",
    "reasoning": "REASONING",
    "call": "A CALL",
}


def _amount(of: Price | None, name: str) -> str:
    amount = None if of is None else of.amounts.get(name)
    return "" if amount is None or (name == "call" and not amount) else exact_text(amount)


def _since(one: Listed) -> str:
    day = "" if one.since is None else f"{one.since.astimezone(UTC):%Y-%m-%d}"
    return day if one.applies else f"{day} (not now)".lstrip()
