"""The team's own prices: set and removed by operators only, read by all; and the models that calls were made of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import uuid4

import psycopg
import pytest

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.session import Claims, Database
from flowledger.domain.price import TEAM, TeamPrice
from flowledger.domain.usage import CallStatus, Price
from flowledger.errors import PermissionRefused
from flowledger.ledger import prices
from tests.ledger.past import AT, call, ended, price

OPERATOR, ALICE = Claims.of_operator(), Claims(uuid4())
DAY = datetime(2026, 11, 1, tzinfo=UTC)
FINE = Decimal("0.123456789012")


@pytest.fixture
async def api(database: EmbeddedPostgres) -> AsyncIterator[Database]:
    async with Database(database.url("flowledger_api"), most_connections=2) as api:
        yield api


def team(model: str = "gpt-4o", given: str = "1", spoken: str = "2", **facts: object) -> TeamPrice:
    return TeamPrice(model, price(given, spoken, TEAM, ""), **facts)  # type: ignore[arg-type]


async def _all(api: Database, claims: Claims = OPERATOR) -> list[TeamPrice]:
    async with api.session(claims) as session:
        return await prices.list_(session)


async def _set(api: Database, *given: TeamPrice, claims: Claims = OPERATOR) -> int:
    async with api.session(claims) as session:
        return await prices.set_(session, given)


async def test_a_price_comes_back_to_the_last_digit_with_who_set_it_and_when(api: Database) -> None:
    amounts = {"input": FINE, "output": Decimal(0), "cached_input": FINE, "cache_write": FINE, "reasoning": FINE}
    given = TeamPrice("m", Price(source=TEAM, version="", call=FINE, **amounts), provider="azure", since=DAY)
    assert await _set(api, given) == 1
    (found,) = await _all(api)
    assert (found.key, found.price.amounts) == (given.key, given.price.amounts)
    assert (found.set_by, found.price.source) == ("flowledger_api", TEAM)
    assert datetime.now(UTC) - datetime.fromisoformat(found.price.version) < timedelta(minutes=5)


async def test_there_is_one_price_for_each_model_provider_and_date(api: Database) -> None:
    assert await _set(api, team(), team(provider="openai"), team(since=DAY), team("other")) == 4
    assert await _set(api, team(given="3"), team("other")) == 1, "what is so already is not set anew"
    found = {one.key: one.price.input for one in await _all(api)}
    assert found == {
        ("gpt-4o", None, None): 3,
        ("gpt-4o", "openai", None): 1,
        ("gpt-4o", None, DAY): 1,
        ("other", None, None): 1,
    }


@pytest.mark.parametrize("amount", ["'-1'", "'NaN'", "'Infinity'", "1000001"])
async def test_one_price_that_cannot_be_leaves_all_as_they_were(
    api: Database, database: EmbeddedPostgres, amount: str
) -> None:
    await _set(api, team())
    many = (
        f'[{{"model": "a", "input_usd": 1, "output_usd": 1}}, {{"model": "b", "input_usd": {amount}, "output_usd": 1}}]'
    )
    with psycopg.connect(database.url("flowledger_worker")) as service, pytest.raises(psycopg.errors.CheckViolation):
        service.execute("select flowledger.set_prices(%s)", [many.replace("'", '"')])
    assert [one.model for one in await _all(api)] == ["gpt-4o"]


async def test_a_removed_price_is_gone_and_the_others_stay(api: Database) -> None:
    await _set(api, team(), team(provider="openai", since=DAY))
    async with api.session(OPERATOR) as session:
        assert await prices.remove(session, "gpt-4o", "openai", DAY)
        assert not await prices.remove(session, "gpt-4o", "openai", DAY)
    assert [one.key for one in await _all(api)] == [("gpt-4o", None, None)]


async def test_a_user_reads_prices_and_cannot_set_or_remove_them(api: Database) -> None:
    await _set(api, team())
    with pytest.raises(PermissionRefused):
        await _set(api, team(given="0"), claims=ALICE)
    with pytest.raises(PermissionRefused):
        async with api.session(ALICE) as session:
            await prices.remove(session, "gpt-4o", None, None)
    for statement in (
        "insert into flowledger.prices (model, input_usd, output_usd, set_by) values ('x', 0, 0, 'me')",
        "update flowledger.prices set input_usd = 0",
        "delete from flowledger.prices",
    ):
        with pytest.raises(PermissionRefused):
            async with api.session(ALICE) as session:
                await session.execute(statement)
    assert await _all(api, ALICE) == await _all(api)


async def test_models_that_were_seen_are_counted_with_what_has_no_price(
    api: Database, database: EmbeddedPostgres
) -> None:
    assert ALICE.user is not None
    ended(
        database,
        ALICE.user,
        call("gpt-4o", price("1", "1")),
        call("gpt-4o", None),
        call("gpt-4o", None, usage=None, status=CallStatus.FAILED),
        call("gpt-4o", price("1", "1"), provider="azure"),
        call("old", None, started_at=AT - timedelta(days=90)),
    )
    async with api.session(OPERATOR) as session:
        seen = await prices.seen(session, OPERATOR, AT)
        assert [(one.model, one.provider, one.calls, one.unpriced_calls) for one in seen] == [
            ("gpt-4o", "azure", 1, 0),
            ("gpt-4o", "openai", 3, 1),
        ]
    for claims, models in ((ALICE, seen), (Claims(uuid4()), [])):
        async with api.session(claims) as session:
            assert await prices.seen(session, claims, AT) == models
    async with api.session(OPERATOR) as session:
        assert await prices.ever_seen(session) == {"gpt-4o", "old"}
