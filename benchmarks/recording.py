"""What it costs to record: a flow of 20 steps with an LLM call each, and events on their way into Postgres."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch
from uuid import UUID, uuid4

import psycopg

from benchmarks.figures import Figure, median, spread
from benchmarks.stage import PROJECT, Stage
from flowledger.database.session import Claims, Database
from flowledger.domain.execution import NewExecution
from flowledger.domain.flow import Flow
from flowledger.domain.project import Project
from flowledger.domain.timeline import Event, EventKind, LogLine
from flowledger.domain.usage import PricedCall
from flowledger.ledger import executions, flows
from flowledger.ledger.timeline import Held
from flowledger.prices import Prices
from flowledger.runner.account import Account
from flowledger.runner.limits import Limits
from flowledger.runner.process import Order, Template, run
from flowledger.worker.records import Records

_ROUNDS, _WARM_ROUNDS = 25, 2
_STEPS = 20
_PAUSE_SECONDS = 0.1
_MOST_RECORDING = 1.15
_EVENTS, _RUNS, _EVENT_ROUNDS = 40_000, 4, 5
_LEAST_EVENTS = 20_000


# -- What a flow pays -------------------------------------------------------------------------------------------------


def recording(stage: Stage) -> list[Figure]:
    """kickoff() of the same flow in turns: recorded by a worker's reader or by a whole worker, and in bare forks."""
    with patch.dict(os.environ, stage.environment):
        took = asyncio.run(_in_turns(stage))
    return [
        _compared(f"kickoff() of {_STEPS} steps and LLM calls, recorded", took, "recorded", most=_MOST_RECORDING),
        _compared("same, processor time of the flow's process", took, "recorded", of="cpu_ns"),
        _compared("same, by a worker that writes it into Postgres", took, "worker"),
        _compared("same, by OpenInference's instrumentation: steps, no calls", took, "traced"),
        _compared("same, by CrewAI's @persist", took, "persisted"),
    ]


async def _in_turns(stage: Stage) -> dict[str, list[dict[str, int]]]:
    """Each of them once a round, and in each round another one first: what one leaves behind slows the next."""
    project = Project(PROJECT, Path(sys.executable), (PROJECT / "src",), ("bench_flows.main",))
    prices = Prices()
    await prices.warm()
    template = await Template.start(project, secrets=[], storage=stage.directory / "recording", import_seconds=60)
    ways: dict[str, Callable[[], Awaitable[dict[str, int]]]] = {
        "recorded": lambda: _recorded(template, prices),
        "unrecorded": lambda: _bare(stage, "TwentySteps"),
        "worker": lambda: _worker(stage),
        "traced": lambda: _bare(stage, "TwentyStepsTraced"),
        "persisted": lambda: _bare(stage, "TwentyStepsPersisted"),
    }
    took: dict[str, list[dict[str, int]]] = {name: [] for name in ways}
    try:
        for turn in range(_ROUNDS + _WARM_ROUNDS):
            for name in _from(list(ways), turn):
                await asyncio.sleep(_PAUSE_SECONDS)
                measured = await ways[name]()
                if turn >= _WARM_ROUNDS:
                    took[name].append(measured)
    finally:
        await template.close()
    return took


def _from(names: list[str], turn: int) -> list[str]:
    first = turn % len(names)
    return names[first:] + names[:first]


async def _recorded(template: Template, prices: Prices) -> dict[str, int]:
    recorder, limits = _Counting(), Limits()
    order = Order(
        execution_id=uuid4(),
        flow_key="twenty_steps",
        entry_point="bench_flows.main:TwentySteps",
        inputs={},
        timeout_seconds=60,
        max_output_bytes=1_048_576,
        max_log_bytes=1_048_576,
        max_events=10_000,
        grace_seconds=1,
        lease_seconds=60,
    )
    outcome = await run(template, order, limits, recorder, Account(prices, recorder.call, limits))
    if (recorder.calls, recorder.events) != (_STEPS, 4 * _STEPS + 2) or not outcome.cost_usd:
        raise RuntimeError(f"not all was recorded: {recorder.calls} calls, {recorder.events} events, {outcome}")
    return dict(outcome.output_state["result"])


async def _worker(stage: Stage) -> dict[str, int]:
    return dict(stage.user.ended(stage.user.start("twenty_steps")[0])["result"])


async def _bare(stage: Stage, flow: str) -> dict[str, int]:
    stage.bare.begin(flow)
    return dict(stage.bare.said()["result"])


class _Counting:
    """A recorder that is as quick as can be."""

    def __init__(self) -> None:
        self.events = self.calls = 0

    def event(self, event: Event) -> None:  # noqa: ARG002 - the signature is the recorder's
        self.events += 1

    def log(self, line: LogLine) -> None:
        """Nothing is printed."""

    def call(self, call: PricedCall) -> None:  # noqa: ARG002
        self.calls += 1


def _compared(
    name: str, took: dict[str, list[dict[str, int]]], way: str, *, of: str = "ns", most: float | None = None
) -> Figure:
    ours, plain = ([measured[of] / 1e6 for measured in took[one]] for one in (way, "unrecorded"))
    ratio = median(ours) / median(plain)
    return Figure(
        name,
        f"{median(ours):.1f} ms",
        spread(ours, "ms", 1),
        f"{median(plain):.1f} ms, bare kickoff()",
        f"{ratio:.2f}",
        "" if most is None else f"<= {most}",
        None if most is None else ratio <= most,
    )


# -- What a worker writes ---------------------------------------------------------------------------------------------


def events(stage: Stage) -> list[Figure]:
    """Events with the fields that LLM calls have, of four runs, from a worker's memory into Postgres."""
    rates = asyncio.run(_write(stage))
    return [
        Figure(
            f"events written, {_RUNS} runs of one worker, in batches",
            f"{median(rates):,.0f} /s",
            spread(rates, "/s"),
            target=f">= {_LEAST_EVENTS:,}",
            reached=median(rates) >= _LEAST_EVENTS,
        )
    ]


async def _write(stage: Stage) -> list[float]:
    worker, api = stage.quiet.url("flowledger_worker"), stage.quiet.url("flowledger_api")
    rates: list[float] = []
    async with Database(worker) as database, Database(api, most_connections=1) as users:
        held = await _running(database, users)
        for turn in range(_EVENT_ROUNDS + 1):
            records = Records(database)
            for run_ in held:
                for event in _told(turn * _EVENTS // _RUNS, _EVENTS // _RUNS):
                    records.add_event(run_, event)
            begun = time.perf_counter()
            await records.flush()
            if turn:
                rates.append(_EVENTS / (time.perf_counter() - begun))
    with psycopg.connect(stage.quiet.url("flowledger")) as owner:
        row = owner.execute(
            "select count(*) from flowledger.timeline where execution_id = any (%s)", ([run_[0] for run_ in held],)
        ).fetchone()
    if row != ((_EVENT_ROUNDS + 1) * _EVENTS,):
        raise RuntimeError(f"not all was written: {row}")
    return rates


async def _running(database: Database, users: Database) -> list[Held]:
    async with database.service() as connection:
        (known,) = await flows.remember(connection, [Flow("tells", "Tells", "", "m:Tells", None, {}, "", "1")])
    for _ in range(_RUNS):
        async with users.session(Claims(UUID(int=7))) as session:
            await executions.record(session, NewExecution("tells"))
    async with database.service() as connection:
        claims = await executions.claim(connection, uuid4(), {known.id: 60.0}, _RUNS, timedelta(minutes=10))
    return [(claim.execution_id, claim.fence) for claim in claims]


def _told(after: int, number: int) -> list[Event]:
    now, text = datetime.now(UTC), "What is the use of a ledger? " * 6
    asked = {"stream": False, "prompt_characters": 174, "prompt": text, "provider": "openai", "method": "step"}
    usage = {
        "input_tokens": 15,
        "cached_input_tokens": 3,
        "cache_write_tokens": 0,
        "output_tokens": 42,
        "reasoning_tokens": 10,
    }
    answered = {"response_characters": 174, "response": text, "provider": "openai", "usage": usage, "duration_ms": 9.5}
    told = []
    for at in range(after + 1, after + number, 2):
        call = {"call": at, "call_id": str(uuid4())}
        told.append(Event(at, now, EventKind.LLM_STARTED, "gpt-4o-mini", {**call, **asked}, 2))
        told.append(Event(at + 1, now, EventKind.LLM_COMPLETED, "gpt-4o-mini", {**call, **answered}, 2, at))
    return told
