"""What goes wrong: a deck of faults, dealt one at a time, each to a victim that is there at that moment."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import psutil
import psycopg

from tests.chaos.stage import LEASE_SECONDS, Stage, WorkerPlace

_SECONDS_TO_FIND_A_VICTIM = 0.7
_SECONDS_OF_CALM = 61.0
"""After so long without a crash the embedded Postgres is started again at once however often it crashed before."""
_POSTGRES_DEATHS_IN_A_ROW = 3

EVERY_KIND = (
    "kill child",
    "kill supervisor",
    "kill template",
    "kill launcher",
    "kill worker",
    "pause worker briefly",
    "pause worker for leases",
    "cut connection",
    "kill postgres",
)
_MORE = (
    *("kill child",) * 4,
    *("kill supervisor",) * 2,
    *("cut connection",) * 3,
    "kill template",
    "pause worker for leases",
)


def deck(rng: random.Random) -> Iterator[str]:
    """Every kind once, in any order; then more of what is cheap, since a new worker costs seconds of a processor."""
    while True:
        first, more = list(EVERY_KIND), list(_MORE)
        rng.shuffle(first)
        rng.shuffle(more)
        yield from first
        yield from more


@dataclass
class Faults:
    """Deals faults to a stage. `dealt` counts them by kind, `missed` those that found no victim."""

    stage: Stage
    rng: random.Random
    dealt: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    postgres_killed: list[float] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    _begun: float = field(default_factory=time.monotonic)

    def deal(self, kind: str) -> None:
        """One fault of this kind, if it finds a victim."""
        deadline = time.monotonic() + _SECONDS_TO_FIND_A_VICTIM
        while not (victim := self._DEALERS[kind](self)):
            self.stage.tend()
            if time.monotonic() > deadline:
                self.missed[kind] += 1
                return
            time.sleep(0.005)
        self.dealt[kind] += 1
        self.told.append(f"{time.monotonic() - self._begun:6.1f} s  {kind}: {victim}")

    def _kill_child(self) -> str:
        return self._kill_one_of(WorkerPlace.children)

    def _kill_supervisor(self) -> str:
        return self._kill_one_of(WorkerPlace.supervisors)

    def _kill_template(self) -> str:
        return self._kill_one_of(WorkerPlace.templates, self._dispensable())

    def _kill_launcher(self) -> str:
        return self._kill_one_of(WorkerPlace.launchers, self._dispensable())

    def _kill_one_of(self, processes: Callable[[WorkerPlace], list[psutil.Process]], *among: WorkerPlace | None) -> str:
        for worker in among or self._shuffled():
            if worker is None or not worker.is_ready:
                continue
            found = processes(worker)
            self.rng.shuffle(found)
            for process in found:
                with suppress(psutil.Error):
                    process.kill()
                    return f"{process.pid} of worker {worker.number}"
        return ""

    def _kill_worker(self) -> str:
        worker = self._dispensable()
        if worker is None:
            return ""
        worker.kill(restart_in=self.rng.uniform(0.2, 1.0))
        return f"worker {worker.number}"

    def _pause_briefly(self) -> str:
        return self._pause(0.5, 1.0)

    def _pause_for_leases(self) -> str:
        return self._pause(2.0, 3.0)

    def _pause(self, least: float, most: float) -> str:
        """In the middle of a run, if there is one."""
        worker = self._dispensable()
        if worker is None or not worker.supervisors():
            return ""
        leases = self.rng.uniform(least, most)
        worker.pause(leases * LEASE_SECONDS)
        return f"worker {worker.number} for {leases:.1f} leases"

    def _cut_connection(self) -> str:
        """One of the workers' own, by a session of the same role."""
        try:
            with psycopg.connect(self.stage.postgres.url("flowledger_worker"), autocommit=True) as connection:
                row = connection.execute(
                    "select pid, left(query, 40) from pg_stat_activity "
                    "where usename = current_user and pid <> pg_backend_pid() order by random() limit 1"
                ).fetchone()
                if row is not None and connection.execute("select pg_terminate_backend(%s)", row[:1]).fetchone():
                    return f"backend {row[0]} after {' '.join(row[1].split())}"
        except psycopg.OperationalError:
            pass
        return ""

    def _kill_postgres(self) -> str:
        if not self._postgres_may_die():
            return ""
        with suppress(OSError, ValueError, psutil.Error):
            postmaster = psutil.Process(self.stage.postmaster())
            postmaster.send_signal(signal.SIGKILL)
            self.postgres_killed.append(time.monotonic())
            return f"postmaster {postmaster.pid}"
        return ""

    def _postgres_may_die(self) -> bool:
        """The embedded Postgres gives up when it crashes over and over without a minute between."""
        in_a_row, after = 0, float("inf")
        for at in [*reversed(self.postgres_killed)]:
            if after != float("inf") and after - at > _SECONDS_OF_CALM:
                break
            in_a_row, after = in_a_row + 1, at
        since = time.monotonic() - self.postgres_killed[-1] if self.postgres_killed else float("inf")
        return since > _SECONDS_OF_CALM or (since > 8 and in_a_row < _POSTGRES_DEATHS_IN_A_ROW)

    def _dispensable(self) -> WorkerPlace | None:
        """A worker without whom another still works, so that chaos hinders work and does not end it."""
        working = [worker for worker in self._shuffled() if worker.is_working]
        if len(working) < 2:
            return None
        return next((worker for worker in working if worker.supervisors()), working[0])

    def _shuffled(self) -> list[WorkerPlace]:
        return self.rng.sample(self.stage.workers, len(self.stage.workers))

    _DEALERS = {  # noqa: RUF012 - never changed
        "kill child": _kill_child,
        "kill supervisor": _kill_supervisor,
        "kill template": _kill_template,
        "kill launcher": _kill_launcher,
        "kill worker": _kill_worker,
        "pause worker briefly": _pause_briefly,
        "pause worker for leases": _pause_for_leases,
        "cut connection": _cut_connection,
        "kill postgres": _kill_postgres,
    }
