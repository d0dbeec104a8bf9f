"""Two connections at once, in both orders of every race: the first holds its transaction open until the second has
either waited for it or gone past it. Who wins, what the other is told and whether it had to wait stand in one table.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.ledger import law
from tests.ledger.invariants import broken
from tests.ledger.law import Row, born, row

Answer = str | bool | None


@dataclass(frozen=True)
class Scene:
    """One execution, and the claim that holds it once it runs."""

    flow: UUID
    execution: UUID
    held: Row | None = None


@dataclass(frozen=True)
class Act:
    """What one side does, as which login, and its answer when nobody is in the way."""

    by: str
    do: Callable[[psycopg.Connection[Row], Scene], Answer]
    alone: Answer


def _finish(status: str) -> Callable[[psycopg.Connection[Row], Scene], Answer]:
    return lambda conn, scene: law.finish(conn, scene.execution, scene.held["fence"], status)


def _expire(conn: psycopg.Connection[Row], scene: Scene) -> bool:
    return scene.execution in [one["id"] for one in conn.execute("select flowledger.expire() as id").fetchall()]


ACTS = {
    "claim": Act("worker", lambda conn, scene: bool(law.claim(conn, scene.flow, as_worker=uuid4())), True),
    "cancel": Act("owner", lambda conn, scene: law.cancel(conn, scene.execution), None),
    "expire": Act("worker", _expire, True),
    "finish": Act("worker", _finish("completed"), "ok"),
    "finish as failed": Act("worker", _finish("failed"), "ok"),
    "renew": Act("worker", lambda conn, scene: bool(law.renew(conn, scene.held)), True),
    "reap": Act("worker", lambda conn, scene: law.reap(conn).get(scene.execution), "failed"),
}

WAITS, GOES_ON = True, False

# Before, first and its answer, second and its answer, whether the second waits for the first, status in the end.
RACES: list[tuple[str, str, Answer, str, Answer, bool, str]] = [
    ("pending", "claim", True, "cancel", "wished", WAITS, "running"),
    ("pending", "cancel", "cancelled", "claim", False, GOES_ON, "cancelled"),
    ("pending", "claim", True, "claim", False, GOES_ON, "running"),
    ("pending", "claim", True, "expire", False, GOES_ON, "running"),
    ("pending", "expire", True, "claim", False, GOES_ON, "timeout"),
    ("pending", "cancel", "cancelled", "expire", False, GOES_ON, "cancelled"),
    ("pending", "expire", True, "cancel", "ended", WAITS, "timeout"),
    ("pending", "expire", True, "expire", False, GOES_ON, "timeout"),
    ("pending", "cancel", "cancelled", "cancel", "ended", WAITS, "cancelled"),
    ("running", "finish", "ok", "cancel", "ended", WAITS, "completed"),
    ("running", "cancel", "wished", "finish", "ok", WAITS, "completed"),
    ("running", "cancel", "wished", "cancel", "wished", WAITS, "running"),
    ("running", "finish", "ok", "finish", "dup", WAITS, "completed"),
    ("running", "finish", "ok", "finish as failed", "lost", WAITS, "completed"),
    ("running", "finish as failed", "ok", "finish", "lost", WAITS, "failed"),
    ("running", "finish", "ok", "renew", False, WAITS, "completed"),
    ("running", "renew", True, "finish", "ok", WAITS, "completed"),
    ("running", "renew", True, "cancel", "wished", GOES_ON, "running"),
    ("running", "cancel", "wished", "renew", True, GOES_ON, "running"),
    ("orphaned", "finish", "ok", "reap", None, GOES_ON, "completed"),
    ("orphaned", "reap", "failed", "finish", "lost", WAITS, "failed"),
    ("orphaned", "renew", True, "reap", None, WAITS, "running"),
    ("orphaned", "reap", "failed", "renew", False, WAITS, "failed"),
    ("orphaned", "reap", "failed", "reap", None, GOES_ON, "failed"),
    ("orphaned", "cancel", "wished", "reap", None, GOES_ON, "running"),
    ("orphaned", "reap", "failed", "cancel", "ended", WAITS, "failed"),
]
_RACED = {
    ("claim", "cancel"),
    ("claim", "claim"),
    ("cancel", "finish"),
    ("finish", "reap"),
    ("reap", "renew"),
    ("reap", "reap"),
    ("finish", "finish"),
    ("claim", "expire"),
    ("cancel", "expire"),
}


@pytest.fixture
def scene(owner, alice, worker, flow) -> Callable[[str], Scene]:
    def scene(before: str) -> Scene:
        execution = born(alice, flow)
        owner.execute("update flowledger.queue set expires_at = clock_timestamp()")
        if before == "pending":
            return Scene(flow, execution)
        (held,) = law.claim(worker, flow)
        if before == "orphaned":
            law.expire(owner, execution)
        return Scene(flow, execution, held)

    return scene


@pytest.fixture
def side(connect, as_user) -> Callable[[str], psycopg.Connection[Row]]:
    """A new connection of whoever does this."""
    return lambda name: as_user(law.ALICE) if ACTS[name].by == "owner" else connect("flowledger_worker")


@pytest.mark.parametrize(("before", "first", "told", "second", "then", "waits", "after"), RACES)
def test_of_two_at_once_one_wins_and_the_other_is_told(
    owner, scene, side, before, first, told, second, then, waits, after
):
    there = scene(before)
    one, other = side(first), side(second)
    with ThreadPoolExecutor(1) as pool:
        with one.transaction():
            assert ACTS[first].do(one, there) == told
            going = pool.submit(ACTS[second].do, other, there)
            assert _waits(owner, going, one, other) == waits
        assert going.result(20) == then
    assert row(owner, there.execution)["status"] == after
    assert broken(owner) == []


@pytest.mark.parametrize(("before", "first", "told", "second", "then", "waits", "after"), RACES)
def test_a_first_that_dies_before_its_commit_leaves_all_to_the_second(
    owner, scene, side, before, first, told, second, then, waits, after
):
    there = scene(before)
    one, other = side(first), side(second)
    alone = ACTS[second].alone or {"pending": "cancelled"}.get(before, "wished")
    with ThreadPoolExecutor(1) as pool:
        one.execute("begin")
        assert ACTS[first].do(one, there) == told
        going = pool.submit(ACTS[second].do, other, there)
        assert _waits(owner, going, one, other) == waits
        # Its machine is gone: no commit, no rollback, no word.
        pid = one.info.backend_pid
        one.close()
        answer = going.result(20)
    if not waits and answer != alone:
        _until_gone(owner, pid)
        answer = ACTS[second].do(other, there)
    assert answer == alone
    assert broken(owner) == []


def test_every_race_of_the_law_is_run_in_both_orders():
    orders = {
        (first.removesuffix(" as failed"), second.removesuffix(" as failed")) for _, first, _, second, *_ in RACES
    }
    for one, other in _RACED:
        assert {(one, other), (other, one)} <= orders


def test_a_claim_of_many_passes_by_what_others_hold(owner, alice, bob, connect, flow):
    """Each of four executions is held by somebody else's open transaction; the fifth is free."""
    executions = [born(alice, flow) for _ in range(5)]
    holders = [connect("flowledger_worker") for _ in range(4)]
    for holder, execution in zip(holders, executions, strict=False):
        holder.execute("begin")
        law.cancel(holder, execution)
    taken = law.claim(connect("flowledger_worker"), flow)
    assert [one["execution_id"] for one in taken] == executions[4:]
    for holder in holders:
        holder.execute("commit")
    assert broken(owner, operators=["flowledger_worker"]) == []


def _waits(
    owner: psycopg.Connection[Row], going: Future[Any], first: psycopg.Connection[Row], second: psycopg.Connection[Row]
) -> bool:
    """True once the second is held up by the first, False once it has gone past it."""
    held_up = "select %s = any (pg_blocking_pids(%s)) as so"
    pids = [first.info.backend_pid, second.info.backend_pid]
    while not going.done():
        if owner.execute(held_up, pids).fetchone()["so"]:
            return True
    return False


def _until_gone(owner: psycopg.Connection[Row], pid: int) -> None:
    while owner.execute("select from pg_stat_activity where pid = %s", [pid]).fetchone() is not None:
        pass
