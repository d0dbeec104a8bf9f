"""Any sequence of steps, against real Postgres and against the model of the law: each answer is the model's, what the
law refuses is refused, and after every step no invariant is broken.

Time passes by moving the times that the ledger's side tables hold into the past, as the owner may; the database's clock
stays the only one, so that no switch for it has to exist in the product.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import hypothesis
import psycopg
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg.types.json import Jsonb

from flowledger.domain.status import Status
from tests.ledger.invariants import broken
from tests.ledger.law import ALICE, BOB, Row, born, cancel, finish, reap
from tests.ledger.model import FROZEN, FlowRules, Life, Model

SECONDS = 25.0
"""For the whole search; FLOWLEDGER_SECONDS asks for a longer one and FLOWLEDGER_SEED for the same one again."""

# All bounds lie far from the multiples of one step of time, so that the milliseconds of real time decide nothing.
STEP, LEASE, GRACE, TIMEOUT, BRIEF_TIMEOUT, WAIT, RETRY_PAUSE = 200, 300, 150, 700, 500, 500, 130

OPERATOR = "flowledger_worker"
OUTCOMES = [status for status in Status if status.is_terminal]

picks = st.integers(0, 15)
"""Chooses among the executions that are there, the youngest first."""


@dataclass(frozen=True)
class Birth:
    """What somebody asks for; `flow` is 0 for the free one and 1 for the narrow one."""

    user: UUID
    flow: int
    timeout: int | None
    wait: int | None
    priority: int | None


births = st.builds(
    Birth,
    user=st.sampled_from([ALICE, BOB]),
    flow=st.integers(0, 1),
    timeout=st.sampled_from([None, BRIEF_TIMEOUT]),
    wait=st.sampled_from([None, WAIT]),
    priority=st.sampled_from([None, 1]),
)


@dataclass(frozen=True)
class Stage:
    """Connections as each of those who act, and two flows: one without limits, one that is narrow and tries again."""

    owner: psycopg.Connection[Row]
    users: dict[UUID, psycopg.Connection[Row]]
    worker: psycopg.Connection[Row]

    def emptied(self) -> tuple[UUID, UUID]:
        # Thousands of truncated tables are thousands of files, which the server would sync and unlink when it stops.
        for table in (
            "crewai_flow_executions",
            "crewai_flows",
            "flowledger.workers",
            "flowledger.uncounted_executions",
            "flowledger.unfolded_spending",
        ):
            self.owner.execute(f"delete from {table}".encode())
        free, narrow = (
            self.worker.execute("select id from flowledger.remember_flow(%s, 'Flow', '', '{}', '')", [key]).fetchone()[
                "id"
            ]
            for key in ("FREE", "NARROW")
        )
        self.worker.execute(
            "select flowledger.set_controls(%s, %s)",
            [narrow, Jsonb({"concurrency": 2, "retries": 1, "retry_seconds": RETRY_PAUSE})],
        )
        return free, narrow


class Executions(RuleBasedStateMachine):
    """Two users, an operator, two workers that die and are followed by others, reapers, and time."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.owner, self.worker = stage.owner, stage.worker

    @initialize(births=st.lists(births, min_size=3, max_size=7), first=st.integers(0, 3))
    def open(self, births: list[Birth], first: int) -> None:
        """Some wait already, and some run: else most stories would end before anything happens."""
        self.flows = self.stage.emptied()
        narrow = FlowRules(concurrency=2, retries=1, retry_seconds=RETRY_PAUSE)
        self.model = Model(dict(zip(self.flows, (FlowRules(), narrow), strict=True)), timeout=TIMEOUT, lease=LEASE)
        self.workers = [uuid4(), uuid4()]
        self.identities: dict[UUID, str] = {}
        self.ends: dict[UUID, str] = {}
        for birth in births:
            self._bear(birth)
        for number in range(first):
            self._claim(self.workers[number % 2], self.flows, 2)

    # -- Births -------------------------------------------------------------------------------------------------------

    @rule(birth=births)
    def create(self, birth: Birth) -> None:
        self._bear(birth)

    def _bear(self, birth: Birth) -> None:
        asked = {"timeout_seconds": birth.timeout, "queue_seconds": birth.wait, "priority": birth.priority}
        metadata = {name: value for name, value in asked.items() if value is not None}
        flow = self.flows[birth.flow]
        execution = born(self.stage.users[birth.user], flow, metadata=metadata or None, input_state={"n": 1})
        self.model.bear(Life(execution, flow, birth.user, birth.priority or 0, birth.timeout, birth.wait))

    @rule(user=st.sampled_from([ALICE, BOB]), status=st.sampled_from([*Status, None]), forged=st.booleans())
    def create_unlawfully(self, user: UUID, status: Status | None, forged: bool) -> None:
        """Nobody is born with a fate; nobody is born somebody else's child."""
        mine = self.stage.users[user]
        other = BOB if user == ALICE else ALICE
        if forged:
            assert _refused(lambda: born(mine, self.flows[0], executed_by=other)) == "42501"
        else:
            assert _refused(lambda: born(mine, self.flows[0], status=status)) == "42501"
        if status is not Status.PENDING:
            insert = "insert into crewai_flow_executions (flow_id, execution_key, status) values (%s, 'x', %s)"
            assert _refused(lambda: self.owner.execute(insert, [self.flows[0], status])) == "FL001"

    # -- Workers ------------------------------------------------------------------------------------------------------

    @rule(worker=st.integers(0, 1), slots=st.integers(1, 3), which=st.sampled_from([(0,), (1,), (0, 1), (1, 0)]))
    def claim(self, worker: int, slots: int, which: tuple[int, ...]) -> None:
        self._claim(self.workers[worker], [self.flows[number] for number in which], slots)

    def _claim(self, worker: UUID, flows: Sequence[UUID], slots: int) -> None:
        lawful, largest = self.model.claim(flows, slots), self.model.largest_fence
        taken = self._ask_for_claims(worker, flows, slots)
        assert [one["execution_id"] for one in taken] == lawful
        for one in taken:
            assert one["fence"] > largest
            self.model.claimed(one["execution_id"], worker, one["fence"])
            assert one["timeout_seconds"] == (self.model.lives[one["execution_id"]].timeout or TIMEOUT)

    def _ask_for_claims(self, worker: UUID, flows: Sequence[UUID], slots: int) -> list[Row]:
        return self.worker.execute(
            "select * from flowledger.claim(%s, %s, %s, %s, %s)",
            [worker, list(flows), [float(TIMEOUT)] * len(flows), slots, timedelta(seconds=LEASE)],
        ).fetchall()

    @rule(worker=st.integers(0, 1), slots=st.integers(1, 3))
    def die_while_claiming(self, worker: int, slots: int) -> None:
        """What was not committed has not been."""
        with self.worker.transaction(force_rollback=True):
            self._ask_for_claims(self.workers[worker], self.flows, slots)

    @precondition(lambda self: self._started())
    @rule(worker=st.integers(0, 1), stale=st.booleans())
    def renew(self, worker: int, stale: bool) -> None:
        """A worker asks for all that it ever had, and for what was never its own."""
        asked = [(life.id, life.fence - stale) for life in self._started()]
        answered = self.worker.execute(
            "select * from flowledger.renew(%s, %s, %s, %s)",
            [self.workers[worker], [one for one, _ in asked], [fence for _, fence in asked], timedelta(seconds=LEASE)],
        ).fetchall()
        told = {one["execution_id"]: one["cancel_wished"] for one in answered}
        assert told == self.model.renew(self.workers[worker], asked)

    @precondition(lambda self: self._started())
    @rule(
        pick=picks,
        fence=st.sampled_from(["own"] * 4 + ["older", "another's", "none yet"]),
        status=st.sampled_from(Status),
    )
    def finish(self, pick: int, fence: str, status: Status) -> None:
        life = self._started()[-1 - pick % len(self._started())]
        given = {
            "own": life.fence,
            "older": life.fence - 1,
            "another's": self._started()[pick % len(self._started())].fence,
            "none yet": self.model.largest_fence + 1,
        }[fence]
        self._finish(life, given, status)

    def _finish(self, life: Life, fence: int, status: Status) -> None:
        error = {Status.FAILED: "Boom", Status.CANCELLED: "Cancelled", Status.TIMEOUT: "Timeout"}.get(status)
        answer = _answer_or_refusal(lambda: finish(self.worker, life.id, fence, status, error_type=error))
        assert answer == self.model.finish(life.id, fence, status)
        self._take_up_retry(life, is_due=answer == "ok" and self.model.is_retried(life.id))

    @rule(worker=st.integers(0, 1))
    def run_into_failure(self, worker: int) -> None:
        """The flow that tries again gets something to try."""
        before = self.model.largest_fence
        self._claim(self.workers[worker], self.flows[1:], 1)
        for life in [life for life in self._started() if life.fence > before]:
            self._finish(life, life.fence, Status.FAILED)

    @precondition(lambda self: self._started())
    @rule(pick=picks, status=st.sampled_from(OUTCOMES))
    def die_while_finishing(self, pick: int, status: Status) -> None:
        life = self._started()[-1 - pick % len(self._started())]
        with self.worker.transaction(force_rollback=True):
            finish(self.worker, life.id, life.fence, status, error_type="Boom")

    @rule(worker=st.integers(0, 1))
    def crash(self, worker: int) -> None:
        """The next one has another name and none of its fences; what the dead one sent may still arrive as `finish`."""
        self.workers[worker] = uuid4()

    @precondition(lambda self: self._started())
    @rule(pick=picks, stale=st.booleans())
    def report(self, pick: int, stale: bool) -> None:
        """Only the holder adds to the timeline."""
        life = self._started()[-1 - pick % len(self._started())]
        added = self.worker.execute(
            "select flowledger.append_timeline(array[%s], array[%s]::bigint[], array[%s], array[now()], '{x}', '{x}', "
            "array['{}'::jsonb]) as n",
            [life.id, life.fence - stale, random.randrange(2**30)],
        ).fetchone()
        assert added["n"] == (life.has_lease and not stale)

    # -- Owners and operators -----------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.lives)
    @rule(caller=st.sampled_from([ALICE, BOB, None]), pick=picks)
    def cancel(self, caller: UUID | None, pick: int) -> None:
        life = self._pick(pick)
        conn = self.worker if caller is None else self.stage.users[caller]
        assert cancel(conn, life.id) == self.model.cancel(life.id, caller)

    @rule(caller=st.sampled_from([ALICE, BOB, None]))
    def cancel_nobody(self, caller: UUID | None) -> None:
        assert cancel(self.worker if caller is None else self.stage.users[caller], uuid4()) == "unknown"

    @rule(flow=st.integers(0, 1))
    def pause_or_resume(self, flow: int) -> None:
        rules = self.model.flows[self.flows[flow]]
        does = "resume_flow" if rules.is_paused else "pause_flow"
        self.worker.execute(f"select flowledger.{does}(%s)".encode(), [self.flows[flow]])
        rules.is_paused = not rules.is_paused

    # -- Reapers and time ---------------------------------------------------------------------------------------------

    @rule(grace=st.sampled_from([0, GRACE]))
    def reap(self, grace: int) -> None:
        assert reap(self.worker, timedelta(seconds=grace)) == self.model.reap(grace)

    @rule()
    def expire(self) -> None:
        expired = self.worker.execute("select flowledger.expire() as id").fetchall()
        assert {one["id"] for one in expired} == self.model.expire()

    @rule(steps=st.integers(1, 4))
    def advance_time(self, steps: int) -> None:
        by = timedelta(seconds=steps * STEP)
        self.owner.execute(
            "update flowledger.leases set claimed_at = claimed_at - %(by)s, expires_at = expires_at - %(by)s, "
            "deadline_at = deadline_at - %(by)s",
            {"by": by},
        )
        self.owner.execute(
            "update flowledger.queue set run_after = run_after - %(by)s, expires_at = expires_at - %(by)s", {"by": by}
        )
        self.model.now += steps * STEP

    @precondition(lambda self: self.model.leases())
    @rule(pick=picks)
    def lose_a_lease(self, pick: int) -> None:
        """A lease that is missing is as dead as one that ended."""
        held = list(self.model.leases())
        self.owner.execute("delete from flowledger.leases where execution_id = %s", [held[pick % len(held)]])
        self.model.rob(held[pick % len(held)])

    # -- Against the law ----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.lives)
    @rule(pick=picks, to=st.sampled_from(Status))
    def step_unlawfully(self, pick: int, to: Status) -> None:
        """Even the owner of the tables takes no step that there is not."""
        life = self._pick(pick)
        refusal = self.model.step(life.id, to)
        if refusal:
            update = "update crewai_flow_executions set status = %s where id = %s"
            assert _refused(lambda: self.owner.execute(update, [to, life.id])) == refusal

    @precondition(lambda self: self.model.lives)
    @rule(pick=picks, change=st.sampled_from(["input_state = '{}'", "executed_by = null", "execution_key = 'x'"]))
    def change_identity(self, pick: int, change: str) -> None:
        life = self._pick(pick)
        update = f"update crewai_flow_executions set {change} where id = %s".encode()
        refused = _refused(lambda: self.owner.execute(update, [life.id]))
        assert refused == (FROZEN if life.status.is_terminal else "FL003")

    @precondition(lambda self: self.model.lives)
    @rule(pick=picks, user=st.sampled_from([ALICE, BOB]))
    def write_as_user(self, pick: int, user: UUID) -> None:
        """Users have no way to a status but `cancel`."""
        mine = self.stage.users[user]
        for statement in (
            "update crewai_flow_executions set status = 'completed' where id = %s",
            "delete from crewai_flow_executions where id = %s",
            "select flowledger.finish(%s, 1, 'completed', null, null, null, null, null, null, null, null)",
            "delete from flowledger.leases where execution_id = %s",
        ):
            refused = _refused(lambda statement=statement: mine.execute(statement, [self._pick(pick).id]))
            assert refused == "42501"

    # -- After every step ---------------------------------------------------------------------------------------------

    @invariant()
    def ledger_is_what_the_model_says(self) -> None:
        rows = self.owner.execute(
            "select id, status, md5(e::text) as whole, "
            "md5(row(id, flow_id, execution_key, executed_by, execution_mode, input_state)::text) as identity "
            "from crewai_flow_executions as e"
        ).fetchall()
        assert {row["id"]: row["status"] for row in rows} == self.model.statuses()
        for row in rows:
            assert self.identities.setdefault(row["id"], row["identity"]) == row["identity"], "15: it has changed"
            if Status(row["status"]).is_terminal:
                assert self.ends.setdefault(row["id"], row["whole"]) == row["whole"], "6: it was not frozen"
        leases = self.owner.execute("select * from flowledger.leases").fetchall()
        assert {one["execution_id"]: (one["fence"], one["worker_id"]) for one in leases} == self.model.leases()
        wishes = self.owner.execute("select execution_id from flowledger.cancel_wishes").fetchall()
        assert {wish["execution_id"] for wish in wishes} == self.model.wishes()

    @invariant()
    def no_invariant_is_broken(self) -> None:
        operators = [OPERATOR, "worker", "reaper"]
        assert broken(self.owner, bare=self.model.bare(), operators=operators) == []

    def teardown(self) -> None:
        """18: through every table that they may read, readers have seen their own and no more."""
        for user, conn in self.stage.users.items():
            own = {life.id for life in self.model.lives.values() if life.user == user}
            seen = conn.execute(
                "select array(select id from crewai_flow_executions) as rows, array("
                "select execution_id from flowledger.transitions union "
                "select execution_id from flowledger.cancel_wishes union "
                "select execution_id from flowledger.timeline union select execution_id from flowledger.reruns "
                "union select of_execution from flowledger.reruns) as beside"
            ).fetchone()
            assert set(seen["rows"]) == own
            assert set(seen["beside"]) == own

    # -- What the rules share -----------------------------------------------------------------------------------------

    def _pick(self, number: int) -> Life:
        lives = list(self.model.lives.values())
        return lives[-1 - number % len(lives)]

    def _started(self) -> list[Any]:
        return [life for life in self.model.lives.values() if life.fence is not None]

    def _take_up_retry(self, life: Life, *, is_due: bool) -> None:
        """A failure that is to be tried again has borne exactly one new execution."""
        fresh = self.owner.execute(
            "select execution_id, attempt, kind from flowledger.reruns where of_execution = %s", [life.id]
        ).fetchall()
        known = [one for one in fresh if one["execution_id"] in self.model.lives]
        (*new,) = [one for one in fresh if one["execution_id"] not in self.model.lives]
        assert len(new) == is_due
        assert len(known) + len(new) <= 1
        for one in new:
            assert (one["attempt"], one["kind"]) == (life.attempt + 1, "retry")
            self.model.bear_again(life, one["execution_id"])


# -- The search -------------------------------------------------------------------------------------------------------


@pytest.fixture
def stage(owner, worker, as_user, database) -> Stage:
    return Stage(owner, {ALICE: as_user(ALICE), BOB: as_user(BOB)}, worker)


@pytest.mark.timeout(300)
def test_every_sequence_of_steps_is_answered_as_the_law_says(stage, capsys):
    seed = int(os.environ.get("FLOWLEDGER_SEED", random.randrange(2**31)))
    until = time.monotonic() + float(os.environ.get("FLOWLEDGER_SECONDS", SECONDS))
    with capsys.disabled():
        print(f" FLOWLEDGER_SEED={seed}", end="", flush=True)  # noqa: T201 - who sees it fail can see it again
    searched = 0
    while time.monotonic() < until:
        _search(stage, seed + searched, examples=10, phases=(Phase.generate, Phase.shrink))
        searched += 1
    assert searched


MUTANTS = {
    "finish without a fence": ("finish", "and leases.fence = finish.fence)", ")"),
    "finish that decides again": ("finish", "if flowledger.is_terminal(found_status) then", "if false then"),
    "dup whatever is stored": ("finish", "and transitions.to_status = finish.status and", "and"),
    "a reaper without patience": ("reap", "- grace", ""),
    "a reaper that forgets wishes": ("reap", "from flowledger.cancel_wishes", "from flowledger.queue"),
    "a reaper that forgets who has no lease": ("reap", "leases.execution_id is null or", ""),
    "cancel for everybody": ("cancel", "executions.executed_by = auth.uid()", "true"),
    "cancel that ends what runs": ("cancel", "if found_status = 'pending' then", "if true then"),
    "renew for any worker": ("renew", "leases.worker_id = worker", "true"),
    "renew for any fence": ("renew", "using (execution_id, fence)", "on mine.execution_id = leases.execution_id"),
    "claim before its time": ("claim", "and queue.run_after <= clock_timestamp()", ""),
    "claim the youngest": ("claim", "order by queue.priority desc, queue.place", "order by queue.place desc"),
    "a way back from running": ("edge_is_legal", "to_status in ('completed',", "to_status in ('pending', 'completed',"),
    "events from anybody": ("append_timeline", "using (execution_id, fence)", "using (execution_id)"),
    "expire too early": ("expire", "queue.expires_at < clock_timestamp()", "queue.expires_at is not null"),
    "retry for ever": ("retry_if_due", "retries_before >= policy.retries", "false"),
    "more than may run at a time": (
        "startable",
        "least(most, controls.concurrency",
        "greatest(most, controls.concurrency",
    ),
    "a pause that holds nobody": ("startable", "controls.paused_at is not null or", ""),
}


FOUND_AT_ONCE = ("finish without a fence", "dup whatever is stored", "cancel for everybody", "claim the youngest")
"""The others take the search minutes, which only a long one has."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS if "FLOWLEDGER_SECONDS" in os.environ else FOUND_AT_ONCE)
def test_a_law_with_a_hole_is_found_out(stage, mutant):
    function, text, instead = MUTANTS[mutant]
    with _changed(stage.owner, function, text, instead), pytest.raises(Exception) as found:  # noqa: PT012
        for seed in range(8):
            _search(stage, seed, examples=10)
    assert isinstance(found.value, AssertionError | ExceptionGroup | psycopg.DatabaseError), found.value


def _search(stage: Stage, seed: int, *, examples: int, phases: Collection[Phase] = (Phase.generate,)) -> None:
    machine = hypothesis.seed(seed)(lambda: Executions(stage))
    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        database=None,
        print_blob=True,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=settings)


@contextmanager
def _changed(owner: psycopg.Connection[Row], name: str, text: str, instead: str) -> Iterator[None]:
    """One function of the law with a hole in it, mended again at the end."""
    lawful = owner.execute(
        "select pg_get_functiondef(oid) as text from pg_proc "
        "where proname = %s and pronamespace = 'flowledger'::regnamespace",
        [name],
    ).fetchone()["text"]
    assert text in lawful
    owner.execute(lawful.replace(text, instead).encode())
    try:
        yield
    finally:
        owner.execute(lawful.encode())


def _refused(attempt: Callable[[], Any]) -> str | None:
    """The SQLSTATE of the refusal."""
    try:
        attempt()
    except psycopg.DatabaseError as refusal:
        return refusal.sqlstate
    raise AssertionError("the ledger has accepted what the law forbids")


def _answer_or_refusal(attempt: Callable[[], str]) -> str | None:
    try:
        return attempt()
    except psycopg.DatabaseError as refusal:
        return refusal.sqlstate
