"""NOTIFY as wake-up calls, on a connection of its own that comes back by itself.

Notifications affect latency only: whoever listens also looks by itself from time to time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

import psycopg
from psycopg import AsyncConnection, sql

from flowledger.database.session import Patience

_LONGEST_PAUSE_SECONDS = 10.0
_QUIET_SECONDS = 60.0
_ANSWER_SECONDS = 10.0


async def listen(conninfo: str, channels: Collection[str], wake: Callable[[str], None]) -> None:
    """Calls `wake(channel)` for each notification, and once for each channel after every (re)connection, until it is
    cancelled: what was notified while nobody listened is then looked for.
    """
    pause = 0.1
    while True:
        try:
            async with await AsyncConnection.connect(conninfo, autocommit=True, **_keepalives) as connection:
                for channel in channels:
                    await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
                for channel in channels:
                    wake(channel)
                pause = 0.1
                while True:
                    async for notification in connection.notifies(timeout=_QUIET_SECONDS):
                        wake(notification.channel)
                    await _ask_for_a_word(connection)
        except psycopg.OperationalError:
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


async def _ask_for_a_word(connection: AsyncConnection[Any]) -> None:
    """Raises OperationalError when the silence is the network's: a proxy in between answers keepalives by itself."""
    with Patience(connection, asyncio.get_running_loop().time() + _ANSWER_SECONDS):
        await connection.execute("select")


# A connection whose other end is gone without a word is noticed within about half a minute.
_keepalives: Any = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
