"""A connection that says nothing more, and is not closed, is given up in bounded time; the next one is another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from flowledger.database import listen as listening
from flowledger.database.session import Claims, Database
from flowledger.errors import DatabaseUnreachable
from tests.survival.stage import NetworkPostgres, Proxy, proxied

PATIENCE_SECONDS = 0.5


@pytest.fixture(autouse=True)
def nobody_is_started_again() -> None:
    """No worker is needed here."""


@pytest.fixture
def proxy(network: NetworkPostgres) -> Iterator[Proxy]:
    with proxied(network.port) as proxy:
        yield proxy


@pytest.fixture
def url(network: NetworkPostgres, proxy: Proxy) -> str:
    return network.url("flowledger_worker", proxy.port)


async def test_silent_connections_are_all_given_up_with_the_first(url: str, proxy: Proxy) -> None:
    async with Database(url, most_connections=4) as database:
        await asyncio.gather(*(_ask(database) for _ in range(4)))
        proxy.freeze(newcomers=False)
        begun = time.monotonic()
        with pytest.raises(DatabaseUnreachable):
            await _ask(database, PATIENCE_SECONDS)
        assert PATIENCE_SECONDS <= time.monotonic() - begun < PATIENCE_SECONDS + 2
        begun = time.monotonic()
        await asyncio.gather(*(_ask(database) for _ in range(4)))
        assert time.monotonic() - begun < 5, "nobody has to find out anew"


async def test_statement_that_takes_longer_than_its_patience_is_given_up(url: str) -> None:
    async with Database(url, most_connections=2) as database:
        with pytest.raises(DatabaseUnreachable):
            async with database.service(PATIENCE_SECONDS) as connection:
                await connection.execute("select pg_sleep(20)")
        await _ask(database)


async def test_answer_within_the_patience_leaves_the_connection_as_it_is(url: str) -> None:
    async with Database(url, most_connections=1) as database:
        before = await _ask(database, PATIENCE_SECONDS)
        await asyncio.sleep(PATIENCE_SECONDS * 1.5)
        assert await _ask(database) == before


async def test_session_ends_too_when_its_server_falls_silent(
    url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowledger.database.session.ANSWER_SECONDS", PATIENCE_SECONDS)
    async with Database(url, most_connections=2) as database:
        with pytest.raises(DatabaseUnreachable):
            await _freeze_within_a_session(database, proxy)


async def test_listener_notices_that_it_hears_nothing_any_more(
    url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "_QUIET_SECONDS", 0.2)
    monkeypatch.setattr(listening, "_ANSWER_SECONDS", PATIENCE_SECONDS)
    called: asyncio.Queue[str] = asyncio.Queue()
    task = asyncio.create_task(listening.listen(url, ["one"], called.put_nowait))
    try:
        async with asyncio.timeout(10):
            assert await called.get() == "one"
            proxy.freeze(newcomers=False)
            assert await called.get() == "one", "it has connected anew"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _freeze_within_a_session(database: Database, proxy: Proxy) -> None:
    async with database.session(Claims.of_operator()) as connection:
        proxy.freeze(newcomers=False)
        await connection.execute("select 1")


async def _ask(database: Database, patience: float = 10) -> object:
    async with database.service(patience) as connection:
        row = await (await connection.execute("select pg_backend_pid() as pid")).fetchone()
        assert row is not None
        return row["pid"]
