"""Notifications as wake-up calls, through every cut of the connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psycopg

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.listen import listen


class Heard:
    """What was called out, with a way to wait for more."""

    def __init__(self) -> None:
        self.channels: list[str] = []
        self._more = asyncio.Event()

    def __call__(self, channel: str) -> None:
        self.channels.append(channel)
        self._more.set()

    async def until(self, count: int) -> list[str]:
        async with asyncio.timeout(15):
            while len(self.channels) < count:
                self._more.clear()
                await self._more.wait()
        return self.channels


@asynccontextmanager
async def _listening(conninfo: str, *channels: str) -> AsyncIterator[Heard]:
    heard = Heard()
    task = asyncio.create_task(listen(conninfo, channels, heard))
    try:
        yield heard
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_each_channel_is_called_out_at_the_start_and_for_each_notification(postgres: EmbeddedPostgres) -> None:
    async with _listening(postgres.url("flowledger_worker"), "one", "other") as heard:
        assert sorted(await heard.until(2)) == ["one", "other"]
        with psycopg.connect(postgres.url("flowledger"), autocommit=True) as owner:
            owner.execute("notify other; notify unheard; notify one")
        assert (await heard.until(4))[2:] == ["other", "one"]


async def test_listener_comes_back_after_a_cut_and_calls_out_what_it_may_have_missed(
    postgres: EmbeddedPostgres,
) -> None:
    async with _listening(postgres.url("flowledger_worker"), "one") as heard:
        await heard.until(1)
        with psycopg.connect(postgres.url("flowledger_worker"), autocommit=True) as same:
            cut = same.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where usename = current_user and query ilike 'listen%'"
            ).fetchall()
        assert cut
        assert await heard.until(2) == ["one", "one"]
        with psycopg.connect(postgres.url("flowledger"), autocommit=True) as owner:
            owner.execute("notify one")
        await heard.until(3)


async def test_listener_keeps_trying_while_nobody_answers() -> None:
    async with _listening("postgresql://ada@127.0.0.1:1/x", "one") as heard:
        await asyncio.sleep(0.5)
        assert heard.channels == []
