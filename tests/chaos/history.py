"""The law of `docs/lifecycle.md`, judged from outside: what was seen of a stretch of time, and what is wrong in it.

`check` is a pure function and shares no code with the system: it knows the law only as it is written here. Gathering a
history is left to `record.py`. Every time is an aware datetime of one machine's clock.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import Any
from uuid import UUID

Row = Mapping[str, Any]

IDENTITY = ("id", "flow_id", "execution_key", "executed_by", "execution_mode", "input_state")
LEGAL_EDGES = {
    "pending": {"running", "failed", "cancelled", "timeout"},
    "running": {"completed", "failed", "cancelled", "timeout"},
}
TERMINAL = {"completed", "failed", "cancelled", "timeout"}
NOBODY_KNOWS = {"WorkerLost", "LeaseLost"}
"""Error types that say: the flow may have ended, and its effects may have happened."""

_CLOCKS_AGREE = timedelta(seconds=0.1)
"""Flows write down the time since boot; over minutes it drifts that much from the clock of the database."""

_BY_OWNER = "owner"
_ACTORS = {
    (None, "pending"): {_BY_OWNER},
    ("pending", "running"): {"worker"},
    ("pending", "cancelled"): {_BY_OWNER},
    ("pending", "timeout"): {"reaper"},
    ("pending", "failed"): {"worker", "reaper"},
    ("running", "completed"): {"worker"},
    ("running", "failed"): {"worker", "reaper"},
    ("running", "cancelled"): {"worker", "reaper"},
    ("running", "timeout"): {"worker", "reaper"},
}


class Invariant(StrEnum):
    """The numbers are those of lifecycle.md."""

    KEPT = "1 every acknowledged create exists"
    BIRTH = "2 the first transition is the birth of a pending row"
    CHAIN = "3 the chain of transitions has no gap and ends at the row's status"
    ONE_RUN = "4 an execution runs at most once"
    ONE_END = "5 an execution at rest has exactly one terminal status"
    FROZEN = "6 a terminal row never changes"
    HELD = "7 what runs has a live lease, or is reaped in time"
    LEASE_RUNS = "8 what has a lease runs"
    FINISH_ONCE = "9 finish is ok once; dup is the same outcome"
    FENCE = "10 fences grow, and a finish carries its claim's"
    END_SEEN = "11 completed means that the flow's end was observed"
    GONE = "12 nothing of an execution lives 2 s after its end"
    QUIET = "13 nothing happens 1 s after cancelled or timeout"
    NUMBERS = "14 times and amounts make sense"
    IDENTITY = "15 what identifies an execution never changes"
    COUNTED = "17 a flow's execution_count is the number of its rows"
    ACTOR = "19 only who may decide a step does"
    CLOCK = "20 the database's clock decides, and it does not go back"


@dataclass(frozen=True)
class Violation:
    """`execution` is None where a flow, not an execution, is wrong."""

    invariant: Invariant
    execution: UUID | None
    detail: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.execution or ''} {self.detail}"


@dataclass(frozen=True)
class Acknowledgement:
    """The client's note, made after the database's answer. `identity`: the columns of `IDENTITY` as they were sent.

    `cancelled` is True once a cancel was answered `cancelled`: it had not started, and never will.
    """

    execution: UUID
    identity: Row
    cancelled: bool = False


@dataclass(frozen=True)
class Transition:
    seq: int
    execution: UUID
    from_status: str | None
    to_status: str
    actor: str
    at: datetime
    fence: int | None = None
    worker: UUID | None = None

    @property
    def edge(self) -> tuple[str | None, str]:
        return self.from_status, self.to_status


@dataclass(frozen=True)
class Look:
    """A row as it was seen on the way. `digest` is of all 18 columns; `lease_until` None: it had no lease."""

    execution: UUID
    at: datetime
    status: str
    digest: str
    lease_until: datetime | None = None


@dataclass(frozen=True)
class Effect:
    """What flow code itself wrote down: `started`, `step` or `ended`."""

    execution: UUID
    what: str
    at: datetime


@dataclass(frozen=True)
class Sighting:
    """A process of this execution was alive."""

    execution: UUID
    at: datetime


@dataclass(frozen=True)
class Answer:
    """What a worker says that its finish was answered: `ok`, `dup` or `lost`."""

    execution: UUID
    fence: int
    status: str
    answer: str


@dataclass(frozen=True)
class Outage:
    """While the database was down nobody could renew or reap."""

    begin: datetime
    end: datetime


@dataclass(frozen=True)
class Bounds:
    """How long things may take. `slack` is for a busy machine; it widens nothing else than durations."""

    lease: timedelta
    grace: timedelta
    poll: timedelta
    slack: timedelta = timedelta(seconds=5)


@dataclass(frozen=True)
class History:
    """`rows`, `digests`, `leases` and `execution_counts` are the ledger at rest, the rest is of the whole time."""

    bounds: Bounds
    acknowledgements: tuple[Acknowledgement, ...] = ()
    transitions: tuple[Transition, ...] = ()
    rows: Mapping[UUID, Row] = field(default_factory=dict)
    digests: Mapping[UUID, str] = field(default_factory=dict)
    leases: Mapping[UUID, int] = field(default_factory=dict)
    execution_counts: Mapping[UUID, int] = field(default_factory=dict)
    looks: tuple[Look, ...] = ()
    effects: tuple[Effect, ...] = ()
    sightings: tuple[Sighting, ...] = ()
    answers: tuple[Answer, ...] = ()
    outages: tuple[Outage, ...] = ()

    @cached_property
    def chains(self) -> Mapping[UUID, list[Transition]]:
        chains = defaultdict(list)
        for step in sorted(self.transitions, key=lambda step: step.seq):
            chains[step.execution].append(step)
        return chains

    @cached_property
    def effects_of(self) -> Mapping[UUID, list[Effect]]:
        effects = defaultdict(list)
        for effect in self.effects:
            effects[effect.execution].append(effect)
        return effects

    @cached_property
    def ends(self) -> Mapping[UUID, Transition]:
        """The first terminal transition of each."""
        return {
            execution: ends[0]
            for execution, chain in self.chains.items()
            if (ends := [step for step in chain if step.to_status in TERMINAL])
        }

    def without_outages(self, begin: datetime, end: datetime) -> timedelta:
        """How much of the time between the two the database was there."""
        down = sum((max(timedelta(0), min(end, out.end) - max(begin, out.begin)) for out in self.outages), timedelta(0))
        return end - begin - down


def check(history: History) -> list[Violation]:
    """Everything in the history that the law forbids."""
    return [
        Violation(invariant, execution, detail) for invariant, judge in _JUDGES for execution, detail in judge(history)
    ]


def lost_although_ended(history: History) -> list[UUID]:
    """Executions recorded as `nobody knows how it ended` although their flow came to its end. Lawful, but a pity."""
    return [
        execution
        for execution, row in history.rows.items()
        if row["error_type"] in NOBODY_KNOWS and _has(history, execution, "ended")
    ]


_Found = Iterator[tuple[UUID | None, str]]


def _kept(history: History) -> _Found:
    for known in history.acknowledgements:
        if known.execution not in history.rows:
            yield known.execution, "was acknowledged and is not there"
        elif known.cancelled and history.rows[known.execution]["status"] != "cancelled":
            yield known.execution, f"was acknowledged as cancelled and is {history.rows[known.execution]['status']}"


def _birth(history: History) -> _Found:
    for execution in history.rows.keys() - history.chains.keys():
        yield execution, "has no transition"
    for execution, chain in history.chains.items():
        if chain[0].edge != (None, "pending"):
            yield execution, f"begins with {_arrow(chain[0])}"


def _chain(history: History) -> _Found:
    for execution, chain in history.chains.items():
        for before, after in pairwise(chain):
            if after.from_status != before.to_status:
                yield execution, f"goes to {before.to_status}, then on from {after.from_status}"
        for step in chain[1:]:
            if step.to_status not in LEGAL_EDGES.get(step.from_status or "", ()):
                yield execution, f"has the edge {_arrow(step)}"
        row = history.rows.get(execution)
        if row is not None and row["status"] != chain[-1].to_status:
            yield execution, f"is {row['status']} after a last step to {chain[-1].to_status}"


def _one_run(history: History) -> _Found:
    for execution, chain in history.chains.items():
        claims = sum(step.to_status == "running" for step in chain)
        if claims > 1:
            yield execution, f"was claimed {claims} times"
    for execution, effects in history.effects_of.items():
        starts = sum(effect.what == "started" for effect in effects)
        if starts > 1:
            yield execution, f"its flow started {starts} times"
        if not any(step.to_status == "running" for step in history.chains.get(execution, ())):
            yield execution, "its flow had effects though nobody claimed it"


def _one_end(history: History) -> _Found:
    for execution, chain in history.chains.items():
        ends = [step.to_status for step in chain if step.to_status in TERMINAL]
        if len(ends) > 1:
            yield execution, f"ended {len(ends)} times: {', '.join(ends)}"
    for execution, row in history.rows.items():
        if row["status"] not in TERMINAL:
            yield execution, f"is {row['status']} at rest"


def _frozen(history: History) -> _Found:
    for look in history.looks:
        if look.status in TERMINAL and history.digests.get(look.execution) != look.digest:
            yield look.execution, f"was seen as {look.status} at {look.at:%H:%M:%S.%f} and is another row now"


def _held(history: History) -> _Found:
    """A lease that is missing is dead, and its row must go the same way as one whose lease ended."""
    bounds = history.bounds
    allowed = bounds.grace + bounds.poll + bounds.slack
    bare_since: dict[UUID, datetime] = {}
    for look in sorted(history.looks, key=lambda look: look.at):
        if look.status != "running" or look.lease_until is not None:
            bare_since.pop(look.execution, None)
        if look.status != "running":
            continue
        dead_since = look.lease_until or bare_since.setdefault(look.execution, look.at)
        overdue = history.without_outages(dead_since, look.at) - allowed
        if look.lease_until is None:
            overdue -= bounds.lease
        if overdue > timedelta(0):
            lease = "no lease" if look.lease_until is None else "a dead lease"
            yield look.execution, f"ran with {lease} for {overdue.total_seconds():.1f} s longer than a reaper may take"


def _lease_runs(history: History) -> _Found:
    for execution in history.leases:
        status = history.rows.get(execution, {}).get("status")
        if status != "running":
            yield execution, f"has a lease and is {status}"


def _finish_once(history: History) -> _Found:
    oks = Counter(answer.execution for answer in history.answers if answer.answer == "ok")
    for execution, times in oks.items():
        if times > 1:
            yield execution, f"finish was ok {times} times"
    for answer in history.answers:
        row = history.rows.get(answer.execution)
        if row is None or answer.answer == "lost" or row["error_type"] == "OutputNotStorable":
            continue
        if row["status"] != answer.status:
            yield answer.execution, f"finish as {answer.status} was {answer.answer} and the row is {row['status']}"


def _fence(history: History) -> _Found:
    yield from _fences_grow(history)
    claimed = {step.execution: step.fence for step in history.transitions if step.to_status == "running"}
    for step in history.transitions:
        if step.from_status == "running" and step.actor == "worker" and step.fence != claimed.get(step.execution):
            yield step.execution, f"claimed under fence {claimed.get(step.execution)}, ended under {step.fence}"
    for answer in history.answers:
        if answer.answer == "ok" and answer.fence != claimed.get(answer.execution):
            yield answer.execution, f"claimed under {claimed.get(answer.execution)}, finish ok under {answer.fence}"


def _fences_grow(history: History) -> _Found:
    """Claims side by side may write their steps in either order, so order is asked of those that lie apart."""
    claims = sorted((step for step in history.transitions if step.to_status == "running"), key=lambda step: step.at)
    seen: set[int] = set()
    largest, behind = -1, 0
    for claim in claims:
        if claim.fence is None:
            yield claim.execution, "was claimed without a fence"
            continue
        if claim.fence in seen:
            yield claim.execution, f"was claimed under fence {claim.fence}, which another had"
        seen.add(claim.fence)
        while claims[behind].at < claim.at - history.bounds.slack:
            largest = max(largest, claims[behind].fence or -1)
            behind += 1
        if claim.fence < largest:
            yield claim.execution, f"was claimed under fence {claim.fence}, long after {largest}"


def _end_seen(history: History) -> _Found:
    if not history.effects:
        return
    for execution, row in history.rows.items():
        if row["status"] != "completed":
            continue
        if not _has(history, execution, "ended"):
            yield execution, "is completed and its flow never came to its end"
        if (row["metadata"] or {}).get("unkillable"):
            yield execution, "is completed and a process of it could not be ended"
        ends = [step for step in history.chains.get(execution, ()) if step.to_status == "completed"]
        late = _latest_effect(history, execution)
        if ends and late and late.at > (end := ends[-1]).at + _CLOCKS_AGREE:
            yield execution, f"was completed {_seconds(late.at - end.at)} before its flow's `{late.what}`"


def _gone(history: History) -> _Found:
    """Two looks at one process are one violation; effects count as life."""
    signs = [(sign.execution, sign.at, "a process") for sign in history.sightings]
    signs += [(effect.execution, effect.at, f"`{effect.what}`") for effect in history.effects]
    latest: dict[UUID, tuple[datetime, str]] = {}
    for execution, at, what in signs:
        end = history.ends.get(execution)
        if end and at > end.at + timedelta(seconds=2) and at > latest.get(execution, (end.at, ""))[0]:
            latest[execution] = at, what
    for execution, (at, what) in latest.items():
        end = history.ends[execution]
        yield execution, f"{what} {_seconds(at - end.at)} after it ended as {end.to_status} by {end.actor}"


def _quiet(history: History) -> _Found:
    for execution, end in history.ends.items():
        if end.to_status not in {"cancelled", "timeout"}:
            continue
        late = _latest_effect(history, execution)
        if late and late.at > end.at + timedelta(seconds=1):
            yield execution, f"`{late.what}` {_seconds(late.at - end.at)} after {end.to_status} by {end.actor}"


def _numbers(history: History) -> _Found:
    for execution, row in history.rows.items():
        if row["status"] not in TERMINAL:
            continue
        if row["completed_at"] is None or (row["started_at"] and row["completed_at"] < row["started_at"]):
            yield execution, f"started {row['started_at']}, completed {row['completed_at']}"
        for amount in ("duration_ms", "cost_usd", "token_count"):
            value = row[amount]
            if value is not None and not (math.isfinite(value) and value >= 0):
                yield execution, f"{amount} is {value}"
        has_run = any(step.to_status == "running" for step in history.chains.get(execution, ()))
        if (row["duration_ms"] is not None) != has_run:
            yield execution, f"duration_ms is {row['duration_ms']} though it {'ran' if has_run else 'never ran'}"


def _identity(history: History) -> _Found:
    for known in history.acknowledgements:
        row = history.rows.get(known.execution)
        for column, sent in known.identity.items() if row else ():
            if row is not None and row[column] != sent:
                yield known.execution, f"{column} was {sent!r} and is {row[column]!r}"


def _counted(history: History) -> _Found:
    rows = Counter(row["flow_id"] for row in history.rows.values())
    for flow, count in history.execution_counts.items():
        if count != rows[flow]:
            yield None, f"flow {flow} counts {count} executions and has {rows[flow]}"


def _actor(history: History) -> _Found:
    for step in history.transitions:
        owner = str(history.rows.get(step.execution, {}).get("executed_by"))
        actor = _BY_OWNER if step.actor == owner else step.actor
        if actor not in _ACTORS.get(step.edge, {actor}):
            yield step.execution, f"{_arrow(step)} was decided by {step.actor}"


def _clock(history: History) -> _Found:
    for execution, chain in history.chains.items():
        for before, after in pairwise(chain):
            if after.at < before.at:
                yield execution, f"{_arrow(after)} lies {_seconds(before.at - after.at)} before {_arrow(before)}"


_JUDGES: tuple[tuple[Invariant, Callable[[History], _Found]], ...] = (
    (Invariant.KEPT, _kept),
    (Invariant.BIRTH, _birth),
    (Invariant.CHAIN, _chain),
    (Invariant.ONE_RUN, _one_run),
    (Invariant.ONE_END, _one_end),
    (Invariant.FROZEN, _frozen),
    (Invariant.HELD, _held),
    (Invariant.LEASE_RUNS, _lease_runs),
    (Invariant.FINISH_ONCE, _finish_once),
    (Invariant.FENCE, _fence),
    (Invariant.END_SEEN, _end_seen),
    (Invariant.GONE, _gone),
    (Invariant.QUIET, _quiet),
    (Invariant.NUMBERS, _numbers),
    (Invariant.IDENTITY, _identity),
    (Invariant.COUNTED, _counted),
    (Invariant.ACTOR, _actor),
    (Invariant.CLOCK, _clock),
)


def _has(history: History, execution: UUID, what: str) -> bool:
    return any(effect.what == what for effect in history.effects_of.get(execution, ()))


def _latest_effect(history: History, execution: UUID) -> Effect | None:
    return max(history.effects_of.get(execution, ()), key=lambda effect: effect.at, default=None)


def _arrow(step: Transition) -> str:
    return f"{step.from_status or 'birth'} -> {step.to_status}"


def _seconds(span: timedelta) -> str:
    return f"{span.total_seconds():.2f} s"
