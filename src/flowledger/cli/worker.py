"""`flowledger worker`: claims and runs executions until stopped. SIGTERM or Ctrl-C drains; a second one stops now."""

from __future__ import annotations

import asyncio
import signal

import typer

from flowledger import registry
from flowledger.cli.opening import Addresses, addresses, require_current, surroundings
from flowledger.cli.options import (
    DatabaseOption,
    DataOption,
    ProjectOption,
    PythonOption,
    SlotsOption,
    settings,
)
from flowledger.database.session import Database
from flowledger.domain.project import Project
from flowledger.settings import Settings
from flowledger.telemetry import configure_logs
from flowledger.worker.worker import Worker

app = typer.Typer()


@app.command()
def worker(
    slots: SlotsOption = None,
    project: ProjectOption = None,
    python: PythonOption = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
) -> None:
    """Claim and run executions until stopped. SIGTERM or Ctrl-C drains; a second one stops now."""
    chosen = settings(slots=slots, project=project, python=python, database_url=database_url, data_dir=data)
    configure_logs(chosen.log_format)
    found = registry.locate(chosen.project, chosen.python)
    with addresses(chosen) as where:
        require_current(where)
        asyncio.run(work(chosen, where, found))


async def work(chosen: Settings, where: Addresses, found: Project) -> None:
    """Runs a worker until it is told to stop by a signal."""
    async with Database(where.worker, most_connections=chosen.slots + 4) as database:
        working = Worker(chosen, database, found, surroundings(chosen, where))
        loop = asyncio.get_running_loop()

        def stop() -> None:
            (working.stop_now if working.draining else working.drain)()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        await working.run()
