"""One run of chaos, from an empty ledger to a verdict."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import quantiles
from typing import Any

import psycopg

from tests.chaos import record
from tests.chaos.client import Client
from tests.chaos.faults import Faults, deck
from tests.chaos.history import TERMINAL, History, Invariant, Violation, check, lost_although_ended
from tests.chaos.stage import Stage
from tests.chaos.watch import Watch

STUCK_AFTER_SECONDS = 10.0
MOST_LOST_ALTHOUGH_ENDED = 0.02
LEAST_TALKS = 20
_PATIENCE_SECONDS = 90.0
_LAWLESS = Path(__file__).with_name("lawless.sql")

_STARTED_TWICE = {Invariant.ONE_RUN}
_FINISHED_TWICE = {Invariant.ONE_END, Invariant.FINISH_ONCE, Invariant.FROZEN}


@dataclass(frozen=True)
class Verdict:
    """What one run showed. `stuck` are executions without an end 10 s after the last fault, by the status they had."""

    seed: int
    seconds: float
    history: History
    violations: list[Violation]
    stuck: Counter[str]
    rest_seconds: float | None
    """From the last fault until everything had ended; None: it never did."""
    faults: Faults
    client: Client
    mishaps: list[str] = field(default_factory=list)
    """Workers that ended by themselves, tracebacks in their logs."""
    warnings: Counter[str] = field(default_factory=Counter)

    @property
    def holds(self) -> bool:
        return not (self.violations or self.stuck or self.mishaps) and self.lost_share <= MOST_LOST_ALTHOUGH_ENDED

    @property
    def lost_share(self) -> float:
        return len(lost_although_ended(self.history)) / max(1, len(self.history.rows))

    def count(self, invariants: set[Invariant]) -> int:
        return sum(violation.invariant in invariants for violation in self.violations)

    def figures(self) -> list[tuple[str, str]]:
        rows = self.history.rows.values()
        ended = Counter(row["status"] + (f" {row['error_type']}" if row["status"] == "failed" else "") for row in rows)
        known = {Invariant.KEPT} | _STARTED_TWICE | _FINISHED_TWICE
        lost_ended = len(lost_although_ended(self.history))
        return [
            ("seed", str(self.seed)),
            ("inserts", f"{len(self.client.acknowledged)} acknowledged, {self._pace():.1f}/s"),
            ("of them", ", ".join(f"{number} {flow}" for flow, number in self.client.by_flow.most_common())),
            ("refused to the client", _counted(self.client.failures)),
            ("faults", f"{self.faults.dealt.total()}: {_counted(self.faults.dealt)}"),
            ("faults without a victim", _counted(self.faults.missed)),
            ("ended as", _counted(ended)),
            ("insert to claim", self._waits()),
            ("workers' warnings", _counted(self.warnings)),
            ("lost", str(self.count({Invariant.KEPT}))),
            ("stuck 10 s after the last fault", _counted(self.stuck)),
            ("all ended after the last fault", "never" if self.rest_seconds is None else f"{self.rest_seconds:.1f} s"),
            ("started twice", str(self.count(_STARTED_TWICE))),
            ("finished twice", str(self.count(_FINISHED_TWICE))),
            ("illegal", str(self.count(set(Invariant) - known))),
            ("WorkerLost although the flow ended", f"{lost_ended} ({self.lost_share:.1%})"),
            ("workers' mishaps", str(len(self.mishaps))),
        ]

    def _pace(self) -> float:
        return len(self.client.acknowledged) / max(self.client.seconds, 0.001)

    def _waits(self) -> str:
        waits = sorted(
            (after.at - before.at).total_seconds()
            for chain in self.history.chains.values()
            for before, after in pairwise(chain)
            if after.to_status == "running"
        )
        if len(waits) < 2:
            return "none"
        cuts = quantiles(waits, n=100)
        return f"median {cuts[49]:.3f} s, p99 {cuts[98]:.2f} s, longest {waits[-1]:.2f} s"


def run(seed: int, seconds: float, *, per_second: float = 20.0, lawless: bool = False, keep: bool = False) -> Verdict:
    """Faults for `seconds`, then rest, then the verdict. `lawless`: fence and guard off, stubborn workers."""
    rng = random.Random(seed)
    with Stage(random.Random(rng.random()), stubborn=lawless, keep=keep) as stage:
        if lawless:
            stage.product.sql(_LAWLESS.read_text())
        stage.open()
        client = Client(stage.product, random.Random(rng.random()), per_second)
        watch = Watch(stage)
        with _beside(watch.watch, stop=watch.stop):
            with _beside(client.insert, client.cancel, stop=client.stop):
                faults = _faults(stage, random.Random(rng.random()), seconds)
            stuck, rest_seconds = _rest(stage)
        stage.drain()
        gathered = record.history(stage, client, watch)
        facts = [fact for worker in stage.workers for fact in worker.facts()]
        return Verdict(
            seed=seed,
            seconds=seconds,
            history=gathered,
            violations=check(gathered),
            stuck=stuck,
            rest_seconds=rest_seconds,
            faults=faults,
            client=client,
            mishaps=[text for worker in stage.workers for text in worker.ended_by_itself] + list(_mishaps(facts)),
            warnings=Counter(fact["event"] for fact in facts if fact.get("level") == "warning"),
        )


def _faults(stage: Stage, rng: random.Random, seconds: float) -> Faults:
    faults = Faults(stage, rng)
    until = time.monotonic() + seconds
    for kind in deck(rng):
        _tended(stage, rng.uniform(1.5, 2.0))
        if time.monotonic() >= until:
            break
        faults.deal(kind)
    for worker in stage.workers:
        if worker.resume_at is not None:
            worker.resume()
    return faults


def _tended(stage: Stage, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stage.tend()
        time.sleep(0.02)


def _rest(stage: Stage) -> tuple[Counter[str], float | None]:
    """What has no end 10 s after the last fault, and how long it took until all had one."""
    begun = time.monotonic()
    stuck: Counter[str] | None = None
    while (elapsed := time.monotonic() - begun) < _PATIENCE_SECONDS:
        left = _without_end(stage)
        if stuck is None and (not left or elapsed > STUCK_AFTER_SECONDS):
            stuck = left
        if not left:
            return stuck or Counter(), elapsed
        _tended(stage, 0.1)
    return stuck or Counter(), None


def _without_end(stage: Stage) -> Counter[str]:
    try:
        rows: list[dict[str, Any]] = stage.product.sql(
            "select status, count(*) as n from crewai_flow_executions where status <> all (%s) group by status",
            sorted(TERMINAL),
        )
    except psycopg.OperationalError:
        return Counter({"out of sight: the database is away": 1})
    return Counter({row["status"]: row["n"] for row in rows})


def _mishaps(facts: list[dict[str, Any]]) -> Iterator[str]:
    for fact in facts:
        if fact.get("level") == "error" or fact.get("line", "").startswith("Traceback"):
            told = fact.get("exception") or fact.get("reason") or ""
            yield f"{fact['log'].name}: {fact['event']} {told}"


@contextmanager
def _beside(*work: Any, stop: Any) -> Iterator[None]:
    """Runs `work` in threads while the block lasts; what goes wrong there is raised here."""
    with ThreadPoolExecutor(len(work)) as threads:
        going = [threads.submit(one) for one in work]
        try:
            yield
        finally:
            stop()
        for one in going:
            one.result(60)


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{number} {what}" for what, number in counter.most_common()) or "0"
