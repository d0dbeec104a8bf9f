"""Connections that are cut, killed while idle, or fall silent without being closed; and a database that restarts or is
away. Workers come back by themselves: nothing is lost, nothing stays, nothing happens twice.
"""

from __future__ import annotations

import signal
import time
from uuid import UUID

import pytest

from tests.acceptance.product import Product, wait_for
from tests.survival.conftest import ANSWER_SECONDS, GRACE_SECONDS, LEASE_SECONDS, SLOTS, Distant
from tests.survival.stage import NetworkPostgres, at_rest, running, works_again

pytestmark = pytest.mark.timeout(120)

REAPED_SECONDS = LEASE_SECONDS + GRACE_SECONDS + 5
UNKNOWN = {"WorkerLost", "LeaseLost"}


def test_connections_are_cut_again_and_again(product: Product, workers: list[Distant]) -> None:
    executions = running(product, 2 * SLOTS, seconds=3) + [product.kickoff("good") for _ in range(6)]
    cut = 0
    until = time.monotonic() + 4
    while time.monotonic() < until:
        cut += _cut(product)
        time.sleep(0.3)
    assert cut >= 20
    rows = at_rest(product, executions, seconds=30)
    assert {row["error_type"] for row in rows} <= {None, *UNKNOWN}
    works_again(product, SLOTS)


def test_idle_connections_are_killed_by_the_server(
    product: Product, network: NetworkPostgres, workers: list[Distant]
) -> None:
    network.as_superuser("alter role flowledger_worker set idle_session_timeout = '1s'")
    try:
        _cut(product)
        time.sleep(2)
        rows = at_rest(product, [*running(product, 2 * SLOTS, seconds=2), product.kickoff("good")], seconds=20)
        assert {row["status"] for row in rows} == {"completed"}
    finally:
        network.as_superuser("alter role flowledger_worker reset idle_session_timeout")
        _cut(product)
    works_again(product, SLOTS)


def test_half_open_connections_are_given_up_and_made_anew(product: Product, workers: list[Distant]) -> None:
    """What was connected falls silent; who connects now gets through, as after a failover or a lost NAT entry."""
    executions = running(product, 2 * SLOTS, seconds=4)
    workers[0].proxy.freeze(newcomers=False)
    frozen_at = time.monotonic()
    at_rest(product, executions, seconds=30)
    fresh = [product.kickoff("slow", seconds=0.5) for _ in range(2 * SLOTS)]
    rows = at_rest(product, fresh, seconds=30)
    assert {row["status"] for row in rows} == {"completed"}
    # With the other worker's slots full, one more can only be the silenced one's.
    busy = running(product, SLOTS, seconds=60)
    one_more = product.kickoff("slow", seconds=60)
    product.running(one_more, seconds=2 * ANSWER_SECONDS)
    assert _claims(product, workers[0], since=frozen_at)
    with product.as_user(product.user) as me:
        for one in (*busy, one_more):
            me.execute("select flowledger.cancel(%s)", (one,))
    at_rest(product, [*busy, one_more], seconds=15)
    works_again(product, SLOTS)


def test_partitioned_worker_loses_what_it_ran_and_nothing_else(product: Product, workers: list[Distant]) -> None:
    executions = running(product, 2 * SLOTS, seconds=60, mark="of-the-partitioned")
    of_first = [one for one in executions if product.holder(one)["pid"] == workers[0].worker.pid]
    others = [one for one in executions if one not in of_first]
    assert len(of_first) == SLOTS
    workers[0].proxy.freeze(newcomers=True)
    try:
        rows = at_rest(product, of_first, seconds=REAPED_SECONDS)
        assert {row["error_type"] for row in rows} == {"WorkerLost"}
        fresh = product.kickoff("good")
        with product.as_user(product.user) as me:
            for one in others:
                me.execute("select flowledger.cancel(%s)", (one,))
        assert {row["status"] for row in at_rest(product, others, seconds=15)} == {"cancelled"}
        assert product.ended(fresh)["status"] == "completed"
    finally:
        workers[0].proxy.thaw()
    for execution in of_first:
        (late,) = wait_for(lambda execution=execution: _answers(workers[0], execution), seconds=30)
        assert late["answer"] == "lost"
    assert at_rest(product, of_first, seconds=1) == rows, "frozen"
    works_again(product, SLOTS)


def test_postgres_restarts_cleanly(product: Product, network: NetworkPostgres, workers: list[Distant]) -> None:
    executions = running(product, 2 * SLOTS, seconds=2)
    waiting = [product.kickoff("good") for _ in range(2)]
    network.down("fast")
    network.up()
    rows = at_rest(product, executions + waiting, seconds=REAPED_SECONDS + 10)
    assert {row["error_type"] for row in rows} <= {None, *UNKNOWN}
    works_again(product, SLOTS)


def test_postgres_is_away_for_twenty_seconds(
    product: Product, network: NetworkPostgres, workers: list[Distant], tmp_path
) -> None:
    """Who has a long lease keeps the outcome and writes it later; who has a short one gives its flow up in time."""
    with product.worker(
        log=tmp_path / "patient", slots=SLOTS, database_url=network.url("flowledger_worker"), lease_seconds=60
    ) as patient:
        executions = running(product, 3 * SLOTS, seconds=8)
        of_patient = {one for one in executions if product.holder(one)["pid"] == patient.pid}
        assert len(of_patient) == SLOTS
        waiting = product.kickoff("good")
        network.down("immediate")
        time.sleep(20)
        network.up()
        rows = {row["id"]: row for row in at_rest(product, [*executions, waiting], seconds=30)}
        for one in executions:
            assert rows[one]["error_type"] in ({None} if one in of_patient else UNKNOWN), rows[one]
        assert rows[waiting]["status"] == "completed"
        patient.signal(signal.SIGTERM)
        assert patient.wait() == 0
    works_again(product, SLOTS)


def _cut(product: Product) -> int:
    with product.connection("flowledger_worker") as itself:
        cut = itself.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where usename = current_user and pid <> pg_backend_pid()"
        ).fetchall()
    return len(cut)


def _answers(distant: Distant, execution: UUID) -> list[dict[str, object]]:
    return [end for end in distant.worker.facts("execution_ended") if end["execution"] == str(execution)]


def _claims(product: Product, distant: Distant, *, since: float) -> bool:
    ago = f"{time.monotonic() - since} s"
    return bool(
        product.sql(
            "select 1 from flowledger.transitions where to_status = 'running' and worker_id = %s "
            "and at > clock_timestamp() - %s::interval",
            distant.worker.id,
            ago,
        )
    )
