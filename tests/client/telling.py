"""What a run tells of itself, as its worker writes it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import psycopg

from flowledger.sql import query
from tests.ledger.law import Row


def told(worker: psycopg.Connection[Any], held: Row, *sequences: int) -> None:
    """Events with these sequence numbers."""
    count = len(sequences)
    worker.execute(
        query("timeline", "append"),
        {
            "executions": [held["execution_id"]] * count,
            "fences": [held["fence"]] * count,
            "sequences": list(sequences),
            "parents": [None] * count,
            "begans": [None] * count,
            "ats": [datetime.now(UTC)] * count,
            "kinds": ["log"] * count,
            "names": [f"event {number}" for number in sequences],
            "fields": ["{}"] * count,
        },
    )


def wrote(worker: psycopg.Connection[Any], held: Row, *texts: str) -> None:
    """Pieces of log."""
    count = len(texts)
    worker.execute(
        query("timeline", "append_logs"),
        {
            "executions": [held["execution_id"]] * count,
            "fences": [held["fence"]] * count,
            "sequences": list(range(1, count + 1)),
            "ats": [datetime.now(UTC)] * count,
            "streams": ["stdout"] * count,
            "texts": list(texts),
        },
    )
