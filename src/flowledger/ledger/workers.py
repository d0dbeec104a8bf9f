"""The processes that carry executions: who they are and which flows they run."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from datetime import timedelta
from uuid import UUID

from flowledger import __version__
from flowledger.database.session import Connection
from flowledger.sql import query


async def enlist(connection: Connection, worker: UUID, slots: int, flows: Iterable[UUID]) -> None:
    """Makes this process known as a worker for `flows`; again, whenever they change."""
    await connection.execute(
        query("workers", "enlist"),
        {
            "worker": worker,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "slots": slots,
            "flows": list(flows),
        },
    )


async def discharge(connection: Connection, worker: UUID) -> None:
    """Takes the worker's name off the list."""
    await connection.execute(query("workers", "discharge"), {"worker": worker})


async def serving(connection: Connection, flow: UUID, *, heard_within: timedelta) -> int:
    """How many workers run this flow and were heard of lately."""
    row = await (
        await connection.execute(query("workers", "serving"), {"flow": flow, "since": heard_within})
    ).fetchone()
    assert row is not None
    return int(row["workers"])
