"""Claims and runs executions until stopped. SIGTERM or Ctrl-C drains; a second one stops now."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from flowledger import registry
from flowledger.cli.actions.observing import Observers
from flowledger.cli.flags import settings
from flowledger.cli.opening import Addresses, addresses, require_current, surroundings
from flowledger.database.session import Database
from flowledger.domain.project import Project
from flowledger.settings import Settings
from flowledger.telemetry.logs import configure_logs
from flowledger.worker.worker import Worker


def worker(**flags: Any) -> None:
    chosen = settings(**flags)
    observers = Observers(chosen)
    configure_logs(chosen.log_format, listeners=observers.listeners)
    found = registry.locate(chosen.project, chosen.python)
    with addresses(chosen) as where:
        require_current(where)
        asyncio.run(work(chosen, where, found, observers))


async def work(chosen: Settings, where: Addresses, found: Project, observers: Observers) -> None:
    """Runs a worker until it is told to stop by a signal."""
    most_connections = chosen.slots + 4 + observers.connections
    async with (
        Database(where.worker, most_connections=most_connections) as database,
        observers.watching(database),
    ):
        working = Worker(chosen, database, found, surroundings(chosen, where))
        loop = asyncio.get_running_loop()

        def stop() -> None:
            (working.stop_now if working.draining else working.drain)()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        await working.run()
