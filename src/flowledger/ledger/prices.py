"""The prices that the team set itself, and the models that calls were made of. Reading is for all; setting is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from psycopg.types.json import Jsonb

from flowledger.database.session import Claims, Connection
from flowledger.domain.price import TEAM, SeenModel, TeamPrice
from flowledger.domain.usage import PRICED_CLASSES, Price
from flowledger.sql import query


async def list_(connection: Connection) -> list[TeamPrice]:
    """Every price of the team, by model, the latest of each first. Its version says when it was set."""
    return [_price(row) for row in await (await connection.execute(query("prices", "list"))).fetchall()]


async def set_(connection: Connection, prices: Sequence[TeamPrice]) -> int:
    """Sets prices, all or none; each replaces the one of the same key. Answers how many are new or changed."""
    row = await (
        await connection.execute(query("prices", "set"), {"prices": Jsonb([_stored(price) for price in prices])})
    ).fetchone()
    assert row is not None
    return int(row["changed"])


async def remove(connection: Connection, model: str, provider: str | None, since: datetime | None) -> bool:
    """Forgets one price, by its key; calls that it priced keep it. False: there was none."""
    row = await (
        await connection.execute(query("prices", "remove"), {"model": model, "provider": provider, "since": since})
    ).fetchone()
    assert row is not None
    return bool(row["removed"])


async def seen(connection: Connection, claims: Claims, since: datetime) -> list[SeenModel]:
    """The models of the user's own calls that began since then, for an operator of everybody's."""
    text = query("prices", "seen_of_all" if claims.is_operator else "seen_of_user")
    rows = await (await connection.execute(text, {"since": since, "user": claims.user})).fetchall()
    return [SeenModel(**row) for row in rows]


async def ever_seen(connection: Connection) -> frozenset[str]:
    """The names of all models that calls were ever made of. For operators."""
    rows = await (await connection.execute(query("prices", "ever_seen"))).fetchall()
    return frozenset(row["model"] for row in rows)


def _price(row: Mapping[str, Any]) -> TeamPrice:
    amounts = {name: row[f"{name}_usd"] for name in PRICED_CLASSES}
    version = row["set_at"].astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    price = Price(source=TEAM, version=version, **amounts)
    return TeamPrice(row["model"], price, row["provider"], row["since"], row["set_by"])


def _stored(price: TeamPrice) -> dict[str, Any]:
    return {
        "model": price.model,
        "provider": price.provider,
        "since": price.since and price.since.isoformat(),
        # As text, so that no digit is lost.
        **{f"{name}_usd": f"{amount:f}" for name, amount in price.price.amounts.items()},
    }
