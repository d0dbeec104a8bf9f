"""A ledger in use is brought up to date, backed up and restored: nothing is lost, and nobody waits long."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import dict_row

from flowledger.database import check
from flowledger.database import migrate as migrating
from flowledger.database.migrate import migrate, migrations
from flowledger.errors import DatabaseBusy
from tests.bare_postgres import BareServer, installed
from tests.chaos import history
from tests.chaos.history import Acknowledgement, Bounds, History, Transition
from tests.ledger import law
from tests.ledger.invariants import broken
from tests.migrations.conftest import Target

pytestmark = pytest.mark.timeout(120)

ROWS = 10_000
PATIENCE_SECONDS = 1
"""How long this migration waits for a table, and with it whoever comes after it."""


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareServer]:
    major, binaries = list(installed().items())[-1]
    server = BareServer(major, binaries, tmp_path_factory.mktemp("newest"))
    server.start()
    server.execute("create role plain_owner login createrole")
    yield server
    server.stop()


@pytest.fixture
def ledger(newest: BareServer) -> Iterator[Target]:
    newest.execute("create database ledger owner plain_owner")
    yield Target(newest, "plain_owner", "ledger")
    newest.execute("drop database ledger with (force)")


# -- Up to date -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def used_up_to_version_1(newest: BareServer) -> str:
    """The name of a database as version 1 left it: most executions have ended, some run, some wait."""
    newest.execute("create database version_1 owner plain_owner")
    target = Target(newest, "plain_owner", "version_1")
    with pytest.MonkeyPatch.context() as earlier:
        earlier.setattr(migrating, "migrations", lambda: migrations()[:1])
        migrate(target.conninfo)
    with _connected(target) as owner:
        flow = _flow(owner)
        owner.execute(
            "insert into crewai_flow_executions (flow_id, execution_key, executed_by) "
            "select %s, 'FLOW-' || n, %s from generate_series(1, %s) as n",
            [flow, law.ALICE, ROWS],
        )
        held = [one for _ in range(ROWS // 200 - 1) for one in law.claim(owner, flow, slots=200)]
        owner.execute("select set_config('flowledger.actor', 'worker', false)")
        owner.execute(
            "update crewai_flow_executions set status = 'completed' where id = any (%s)",
            [[one["execution_id"] for one in held[50:]]],
        )
        owner.execute("analyze")
    return target.name


@pytest.fixture
def old(newest: BareServer, used_up_to_version_1: str) -> Iterator[Target]:
    newest.execute(f"create database old template {used_up_to_version_1} owner plain_owner")
    yield Target(newest, "plain_owner", "old")
    newest.execute("drop database old with (force)")


def test_update_goes_past_a_reader_who_has_the_ledger_open(old: Target, capsys: pytest.CaptureFixture[str]) -> None:
    reading = "select count(*) as n, max(md5(e::text)) as hash from crewai_flow_executions as e"
    with _connected(old) as reader, _connected(old) as owner:
        fence = owner.execute("select execution_id, fence from flowledger.leases limit 1").fetchone()
        assert fence is not None
        with reader.transaction():
            before = reader.execute(reading).fetchone()
            begun = time.monotonic()
            migrate(old.conninfo)
            took = time.monotonic() - begun
            assert reader.execute(reading).fetchone() == before
        with capsys.disabled():
            print(f" {took:.2f} s for {ROWS:,} rows", end="")  # noqa: T201 - the measured figure
        assert took < 5
        assert check.differences(owner) == []
        assert law.finish(owner, fence["execution_id"], fence["fence"]) == "ok", "what ran goes on"
        flow = _flow(owner)
        assert len(law.claim(owner, flow, slots=200)) == 200, "what waited is claimed"
        owner.execute("select flowledger.fold_execution_counts()")
        assert broken(owner, operators=["plain_owner"]) == []


def test_update_gives_up_rather_than_hold_everybody_up(old: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody keeps a write of the ledger open: the update waits its time, and others no longer than that."""
    monkeypatch.setattr(migrating, "_LOCK_SECONDS", PATIENCE_SECONDS)
    with _connected(old) as writer, _connected(old) as other, _connected(old) as watching:
        flow = _flow(other)
        waits: list[float] = []

        def write_meanwhile() -> None:
            _until(watching, "select from pg_locks where not granted")
            begun = time.monotonic()
            law.claim(other, flow, slots=1)
            waits.append(time.monotonic() - begun)

        with writer.transaction():
            law.claim(writer, flow, slots=1)
            meanwhile = threading.Thread(target=write_meanwhile)
            meanwhile.start()
            with pytest.raises(DatabaseBusy):
                migrate(old.conninfo)
            meanwhile.join(20)
            assert watching.execute("select max(version) as n from flowledger.schema_migrations").fetchone() == {"n": 1}
        # Its lock came back with the update's own patience.
        assert waits[0] < PATIENCE_SECONDS + 1
        assert migrate(old.conninfo) == list(migrations()[1:])
        assert check.differences(watching) == []


# -- Restored ---------------------------------------------------------------------------------------------------------


def test_backup_under_load_is_restored_reaped_and_lawful(ledger: Target, tmp_path: Path) -> None:
    migrate(ledger.conninfo)
    acknowledged: list[Acknowledgement] = []
    with _load(ledger, acknowledged):
        _until_there_are(acknowledged, 200)
        kept = list(acknowledged)
        _run(ledger, "pg_dump", "--format=custom", f"--file={tmp_path / 'dump'}", f"--dbname={ledger.conninfo}")
        _until_there_are(acknowledged, len(kept) + 20)
    ledger.server.execute("create database restored owner plain_owner")
    restored = Target(ledger.server, "plain_owner", "restored")
    try:
        _run(restored, "pg_restore", "--exit-on-error", f"--dbname={restored.conninfo}", str(tmp_path / "dump"))
        with _connected(restored) as owner:
            assert check.differences(owner) == [], "grants, policies and checks are those of a fresh ledger"
            assert migrate(restored.conninfo) == []
            _bring_to_rest(owner)
            assert broken(owner, operators=["plain_owner"]) == []
            seen = _history(owner, kept)
            assert len(seen.rows) >= len(kept)
            assert history.check(seen) == []
    finally:
        ledger.server.execute("drop database restored with (force)")


def test_restored_ledger_that_lost_a_policy_is_told_so(ledger: Target, tmp_path: Path) -> None:
    """The comparison forgives how a restore words a check, and nothing else."""
    migrate(ledger.conninfo)
    _run(ledger, "pg_dump", "--format=custom", f"--file={tmp_path / 'dump'}", f"--dbname={ledger.conninfo}")
    ledger.server.execute("create database restored owner plain_owner")
    restored = Target(ledger.server, "plain_owner", "restored")
    try:
        _run(restored, "pg_restore", "--exit-on-error", f"--dbname={restored.conninfo}", str(tmp_path / "dump"))
        with _connected(restored) as owner:
            constraint = "crewai_flow_executions_status_check"
            for planted in (
                "drop policy executions_read_own on crewai_flow_executions",
                f"""alter table crewai_flow_executions drop constraint {constraint},
                    add constraint {constraint} check (status in ('pending', 'running', 'completed', 'failed', 'x'))""",
                f"""alter table crewai_flow_executions drop constraint {constraint},
                    add constraint {constraint} check (status not in ('pending', 'running'))""",
                "grant update on crewai_flow_executions to authenticated",
            ):
                with owner.transaction(force_rollback=True):
                    owner.execute(planted.encode())
                    assert len(check.differences(owner)) == 1, planted
    finally:
        ledger.server.execute("drop database restored with (force)")


@contextmanager
def _load(ledger: Target, acknowledged: list[Acknowledgement]) -> Iterator[None]:
    """Executions are born, claimed, finished and cancelled until the block ends."""
    stopped = threading.Event()

    def work() -> None:
        with _connected(ledger) as owner, _connected(ledger) as worker:
            flow = _flow(owner)
            while not stopped.is_set():
                acknowledged.append(_born(owner, flow))
                if len(acknowledged) % 5 == 0:
                    law.cancel(owner, acknowledged[-1].execution)
                for one in law.claim(worker, flow, slots=2) if len(acknowledged) % 3 == 0 else ():
                    # Every fourth is left running, as a machine leaves it that dies.
                    if one["fence"] % 4:
                        law.finish(worker, one["execution_id"], one["fence"])

    working = threading.Thread(target=work)
    working.start()
    try:
        yield
    finally:
        stopped.set()
        working.join(20)


def _born(owner: psycopg.Connection[law.Row], flow: UUID) -> Acknowledgement:
    identity = {
        "execution_key": f"FLOW-{uuid4()}",
        "executed_by": law.ALICE,
        "flow_id": flow,
        "execution_mode": "manual",
    }
    row = owner.execute(
        "insert into crewai_flow_executions (flow_id, execution_key, executed_by) "
        "values (%(flow_id)s, %(execution_key)s, %(executed_by)s) returning id",
        identity,
    ).fetchone()
    assert row is not None
    return Acknowledgement(row["id"], {**identity, "id": row["id"], "input_state": None, "execution_mode": "manual"})


def _bring_to_rest(owner: psycopg.Connection[law.Row]) -> None:
    """What ran at the time of the backup is nobody's; what waited is claimed, under younger fences, and ends."""
    largest = owner.execute("select max(fence) as fence from flowledger.transitions").fetchone()
    owner.execute("update flowledger.leases set expires_at = clock_timestamp() - interval '1 s'")
    while law.reap(owner):
        pass
    flow = _flow(owner)
    while held := law.claim(owner, flow, slots=100):
        for one in held:
            assert largest is not None
            assert one["fence"] > largest["fence"]
            assert law.finish(owner, one["execution_id"], one["fence"]) == "ok"
    owner.execute("select flowledger.fold_execution_counts()")


def _history(owner: psycopg.Connection[law.Row], acknowledged: list[Acknowledgement]) -> History:
    rows = owner.execute("select e.*, md5(e::text) as digest from crewai_flow_executions as e").fetchall()
    steps = owner.execute(
        "select seq, execution_id as execution, from_status, to_status, actor, at, fence, worker_id as worker "
        "from flowledger.transitions"
    ).fetchall()
    counts = owner.execute("select id, execution_count from crewai_flows").fetchall()
    return History(
        bounds=Bounds(lease=law.LEASE, grace=timedelta(0), poll=timedelta(0)),
        acknowledgements=tuple(acknowledged),
        digests={row["id"]: row.pop("digest") for row in rows},
        rows={row["id"]: row for row in rows},
        # The owner of the tables has borne and cancelled them here, in the user's name.
        transitions=tuple(
            Transition(**{**step, "actor": str(law.ALICE) if step["actor"] == "plain_owner" else step["actor"]})
            for step in steps
        ),
        leases={row["execution_id"]: row["fence"] for row in owner.execute("select * from flowledger.leases")},
        execution_counts={row["id"]: row["execution_count"] for row in counts},
    )


def _flow(owner: psycopg.Connection[law.Row]) -> UUID:
    row = owner.execute("select id from flowledger.remember_flow('FLOW', 'Flow', '', '{}', '')").fetchone()
    assert row is not None
    flow: UUID = row["id"]
    return flow


@contextmanager
def _connected(target: Target) -> Iterator[psycopg.Connection[law.Row]]:
    with psycopg.connect(target.conninfo, autocommit=True, row_factory=dict_row) as conn:
        conn.execute("set statement_timeout = '60s'")
        yield conn


def _until(watching: psycopg.Connection[law.Row], fact: str) -> None:
    while watching.execute(fact.encode()).fetchone() is None:
        pass


def _until_there_are(acknowledged: list[Acknowledgement], number: int) -> None:
    give_up_at = time.monotonic() + 60
    while len(acknowledged) < number:
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def _run(target: Target, program: str, *arguments: str) -> None:
    done = subprocess.run(
        [target.server.binaries / program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
