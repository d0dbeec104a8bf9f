"""Everything on this machine at once: the embedded Postgres, a worker for this project, and the API."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import closing
from typing import Any

from rich.table import Table
from rich.text import Text

from flowledger import __version__, registry
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
    began = time.monotonic()
    chosen = settings(**flags)
    observers = Observers(chosen)
    configure_logs(chosen.log_format, listeners=observers.listeners)
    found = registry.locate(chosen.project, chosen.python)
    with addresses(chosen) as where, closing(_bound(chosen)) as taken:
        if where.embedded is None:
            migrate.migrate(where.owner)
        with announced(chosen, url_of(taken)):
            asyncio.run(_serve_and_work(chosen, where, found, observers, taken, began))


def _bound(chosen: Settings) -> socket.socket:
    """Two projects may be up side by side: whoever named no port gets another one if the usual one is taken."""
    try:
        return bound(chosen)
    except InvalidInput:
        if "server_port" in chosen.model_fields_set:
            raise
        return bound(chosen.model_copy(update={"server_port": 0}))


async def _serve_and_work(
    chosen: Settings, where: Addresses, found: Project, observers: Observers, taken: socket.socket, began: float
) -> None:
    app = application(chosen, where.api, has_login=True)
    async with serving(app, taken):
        url = url_of(taken)
        entrance = await link(app.state.database, chosen, url) if app.state.has_login else f"{url}/docs"
        _greet(where, found, entrance, time.monotonic() - began)
        await work(chosen, where, found, observers)


def _greet(where: Addresses, found: Project, entrance: str, seconds: float) -> None:
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
    table.add_row("  Next", "flowledger flows list, then flowledger run FLOW")
    err.print()
    err.print(table)
    # On a line of its own, whole: a link that is cut opens nothing.
    err.print(Text.assemble(("\n  Open  ", "dim"), entrance))
    err.print(Text("  Once, within 10 minutes; flowledger login  prints another.", "dim"))
    err.print(Text("\n  Ctrl-C stops; data stays.\n", "dim"))
