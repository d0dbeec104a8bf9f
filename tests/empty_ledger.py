"""An empty ledger on a server that runs: what a test begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg

_EMPTY = Path(__file__).with_suffix(".sql").read_bytes()


def empty(owner: psycopg.Connection[Any]) -> None:
    """Takes every row away, and gives the queue its usual limit."""
    owner.execute(_EMPTY)


class Emptying:
    """The same again and again over one connection: how to delete from all those tables is planned once."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._owner: psycopg.Connection[Any] | None = None

    def __call__(self) -> None:
        owner = self._connected()
        try:
            empty(owner)
        except psycopg.OperationalError:
            if not owner.closed:
                raise
            # The test before has cut it.
            empty(self._connected())

    def close(self) -> None:
        if self._owner is not None:
            self._owner.close()

    def _connected(self) -> psycopg.Connection[Any]:
        if self._owner is None or self._owner.closed:
            self._owner = psycopg.connect(self._url, autocommit=True)
            # A test that left a transaction open shall fail here, and not hang.
            self._owner.execute("set lock_timeout = '10s'")
        return self._owner
