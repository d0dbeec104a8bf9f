"""A worker of the version before goes on while its database is brought up to date, and after.

What it calls is written down here as it was called then: the queries of the package are those of today.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from flowledger.database import catalog, check
from flowledger.database import migrate as migrating
from flowledger.database.migrate import migrate, migrations
from tests.acceptance.product import wait_for
from tests.bare_postgres import BareServer, installed
from tests.ledger import law
from tests.ledger.invariants import broken
from tests.migrations.conftest import Target

pytestmark = pytest.mark.timeout(120)

Connection = psycopg.Connection[law.Row]

CALLED_BY_VERSION_1 = {
    "remember": """select * from flowledger.remember_flow(
        %(key)s, %(name)s, %(description)s, %(definition)s, %(source)s)""",
    "enlist": "select flowledger.enlist_worker(%(worker)s, %(host)s, %(pid)s, %(version)s, %(slots)s, %(flows)s)",
    "claim": "select * from flowledger.claim(%(worker)s, %(flows)s, %(timeouts)s, %(slots)s, %(lease)s, %(among)s)",
    "renew": "select * from flowledger.renew(%(worker)s, %(executions)s, %(fences)s, %(lease)s)",
    "append": """select flowledger.append_timeline(
        %(executions)s, %(fences)s, %(sequences)s::bigint[]::integer[], %(ats)s, %(kinds)s, %(names)s,
        %(fields)s::text[]::jsonb[])""",
    "append_logs": """select flowledger.append_logs(
        %(executions)s, %(fences)s, %(sequences)s::bigint[]::integer[], %(ats)s, %(streams)s, %(texts)s)""",
    "finish": """select flowledger.finish(
        %(execution)s, %(fence)s, %(status)s, %(output_state)s, %(error_type)s, %(error_message)s, %(error_stack)s,
        %(token_count)s, %(cost_usd)s, %(began_after_ms)s, %(metadata)s) as answer""",
    "reap": "select * from flowledger.reap(%(grace)s)",
    "fold": "select flowledger.fold_execution_counts()",
    "discharge": "select flowledger.discharge_worker(%(worker)s)",
}
ANSWERED_TO_VERSION_1 = {
    "remember": {"id", "version"},
    "claim": {
        "execution_id", "fence", "flow_id", "flow_key", "execution_key", "inputs", "metadata", "execution_mode",
        "executed_by", "board_meeting_id", "timeout_seconds",
    },
    "renew": {"execution_id", "fence", "cancel_wished", "cancel_reason"},
    "finish": {"answer"},
    "reap": {"execution_id", "status"},
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareServer]:
    major, binaries = list(installed().items())[-1]
    server = BareServer(major, binaries, tmp_path_factory.mktemp("rolling"))
    server.start()
    server.execute("create role plain_owner login createrole")
    yield server
    server.stop()


@pytest.fixture
def at() -> Iterator[Callable[[Target, int], None]]:
    """Brings a database to a version and no further."""
    with pytest.MonkeyPatch.context() as earlier:

        def bring(target: Target, version: int) -> None:
            earlier.setattr(migrating, "migrations", lambda: migrations()[:version])
            migrate(target.conninfo)
            earlier.setattr(migrating, "migrations", migrations)

        yield bring


@pytest.fixture
def ledger(server: BareServer) -> Iterator[Target]:
    server.execute("create database rolling owner plain_owner")
    yield Target(server, "plain_owner", "rolling")
    server.execute("drop database rolling with (force)")


# -- What stays -------------------------------------------------------------------------------------------------------


def test_each_migration_keeps_what_the_version_before_it_uses(
    ledger: Target, at: Callable[[Target, int], None]
) -> None:
    for version in range(1, migrations()[-1].version):
        at(ledger, version)
        before = _offered(ledger)
        at(ledger, version + 1)
        assert _missed(before, _offered(ledger)) == [], f"after migration {version + 1}"


@pytest.mark.parametrize(
    ("planted", "missed"),
    [
        ("drop function flowledger.discharge_worker(uuid)", "function flowledger.discharge_worker(worker uuid)"),
        ("alter function flowledger.expire(integer) rename to expire_late", "function flowledger.expire(most integer)"),
        (
            "revoke execute on function flowledger.fold_execution_counts() from service_role",
            "function flowledger.fold_execution_counts() to service_role",
        ),
        ("alter table flowledger.workers drop column host", "column flowledger.workers.host"),
        ("revoke select on flowledger.queue from service_role", "table flowledger.queue to service_role"),
        ("alter table flowledger.timeline add column needed int not null", "column flowledger.timeline.needed"),
    ],
)
def test_a_migration_that_takes_something_away_is_found(ledger: Target, planted: str, missed: str) -> None:
    migrate(ledger.conninfo)
    before = _offered(ledger)
    ledger.server.execute(planted, dbname=ledger.name)
    assert missed in " ".join(_missed(before, _offered(ledger)))


def _offered(ledger: Target) -> check.Snapshot:
    with ledger.connect() as conn:
        return check.snapshot(catalog.read(conn))


def _missed(before: check.Snapshot, after: check.Snapshot) -> list[str]:
    """What a program that knows `before` does not find again in `after`."""
    missed = [
        f"{kind} {name}: {fact}"
        for kind, facts in _USED.items()
        for name, one in before[kind].items()
        for fact in facts
        if after[kind].get(name, {}).get(fact) != one[fact]
    ]
    for name, one in before["grant"].items():
        given = after["grant"].get(name, {"privileges": ""})["privileges"].split(", ")
        missed += [f"{name}: {right}" for right in one["privileges"].split(", ") if right not in given]
    missed += [
        f"column {name}: nobody who does not know it gives it a value"
        for name, one in after["column"].items()
        if name not in before["column"] and name.rpartition(".")[0] in before["table"]
        if not (one["nullable"] or one["default"] or one["identity"])
    ]
    return missed


_USED = {
    "function": ("result", "arguments"),
    "column": ("type",),
    "view": (),
    "sequence": ("type",),
}


# -- Who goes on ------------------------------------------------------------------------------------------------------


@dataclass
class WorkerOfVersion1:
    """Its calls, over one connection that is kept open, with statements that Postgres has prepared."""

    connection: Connection
    id: UUID = field(default_factory=uuid4)
    flow: UUID = field(default_factory=uuid4)
    answers: Counter[str] = field(default_factory=Counter)

    def begin(self) -> None:
        (known,) = self.call(
            "remember", key="FLOW", name="Flow", description="", definition=Jsonb({"fingerprint": "1"}), source=""
        )
        self.flow = known["id"]
        self.call("enlist", worker=self.id, host="here", pid=1, version="0.0.1", slots=2, flows=[self.flow])

    def work(self) -> int:
        """One round: claim two, keep them, tell of them, end them, one as failed. Answers how many it was given."""
        held = self.call(
            "claim", worker=self.id, flows=[self.flow], timeouts=[60.0], slots=2, lease=law.LEASE, among=None
        )
        ids, fences = [one["execution_id"] for one in held], [one["fence"] for one in held]
        kept = self.call("renew", worker=self.id, executions=ids, fences=fences, lease=law.LEASE)
        assert sorted(one["fence"] for one in kept) == sorted(fences)
        many = {
            "executions": ids,
            "fences": fences,
            "sequences": [1 for _ in ids],
            "ats": [datetime.now(UTC) for _ in ids],
        }
        told = {"kinds": ["flow_started" for _ in ids], "names": ["Flow" for _ in ids], "fields": ["{}" for _ in ids]}
        self.call("append", **many, **told)
        self.call("append_logs", **many, streams=["stdout" for _ in ids], texts=["words" for _ in ids])
        for one in held:
            (ended,) = self.call("finish", **_outcome(one))
            self.answers[ended["answer"]] += 1
        assert self.call("reap", grace=timedelta(seconds=5)) == []
        self.call("fold")
        return len(held)

    def leave(self) -> None:
        self.call("discharge", worker=self.id)

    def call(self, call: str, /, **values: Any) -> list[law.Row]:
        cursor = self.connection.execute(CALLED_BY_VERSION_1[call].encode(), values, prepare=True)
        rows = cursor.fetchall()
        if call in ANSWERED_TO_VERSION_1:
            assert cursor.description is not None
            assert {column.name for column in cursor.description} == ANSWERED_TO_VERSION_1[call]
        return rows


def _outcome(held: law.Row) -> dict[str, Any]:
    given: dict[str, Any] = {
        "status": "failed" if held["fence"] % 10 == 0 else "completed",
        "output_state": Jsonb({"result": 1}),
        "error_type": "ValueError" if held["fence"] % 10 == 0 else None,
        "metadata": Jsonb({"host": "here"}),
        "began_after_ms": 5,
    }
    nothing = dict.fromkeys(("error_message", "error_stack", "token_count", "cost_usd"))
    return {"execution": held["execution_id"], "fence": held["fence"], **nothing, **given}


def test_worker_of_the_version_before_goes_on_while_and_after_its_database_is_brought_up_to_date(
    ledger: Target, at: Callable[[Target, int], None]
) -> None:
    at(ledger, 1)
    with _connected(ledger) as owner, _service(ledger) as service:
        worker = WorkerOfVersion1(service)
        worker.begin()
        with _births(ledger, worker.flow) as born, _rounds(worker) as claimed:
            wait_for(lambda: len(claimed) > 20)
            migrate(ledger.conninfo)
            at_migration = len(claimed)
            wait_for(lambda: len(claimed) > at_migration + 20, what="it works on")
        while worker.work():
            pass
        worker.leave()
        ended = owner.execute("select status, error_type, count(*) as n from crewai_flow_executions group by 1, 2")
        counts = {(row["status"], row["error_type"]): row["n"] for row in ended}
        assert counts.keys() <= {("completed", None), ("failed", "ValueError")}, "nothing failed but what should"
        assert sum(counts.values()) == len(born) == worker.answers["ok"], "nothing was lost, nothing was refused"
        assert worker.answers.keys() == {"ok"}
        assert owner.execute("select 1 from flowledger.workers").fetchone() is None
        told = owner.execute("select count(distinct execution_id) as n from flowledger.timeline").fetchone()
        assert told == {"n": len(born)}
        assert check.differences(owner) == []
        assert broken(owner, operators=["plain_owner"]) == []


def test_what_the_version_before_runs_can_be_cancelled_and_its_worker_is_told(
    ledger: Target, at: Callable[[Target, int], None]
) -> None:
    at(ledger, 1)
    with _connected(ledger) as owner, _service(ledger) as service:
        worker = WorkerOfVersion1(service)
        worker.begin()
        execution = _born(owner, worker.flow)
        (held,) = worker.call(
            "claim", worker=worker.id, flows=[worker.flow], timeouts=[60.0], slots=1, lease=law.LEASE, among=None
        )
        migrate(ledger.conninfo)
        law.cancel(owner, execution, "enough")
        (kept,) = worker.call(
            "renew", worker=worker.id, executions=[execution], fences=[held["fence"]], lease=law.LEASE
        )
        assert (kept["cancel_wished"], kept["cancel_reason"]) == (True, "enough")
        ended = worker.call("finish", **{**_outcome(held), "status": "cancelled", "error_type": "Cancelled"})
        assert ended == [{"answer": "ok"}]


@contextmanager
def _births(ledger: Target, flow: UUID) -> Iterator[list[UUID]]:
    """Somebody starts executions until the block ends."""
    born: list[UUID] = []
    stopped = threading.Event()

    def insert() -> None:
        with _connected(ledger) as owner:
            while not stopped.wait(0.005):
                born.append(_born(owner, flow))

    with _beside(insert, stopped):
        yield born


@contextmanager
def _rounds(worker: WorkerOfVersion1) -> Iterator[list[int]]:
    claimed: list[int] = []
    stopped = threading.Event()

    def work() -> None:
        while not stopped.is_set():
            claimed.append(worker.work())

    with _beside(work, stopped):
        yield claimed


@contextmanager
def _beside(work: Callable[[], None], stopped: threading.Event) -> Iterator[None]:
    """What goes wrong there goes wrong here."""
    wrong: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            wrong.append(error)

    working = threading.Thread(target=guarded)
    working.start()
    try:
        yield
    finally:
        stopped.set()
        working.join(30)
        if wrong:
            raise wrong[0]


def _born(owner: Connection, flow: UUID) -> UUID:
    row = owner.execute(
        "insert into crewai_flow_executions (flow_id, execution_key, executed_by) values (%s, %s, %s) returning id",
        [flow, f"FLOW-{uuid4()}", law.ALICE],
    ).fetchone()
    assert row is not None
    return UUID(str(row["id"]))


@contextmanager
def _connected(ledger: Target) -> Iterator[Connection]:
    with psycopg.connect(ledger.conninfo, autocommit=True, row_factory=dict_row) as connection:
        connection.execute("set statement_timeout = '60s'")
        yield connection


@contextmanager
def _service(ledger: Target) -> Iterator[Connection]:
    with psycopg.connect(ledger.server.conninfo(dbname=ledger.name), autocommit=True, row_factory=dict_row) as service:
        service.execute("set statement_timeout = '60s'; set role service_role")
        yield service
