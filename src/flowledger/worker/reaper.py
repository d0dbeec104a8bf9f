"""Finds dead leases and queue deadlines that passed, and writes what is true; brings counters and sums up to date.

Every worker reaps, and one is enough: the database decides with its own clock who is dead.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from flowledger.database.session import Database
from flowledger.errors import FlowledgerError
from flowledger.ledger import executions, flows, usage
from flowledger.worker.trouble import Trouble

_log = structlog.get_logger("flowledger.reaper")


async def keep_reaping(database: Database, *, grace_seconds: float, pause_seconds: float) -> None:
    """Reaps every `pause_seconds` until it is cancelled."""
    trouble = Trouble("reaper_held_up")
    while True:
        try:
            async with database.service() as connection:
                for execution, status in await executions.reap(connection, timedelta(seconds=grace_seconds)):
                    _log.warning("execution_reaped", execution=str(execution), status=str(status))
                for execution in await executions.expire(connection):
                    _log.warning("execution_expired", execution=str(execution))
                await flows.fold_counts(connection)
                await usage.fold(connection)
        except FlowledgerError as error:
            trouble.met(error)
        else:
            trouble.over()
        await asyncio.sleep(pause_seconds)
