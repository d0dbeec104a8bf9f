"""Looks at the ledger and at the machine while things go wrong, and notes what it sees for the checker."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from tests.chaos.history import Look, Outage, Sighting
from tests.chaos.stage import Stage, supervised_runs

_PAUSE_SECONDS = 0.4

_LOOK = """
select executions.id as execution, clock_timestamp() as at, executions.status, leases.expires_at as lease_until,
       md5(executions::text) as digest
from public.crewai_flow_executions as executions
left join flowledger.leases as leases on leases.execution_id = executions.id
where executions.status = 'running' or executions.completed_at > %(since)s
"""
_OVERLAP = timedelta(seconds=3)


@dataclass
class Watch:
    """What was seen so far. A terminal row is looked at when it is new; whether it changed shows at the end."""

    stage: Stage
    looks: list[Look] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    _seen: set[tuple[UUID, str, str]] = field(default_factory=set)
    _since: datetime = field(default_factory=lambda: datetime.now(UTC))
    _stopped: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        self._stopped.set()

    def watch(self) -> None:
        """Until it is stopped."""
        last_answer = datetime.now(UTC)
        while not self._stopped.is_set():
            with suppress(psycopg.OperationalError), self._connection() as connection:
                now = datetime.now(UTC)
                if now - last_answer > timedelta(seconds=_PAUSE_SECONDS):
                    self.outages.append(Outage(last_answer, now))
                while not self._stopped.wait(_PAUSE_SECONDS):
                    self._look_at_processes()
                    self._look_at_rows(connection)
                    last_answer = datetime.now(UTC)
            self._stopped.wait(0.05)

    def _connection(self) -> psycopg.Connection[dict[str, Any]]:
        url = self.stage.postgres.url("flowledger")
        return psycopg.connect(url, autocommit=True, row_factory=dict_row, connect_timeout=2)

    def _look_at_rows(self, connection: psycopg.Connection[dict[str, Any]]) -> None:
        newest = self._since
        for row in connection.execute(_LOOK, {"since": self._since - _OVERLAP}):
            look = Look(**row)
            newest = max(newest, look.at)
            # Every look at a running row counts; of a terminal one only that it is another than before.
            key = (look.execution, look.status, look.digest)
            if look.status == "running" or key not in self._seen:
                self._seen.add(key)
                self.looks.append(look)
        self._since = newest

    def _look_at_processes(self) -> None:
        for _, run in supervised_runs():
            with suppress(ValueError):
                self.sightings.append(Sighting(UUID(run), datetime.now(UTC)))


def since_boot() -> timedelta:
    """What to add to CLOCK_BOOTTIME to get the clock of the database, which runs on this machine."""
    return timedelta(seconds=time.clock_gettime(time.CLOCK_REALTIME) - time.clock_gettime(time.CLOCK_BOOTTIME))
