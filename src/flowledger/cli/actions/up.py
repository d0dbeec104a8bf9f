"""Everything on this machine at once: the embedded Postgres and a worker for this project."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from rich.table import Table
from rich.text import Text

from flowledger import __version__, registry
from flowledger.cli.actions.observing import Observers
from flowledger.cli.actions.worker import work
from flowledger.cli.flags import settings
from flowledger.cli.opening import Addresses, addresses
from flowledger.cli.output import err
from flowledger.database import migrate
from flowledger.database.session import address
from flowledger.domain.project import Project
from flowledger.telemetry.logs import configure_logs


def up(**flags: Any) -> None:
    began = time.monotonic()
    chosen = settings(**flags)
    observers = Observers(chosen)
    configure_logs(chosen.log_format, listeners=observers.listeners)
    found = registry.locate(chosen.project, chosen.python)
    with addresses(chosen) as where:
        if where.embedded is None:
            migrate.migrate(where.owner)
        _greet(where, found, time.monotonic() - began)
        asyncio.run(work(chosen, where, found, observers))


def _greet(where: Addresses, found: Project, seconds: float) -> None:
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
    err.print(Text("\n  Ctrl-C stops; data stays.\n", "dim"))
