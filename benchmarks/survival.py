"""How soon the ledger knows that a worker is gone, and how late an execution starts that nobody was told of."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from uuid import UUID

import psycopg

from benchmarks.figures import Figure, median, spread
from benchmarks.stage import Stage, User, wait_for

_LEASE_SECONDS, _GRACE_SECONDS, _POLL_SECONDS = 4.0, 1.0, 2.0
_MOST_SECONDS_LOST = _LEASE_SECONDS + _GRACE_SECONDS + 5
_MOST_SECONDS_DEAF = _POLL_SECONDS + 1
_DEATHS, _BIRTHS = 6, 40
_SETTINGS = {"lease_seconds": _LEASE_SECONDS, "grace_seconds": _GRACE_SECONDS, "poll_seconds": _POLL_SECONDS}


def lost_worker(stage: Stage) -> list[Figure]:
    """Of two workers the one that runs an execution is killed, at any moment between two renewals."""
    chance, postgres = random.Random(0), stage.server("lost")
    workers = {worker.pid: worker for worker in (stage.worker_for(postgres, 1, **_SETTINGS) for _ in range(2))}
    took = []
    with User(postgres) as user, psycopg.connect(postgres.url("flowledger"), autocommit=True) as looking:
        for _ in range(_DEATHS):
            execution, *_ = user.start("endless", {"how": "sleep"})
            pid = wait_for(lambda execution=execution: _holder(looking, execution))
            time.sleep(chance.uniform(0, _LEASE_SECONDS / 4))
            dead = workers.pop(pid)
            dead.kill()
            killed_at = time.monotonic()
            dead.wait()
            wait_for(lambda execution=execution: _status(looking, execution) == "failed")
            took.append(time.monotonic() - killed_at)
            heir = stage.worker_for(postgres, 1, **_SETTINGS)
            workers[heir.pid] = heir
    return [_figure(f"worker killed to row ended, lease {_LEASE_SECONDS:g} s", took, _MOST_SECONDS_LOST)]


def deaf_worker(stage: Stage) -> list[Figure]:
    """No birth notifies anybody, and they come in any phase of the poll."""
    chance, postgres = random.Random(0), stage.server("deaf")
    stage.worker_for(postgres, **_SETTINGS)
    with User(postgres) as user, psycopg.connect(postgres.url("flowledger"), autocommit=True) as owner:
        _silence(owner)
        executions = []
        for _ in range(_BIRTHS):
            executions.append(user.start("first_line")[0])
            time.sleep(chance.uniform(0, _POLL_SECONDS))
        for execution in executions:
            user.ended(execution)
        waits = [_waited(owner, execution) for execution in executions]
    return [_figure(f"insert to claim, every NOTIFY dropped, poll {_POLL_SECONDS:g} s", waits, _MOST_SECONDS_DEAF)]


def _figure(name: str, seconds: Sequence[float], most: float) -> Figure:
    return Figure(
        name,
        f"{median(seconds):.2f} s",
        f"{spread(seconds, 's', 2)}, longest {max(seconds):.2f} s",
        target=f"every one <= {most:g} s",
        reached=max(seconds) <= most,
    )


def _silence(owner: psycopg.Connection[tuple[object, ...]]) -> None:
    body = _one(owner, "select pg_get_functiondef('public.update_flow_execution_count()'::regprocedure)")
    deaf = str(body).replace("notify flowledger_queue;", "null;")
    assert deaf != body
    owner.execute(deaf.encode())


def _holder(looking: psycopg.Connection[tuple[object, ...]], execution: UUID) -> int | None:
    pid = _one(
        looking,
        "select workers.pid from flowledger.leases join flowledger.workers on workers.id = worker_id "
        "where execution_id = %s",
        execution,
    )
    return None if pid is None else int(str(pid))


def _status(looking: psycopg.Connection[tuple[object, ...]], execution: UUID) -> object:
    return _one(looking, "select status from crewai_flow_executions where id = %s", execution)


def _waited(owner: psycopg.Connection[tuple[object, ...]], execution: UUID) -> float:
    seconds = _one(
        owner,
        "select extract(epoch from max(at) filter (where to_status = 'running') - min(at)) "
        "from flowledger.transitions where execution_id = %s",
        execution,
    )
    return float(str(seconds))


def _one(connection: psycopg.Connection[tuple[object, ...]], text: str, *values: object) -> object:
    row = connection.execute(text.encode(), values).fetchone()
    return None if row is None else row[0]
