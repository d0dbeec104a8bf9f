"""The law as a model in memory: what each step must answer, and what is then true. It knows no SQL.

Time is a number of seconds that only `advance` moves. The steps of the test are far apart and the bounds lie far from
them, so the moments that a real database takes in between decide nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from uuid import UUID

from flowledger.domain.status import TRANSITIONS, Status

ILLEGAL, FROZEN = "FL002", "FL004"


@dataclass
class Life:
    """One execution. `fence`, `worker`, `lease_until` and `deadline` are of its claim; `has_lease` until it is ended or
    robbed; `timeout` and `wait` are the seconds that it was given to run and to wait.
    """

    id: UUID
    flow: UUID
    user: UUID
    priority: int = 0
    timeout: float | None = None
    wait: float | None = None
    runs_after: float = 0
    waits_until: float | None = None
    attempt: int = 1
    status: Status = Status.PENDING
    fence: int | None = None
    worker: UUID | None = None
    lease_until: float = 0
    deadline: float = 0
    has_lease: bool = False
    is_wished: bool = False
    ended_by_holder_as: Status | None = None


@dataclass
class FlowRules:
    concurrency: int | None = None
    retries: int = 0
    retry_seconds: float = 0
    is_paused: bool = False


@dataclass
class Model:
    """`lives` is in the order of births."""

    flows: dict[UUID, FlowRules]
    timeout: float
    lease: float
    now: float = 0
    lives: dict[UUID, Life] = field(default_factory=dict)
    largest_fence: int = 0

    # -- The steps, each with its lawful answer -----------------------------------------------------------------------

    def bear(self, life: Life) -> None:
        life.waits_until = None if life.wait is None else max(self.now, life.runs_after) + life.wait
        self.lives[life.id] = life

    def bear_again(self, life: Life, execution: UUID) -> None:
        """The flow's own policy repeats what failed, after a pause."""
        again = Life(execution, life.flow, life.user, life.priority, life.timeout, life.wait, attempt=life.attempt + 1)
        again.runs_after = self.now + self.flows[life.flow].retry_seconds
        self.bear(again)

    def claim(self, flows: Collection[UUID], slots: int) -> list[UUID]:
        """Who must be claimed, in order: the highest priority first, then the oldest."""
        waiting = [
            life
            for life in self.lives.values()
            if life.status is Status.PENDING and life.flow in flows and life.runs_after <= self.now
        ]
        waiting.sort(key=lambda life: -life.priority)
        free = {flow: self._free_places(flow) for flow in flows}
        taken = []
        for life in waiting:
            if free[life.flow] and len(taken) < slots:
                free[life.flow] -= 1
                taken.append(life.id)
        return taken

    def _free_places(self, flow: UUID) -> int:
        rules = self.flows[flow]
        if rules.is_paused:
            return 0
        if rules.concurrency is None:
            return len(self.lives)
        return max(0, rules.concurrency - sum(life.has_lease for life in self.lives.values() if life.flow == flow))

    def claimed(self, execution: UUID, worker: UUID, fence: int) -> None:
        life = self.lives[execution]
        life.status, life.worker, life.fence, life.has_lease = Status.RUNNING, worker, fence, True
        life.lease_until = self.now + self.lease
        life.deadline = self.now + (life.timeout or self.timeout)
        self.largest_fence = max(self.largest_fence, fence)

    def renew(self, worker: UUID, asked: Iterable[tuple[UUID, int]]) -> dict[UUID, bool]:
        """Who is still held, and whether it is wished cancelled."""
        held = {}
        for execution, fence in asked:
            life = self.lives[execution]
            if life.has_lease and life.fence == fence and life.worker == worker:
                life.lease_until = self.now + self.lease
                held[execution] = life.is_wished
        return held

    def finish(self, execution: UUID, fence: int, status: Status) -> str:
        """`ok`, `dup`, `lost`, or the SQLSTATE of a refusal."""
        life = self.lives[execution]
        if not status.is_terminal:
            return ILLEGAL
        if life.status.is_terminal:
            return "dup" if (life.ended_by_holder_as, life.fence) == (status, fence) else "lost"
        if not life.has_lease or life.fence != fence:
            return "lost"
        self._end(life, status)
        life.ended_by_holder_as = status
        return "ok"

    def cancel(self, execution: UUID, user: UUID | None) -> str:
        """`user` None: an operator."""
        life = self.lives[execution]
        if user not in (None, life.user):
            return "unknown"
        if life.status.is_terminal:
            return "ended"
        if life.status is Status.PENDING:
            self._end(life, Status.CANCELLED)
            return "cancelled"
        life.is_wished = True
        return "wished"

    def reap(self, grace: float) -> dict[UUID, Status]:
        reaped = {}
        for life in self.lives.values():
            if life.status is Status.RUNNING and not (life.has_lease and life.lease_until >= self.now - grace):
                reaped[life.id] = self._verdict(life)
                self._end(life, reaped[life.id])
        return reaped

    def _verdict(self, life: Life) -> Status:
        if life.is_wished:
            return Status.CANCELLED
        # Whose lease is gone without a trace has no deadline any more.
        return Status.TIMEOUT if life.has_lease and life.deadline <= self.now else Status.FAILED

    def expire(self) -> set[UUID]:
        expired = {
            life.id
            for life in self.lives.values()
            if life.status is Status.PENDING and life.waits_until is not None and life.waits_until < self.now
        }
        for execution in expired:
            self._end(self.lives[execution], Status.TIMEOUT)
        return expired

    def step(self, execution: UUID, to: Status) -> str | None:
        """The SQLSTATE that refuses this step; None: there is such a step, or it is none."""
        life = self.lives[execution]
        if to is life.status or to in TRANSITIONS[life.status]:
            return None
        return FROZEN if life.status.is_terminal else ILLEGAL

    def rob(self, execution: UUID) -> None:
        self.lives[execution].has_lease = False

    def _end(self, life: Life, status: Status) -> None:
        life.status, life.has_lease = status, False

    # -- What is true -------------------------------------------------------------------------------------------------

    def is_retried(self, execution: UUID) -> bool:
        """Once it failed by its own fault."""
        life = self.lives[execution]
        return life.status is Status.FAILED and life.attempt <= self.flows[life.flow].retries

    def bare(self) -> list[UUID]:
        return [life.id for life in self.lives.values() if life.status is Status.RUNNING and not life.has_lease]

    def statuses(self) -> dict[UUID, str]:
        return {life.id: str(life.status) for life in self.lives.values()}

    def wishes(self) -> set[UUID]:
        return {life.id for life in self.lives.values() if life.is_wished}

    def leases(self) -> dict[UUID, tuple[int | None, UUID | None]]:
        return {life.id: (life.fence, life.worker) for life in self.lives.values() if life.has_lease}
