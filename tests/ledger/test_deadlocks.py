"""Whoever takes several locks takes them in one order, so no two steps of the ledger wait for one another for ever.

Everything that may be called is called at one time, on few executions of few flows, for a while.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.acceptance.product import wait_for
from tests.ledger import law

pytestmark = pytest.mark.timeout(120)

SECONDS = 5
LASTING = 200
"""Executions that the steps are about: the latest so many."""

Connection = psycopg.Connection[law.Row]
Step = Callable[["Storm", Connection, random.Random], object]


class Storm:
    """What all threads know."""

    def __init__(self, flows: list[UUID]) -> None:
        self.flows = flows
        self.born: list[UUID] = []
        self.held: list[law.Row] = []
        self.steps: Counter[str] = Counter()

    def some(self, chance: random.Random, number: int = 5) -> list[UUID]:
        recent = self.born[-LASTING:]
        return chance.sample(recent, min(number, len(recent)))

    def some_held(self, chance: random.Random, number: int = 5) -> list[law.Row]:
        recent = self.held[-20:]
        return chance.sample(recent, min(number, len(recent)))


def bear(storm: Storm, alice: Connection, chance: random.Random) -> None:
    queue = {"queue_seconds": 0.05} if chance.random() < 0.2 else {}
    repeats = {"rerun_of": str(chance.choice(storm.born))} if storm.born and chance.random() < 0.1 else {}
    # What it repeats may have been pruned meanwhile, or be of another flow.
    with suppress(psycopg.errors.DatabaseError) if repeats else nullcontext():
        storm.born.append(law.born(alice, chance.choice(storm.flows), metadata={**queue, **repeats}))


def carry(storm: Storm, worker: Connection, chance: random.Random) -> None:
    flows = chance.sample(storm.flows, 2)
    held = law.claim(worker, *flows, slots=4, as_worker=uuid4())
    storm.held += held
    for one in held:
        how: dict[str, Any] = chance.choice(
            [{}, {"status": "failed", "error_type": "ValueError"}, {"status": "failed", "error_type": "ProcessKilled"}]
        )
        if chance.random() < 0.8:
            law.finish(worker, one["execution_id"], one["fence"], **how)


def finish_again(storm: Storm, worker: Connection, chance: random.Random) -> None:
    for one in storm.some_held(chance):
        law.finish(worker, one["execution_id"], one["fence"], "failed", error_type="ProcessKilled")


def renew(storm: Storm, worker: Connection, chance: random.Random) -> None:
    law.renew(worker, *storm.some_held(chance, 10), as_worker=uuid4())


def cancel(storm: Storm, alice: Connection, chance: random.Random) -> None:
    for execution in storm.some(chance):
        law.cancel(alice, execution)


def reap(storm: Storm, owner: Connection, chance: random.Random) -> None:
    for one in storm.some_held(chance):
        law.expire(owner, one["execution_id"])
    law.reap(owner)


def expire(_: Storm, worker: Connection, __: random.Random) -> None:
    worker.execute("select flowledger.expire()")


def pause_and_resume(storm: Storm, worker: Connection, chance: random.Random) -> None:
    flow = chance.choice(storm.flows)
    worker.execute("select flowledger.pause_flow(%s)", [flow])
    worker.execute("select flowledger.resume_flow(%s)", [flow])


def prune(storm: Storm, worker: Connection, chance: random.Random) -> None:
    ended = ["completed", "failed", "cancelled", "timeout"]
    (opened,) = worker.execute("select flowledger.open_prune(%s, now(), null) as n", [ended]).fetchall()
    worker.execute("select flowledger.prune(%s, %s)", [opened["n"], storm.some(chance, 20)])


def remember(storm: Storm, worker: Connection, chance: random.Random) -> None:
    number = chance.randrange(len(storm.flows))
    _remembered(worker, number, fingerprint=str(chance.random()))
    controls = {"concurrency": chance.choice([None, 2, 5]), "retries": chance.choice([0, 2]), "retry_seconds": 0.001}
    worker.execute("select flowledger.set_controls(%s, %s)", [storm.flows[number], Jsonb(controls)])


def fold(_: Storm, worker: Connection, __: random.Random) -> None:
    worker.execute("select flowledger.fold_execution_counts()")
    worker.execute("select flowledger.fold_spending()")


def spend(storm: Storm, worker: Connection, chance: random.Random) -> None:
    """Calls of several runs ask for room, and are told in one batch."""
    held, number = storm.some_held(chance), chance.randrange(1, 1000)
    for one in held:
        law.reserve(worker, one, number, "0.01")
    calls = [Jsonb(law.used(number)) for _ in held]
    ids, fences = [one["execution_id"] for one in held], [one["fence"] for one in held]
    worker.execute("select flowledger.append_usage(%s, %s, %s)", [ids, fences, calls])


def limit(storm: Storm, worker: Connection, chance: random.Random) -> None:
    """Windows come and go. They only warn, for births shall go on."""
    flow = chance.choice([None, *storm.flows])
    (window,) = worker.execute(
        "select flowledger.set_budget(%s, %s, null, 'day', %s, null, 'warn') as id",
        ["everything" if flow is None else "flow", flow, chance.randrange(100)],
    ).fetchall()
    if chance.random() < 0.1:
        worker.execute("select flowledger.remove_budget(%s)", [window["id"]])


def enlist(storm: Storm, worker: Connection, _: random.Random) -> None:
    me = uuid4()
    worker.execute("select flowledger.enlist_worker(%s, 'here', 1, '1', 1, %s)", [me, storm.flows])
    law.claim(worker, *storm.flows, slots=0, as_worker=me)
    worker.execute("select flowledger.discharge_worker(%s)", [me])


BY_ALICE = (bear, bear, bear, cancel)
BY_WORKERS = (
    *(carry, carry, carry, finish_again, renew, expire, pause_and_resume, prune, remember, fold, enlist),
    *(spend, spend, limit),
)
BY_THE_OWNER = (reap, reap)


@pytest.fixture
def storm(worker: Connection) -> Storm:
    return Storm([_remembered(worker, number, "1") for number in range(3)])


@pytest.fixture
def threads(connect: Any, as_user: Any) -> list[tuple[Step, Connection]]:
    return [
        *((step, as_user(law.ALICE)) for step in BY_ALICE),
        *((step, connect("flowledger_worker")) for step in BY_WORKERS),
        *((step, connect("flowledger")) for step in BY_THE_OWNER),
    ]


def test_all_steps_at_one_time_never_wait_for_one_another_in_a_circle(
    storm: Storm, threads: list[tuple[Step, Connection]], owner: Connection
) -> None:
    before = _deadlocks(owner)
    with _blowing(storm, threads) as wrong:
        threading.Event().wait(SECONDS)
    assert [str(error) for error in wrong] == []
    assert _deadlocks(owner) == before
    assert storm.steps.keys() == {step.__name__ for step, _ in threads}
    assert min(storm.steps.values()) >= 3, storm.steps
    assert {"completed", "failed", "cancelled"} <= {
        row["to_status"] for row in owner.execute("select distinct to_status from flowledger.transitions").fetchall()
    }


def test_a_step_that_takes_its_locks_the_other_way_round_is_found(
    storm: Storm, threads: list[tuple[Step, Connection]], owner: Connection, connect: Any
) -> None:
    def upside_down(storm: Storm, owner: Connection, chance: random.Random) -> None:
        for one in storm.some_held(chance, 3):
            with owner.transaction():
                owner.execute("select from flowledger.leases where execution_id = %s for update", [one["execution_id"]])
                owner.execute("select pg_sleep(0.02)")
                owner.execute("select from crewai_flow_executions where id = %s for update", [one["execution_id"]])

    before = _deadlocks(owner)
    with _blowing(storm, [*threads, *((upside_down, connect("flowledger")) for _ in range(3))]) as wrong:
        wait_for(lambda: _deadlocks(owner) > before, seconds=60, what="a deadlock")
    assert {type(error) for error in wrong} <= {psycopg.errors.DeadlockDetected}


@contextmanager
def _blowing(storm: Storm, threads: list[tuple[Step, Connection]]) -> Iterator[list[BaseException]]:
    """Each step again and again in its own thread until the block ends; what they raise is collected."""
    seed = random.randrange(2**32)
    print("seed", seed)  # noqa: T201 - shown when a test fails
    stopped = threading.Event()
    wrong: list[BaseException] = []

    def blow(number: int, step: Step, connection: Connection) -> None:
        chance = random.Random(seed + number)
        while not stopped.is_set():
            try:
                step(storm, connection, chance)
            except psycopg.Error as error:
                wrong.append(error)
            storm.steps[step.__name__] += 1

    running = [threading.Thread(target=blow, args=(n, *thread)) for n, thread in enumerate(threads)]
    for thread in running:
        thread.start()
    try:
        yield wrong
    finally:
        stopped.set()
        for thread in running:
            thread.join(40)
        for _, connection in threads:
            # What it has counted reaches the statistics with its end.
            connection.close()


def _deadlocks(owner: Connection) -> int:
    """As many as Postgres has ended in this database."""
    owner.execute("select pg_stat_clear_snapshot()")
    row = owner.execute("select deadlocks from pg_stat_database where datname = current_database()").fetchone()
    assert row is not None
    return int(row["deadlocks"])


def _remembered(worker: Connection, number: int, fingerprint: str) -> UUID:
    row = worker.execute(
        "select id from flowledger.remember_flow(%s, 'Flow', '', %s, '')",
        [f"FLOW{number}", Jsonb({"fingerprint": fingerprint})],
    ).fetchone()
    assert row is not None
    return UUID(str(row["id"]))
