"""Everything on this machine at once: the embedded Postgres, a worker for this project, and the API."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from typing import Any

from rich.table import Table
from rich.text import Text

from flowledger import __version__, cli, registry
from flowledger.cli.actions.login import announced, link
from flowledger.cli.actions.observing import Observers
from flowledger.cli.actions.worker import work
from flowledger.cli.flags import settings
from flowledger.cli.opening import Addresses, addresses
from flowledger.cli.output import err
from flowledger.database import migrate
from flowledger.database.session import address
from flowledger.domain.project import Project
from flowledger.errors import InvalidInput
from flowledger.server import application, bound, serving, url_of
from flowledger.settings import Settings
from flowledger.telemetry.logs import configure_logs


def up(**flags: Any) -> None:
    chosen = settings(**flags)
    observers = Observers(chosen)
    configure_logs(chosen.log_format, listeners=observers.listeners)
    found = registry.locate(chosen.project, chosen.python)
    with addresses(chosen) as where, closing(_bound(chosen)) as taken:
        if where.embedded is None:
            migrate.migrate(where.owner)
        with announced(chosen, url_of(taken)):
            asyncio.run(_serve_and_work(chosen, where, found, observers, taken))


def _bound(chosen: Settings) -> socket.socket:
    """Two projects may be up side by side: whoever named no port gets another one if the usual one is taken."""
    try:
        return bound(chosen)
    except InvalidInput:
        if "server_port" in chosen.model_fields_set:
            raise
        return bound(chosen.model_copy(update={"server_port": 0}))


async def _serve_and_work(
    chosen: Settings, where: Addresses, found: Project, observers: Observers, taken: socket.socket
) -> None:
    app = application(chosen, where.api, has_login=True)
    async with _ended_by_sigterm(), serving(app, taken):
        url = url_of(taken)
        is_link = app.state.has_login
        entrance = await link(app.state.database, chosen, url) if is_link else f"{url}/docs"
        _greet(where, found, url, entrance, time.monotonic() - cli.BEGAN, is_link=is_link)
        await work(chosen, where, found, observers)


@asynccontextmanager
async def _ended_by_sigterm() -> AsyncIterator[None]:
    """Until the worker listens to signals itself: what has begun is brought to an end, and nothing is left behind."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with suppress(asyncio.CancelledError):
        yield


def _greet(where: Addresses, found: Project, url: str, entrance: str, seconds: float, *, is_link: bool) -> None:
    postgres = where.embedded
    home = (
        f"embedded Postgres {postgres.version} in {postgres.data_dir}"
        if postgres
        else f"Postgres at {address(where.api)}"
    )
    err.print(Text.assemble(("flowledger ", "bold"), f"{__version__}  ·  {home}  ·  ready in {seconds:.1f} s"))
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(style="dim")
    table.add_row("  Project", str(found.root))
    table.add_row("  Database", "flowledger db url  prints its address")
    table.add_row("  API", f"{url}  for FLOWLEDGER_URL; flowledger tokens create NAME  prints a FLOWLEDGER_TOKEN")
    table.add_row("  Next", "flowledger flows list, then flowledger run FLOW")
    err.print()
    err.print(table)
    # On a line of its own, whole: a link that is cut opens nothing.
    err.print(Text.assemble(("\n  Open  ", "dim"), entrance))
    if is_link:
        err.print(Text("  Once, within 10 minutes; flowledger login  prints another.", "dim"))
    err.print(Text("\n  Ctrl-C stops; data stays.\n", "dim"))
