"""The ledger's queue under load: whole lifecycles, claims behind a long history, one hot flow with many writers.

The other side is always pgbench with the same statements in the same transactions, prepared on both sides.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from benchmarks.figures import Figure, median, spread
from benchmarks.stage import Stage, pg_binary, pg_environment
from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.session import Claims, Database
from flowledger.domain.execution import NewExecution, Outcome
from flowledger.domain.status import Status
from flowledger.ledger import executions
from flowledger.sql import query

_CLIENTS = 4
_BATCH = 20
_BATCHES_EACH = 15
_ROUNDS = 3
_LEAST_OF_PGBENCH = 0.7
_HISTORY = 300_000
_LEAST_OF_EMPTY = 0.8
_HOT_WRITERS = 16
_HOT_SECONDS = 3
_LEASE = timedelta(seconds=30)
_USER = UUID(int=7)
_FLOW = UUID(int=11)
_WORKER = UUID(int=13)


class Bench:
    """One server with one flow and one enlisted worker, and its owner's connection."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self.postgres = postgres
        self.owner = psycopg.connect(postgres.url("flowledger"), autocommit=True)
        self.empty()

    def empty(self) -> None:
        self.owner.execute(
            "truncate public.crewai_flows, flowledger.workers, flowledger.uncounted_executions restart identity cascade"
        )
        self.owner.execute(
            "insert into crewai_flows (id, flow_key, flow_name, flow_definition, status) "
            "values (%s, 'no_op', 'NoOp', '{}', 'active')",
            (_FLOW,),
        )
        self.owner.execute("select flowledger.enlist_worker(%s, 'here', 1, '0', 20, %s)", (_WORKER, [_FLOW]))
        self.owner.execute("update flowledger.settings set value = '1000000' where name = 'queue_limit'")
        self.owner.execute("vacuum analyze")

    def born(self, count: int) -> None:
        """As many pending executions, without a user's round trips."""
        self.owner.execute(
            "insert into crewai_flow_executions (flow_id, execution_key, executed_by) "
            "select %s, flowledger.execution_key('no_op'), %s from generate_series(1, %s)",
            (_FLOW, _USER, count),
        )

    def counted(self) -> tuple[int, int]:
        """The flow's counter after the fold, and its rows."""
        while self._one("select flowledger.fold_execution_counts()"):
            pass
        return self._one("select execution_count from crewai_flows"), self._one(
            "select count(*) from crewai_flow_executions"
        )

    def _one(self, text: str) -> int:
        row = self.owner.execute(text.encode()).fetchone()
        assert row is not None
        return int(row[0])


# -- Whole lifecycles -------------------------------------------------------------------------------------------------


def lifecycles(stage: Stage) -> list[Figure]:
    """Inserts as a user, claims in batches, finishes one by one: by the ledger's functions and by pgbench, in turns."""
    bench, scripts = Bench(stage.quiet), _Scripts(stage.directory)
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    for _ in range(_ROUNDS):
        bench.empty()
        ours.append(asyncio.run(_by_the_ledger(bench)))
        bench.empty()
        theirs.append(
            (
                _pgbench(bench, "flowledger_api", scripts.insert, _CLIENTS, "-t", _BATCH * _BATCHES_EACH),
                _pgbench(bench, "flowledger_worker", scripts.claim_and_finish, _CLIENTS, "-t", _BATCHES_EACH),
            )
        )
    count = _CLIENTS * _BATCH * _BATCHES_EACH
    return [
        _rates("no-op lifecycles/s through the ledger", count, ours, theirs, lambda pair: sum(pair), _LEAST_OF_PGBENCH),
        _rates("  of these, inserts/s as a user", count, ours, theirs, lambda pair: pair[0], None),
        _rates("  of these, claims in 20s and finishes/s", count, ours, theirs, lambda pair: pair[1], None),
    ]


def _rates(
    name: str,
    count: int,
    ours: list[tuple[float, float]],
    theirs: list[tuple[float, float]],
    seconds: Callable[[tuple[float, float]], float],
    least: float | None,
) -> Figure:
    mine, other = ([count / seconds(pair) for pair in pairs] for pairs in (ours, theirs))
    ratio = median(mine) / median(other)
    return Figure(
        name,
        f"{median(mine):,.0f}/s",
        spread(mine, "/s"),
        f"{median(other):,.0f}/s, pgbench with {_CLIENTS} clients",
        f"{ratio:.2f}",
        f">= {least}" if least else "",
        ratio >= least if least else None,
    )


async def _by_the_ledger(bench: Bench) -> tuple[float, float]:
    """Seconds for inserting and for claiming and finishing."""
    claims = Claims(_USER)
    new = NewExecution("no_op")
    outcome = Outcome(Status.COMPLETED, {"state": {}, "result": None}, began_after_ms=1)
    timeouts = {_FLOW: 60.0}
    url = bench.postgres.url
    async with (
        Database(url("flowledger_api"), most_connections=_CLIENTS) as users,
        Database(url("flowledger_worker"), most_connections=_CLIENTS) as worker,
    ):

        async def insert() -> None:
            for _ in range(_BATCH * _BATCHES_EACH):
                async with users.session(claims) as connection:
                    await executions.record(connection, new)

        async def claim_and_finish() -> None:
            for _ in range(_BATCHES_EACH):
                async with worker.service() as connection:
                    claimed = await executions.claim(connection, _WORKER, timeouts, _BATCH, _LEASE)
                assert len(claimed) == _BATCH
                for claim in claimed:
                    async with worker.service() as connection:
                        await executions.finish(connection, claim.execution_id, claim.fence, outcome)

        return await _took(insert), await _took(claim_and_finish)


async def _took(client: Callable[[], Any]) -> float:
    begun = time.monotonic()
    await asyncio.gather(*(client() for _ in range(_CLIENTS)))
    return time.monotonic() - begun


class _Scripts:
    """The ledger's own queries as pgbench scripts."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.insert = self._write("insert", [*_BECOME, _with("record", inputs="{}", flow_key="no_op"), "commit;"])
        taken = _with("claim", worker=_WORKER, flows=[_FLOW], timeouts=[60.0], slots=_BATCH, lease=_LEASE).rstrip(";")
        columns = ", ".join(
            f"(array_agg(execution_id))[{n}] as e{n}, (array_agg(fence))[{n}] as f{n}" for n in range(1, _BATCH + 1)
        )
        finishes = [
            _with(
                "finish",
                execution=sql.SQL(f":e{n}"),
                fence=sql.SQL(f":f{n}"),
                status="completed",
                output_state=json.dumps({"state": {}, "result": None}),
                began_after_ms=1,
                metadata="{}",
            )
            for n in range(1, _BATCH + 1)
        ]
        self.claim_and_finish = self._write(
            "claim_and_finish", [f"select {columns} from ({taken}) as taken \\gset", *finishes]
        )

    def _write(self, name: str, lines: list[str]) -> Path:
        path = self._directory / f"{name}.sql"
        path.write_text("\n".join(lines) + "\n")
        return path


_IDENTITY = f"""
  set_config('request.jwt.claim.sub', '{_USER}', true),
  set_config('request.jwt.claims', '{{"sub": "{_USER}", "role": "authenticated"}}', true),
  set_config('lock_timeout', '2000', true), set_config('idle_in_transaction_session_timeout', '30000', true)
"""
_BECOME = ("begin;", f"select set_config('role', 'authenticated', true), {_IDENTITY};".replace("\n", " "))


def _with(name: str, **values: Any) -> str:
    """One of the ledger's queries with its values written in; those not given are NULL. On one line for pgbench."""

    def literal(found: re.Match[str]) -> str:
        value = values.get(found[1])
        return value.as_string() if isinstance(value, sql.SQL) else sql.Literal(value).as_string()

    statement = "\n".join(line for line in query("executions", name).splitlines() if not line.startswith("--"))
    return " ".join(re.sub(r"%\((\w+)\)s", literal, statement).split()) + ";"


def _pgbench(bench: Bench, role: str, script: Path, clients: int, limit: str, amount: int) -> float:
    """Runs the script; seconds without connecting."""
    command = [
        str(pg_binary("pgbench")),
        "-n",
        "-M",
        "prepared",
        "-f",
        str(script),
        "-c",
        str(clients),
        limit,
        str(amount),
    ]
    ended = subprocess.run(
        command, env=pg_environment(bench.postgres.url(role)), capture_output=True, text=True, check=False
    )
    rate = re.search(r"tps = ([\d.]+)", ended.stdout)
    done = re.search(r"actually processed: (\d+)", ended.stdout)
    if ended.returncode or not rate or not done:
        raise RuntimeError(ended.stderr + ended.stdout)
    return int(done[1]) / float(rate[1])


# -- Claims behind a long history -------------------------------------------------------------------------------------


def claim_behind_history(stage: Stage) -> list[Figure]:
    """Two servers, one with an empty ledger and one with a long history, asked in turns."""
    short, long = Bench(stage.quiet), Bench(stage.server("history"))
    _fill(long)
    rates: dict[tuple[int, Bench], list[float]] = {
        (slots, bench): [] for slots in (1, _BATCH) for bench in (short, long)
    }
    short.empty()
    for _ in range(8):
        for (slots, bench), found in rates.items():
            found.append(_claims_per_second(bench, slots))
    return [
        _compared(
            f"claims/s in batches of {slots} behind {_HISTORY:,} finished", rates[slots, long], rates[slots, short]
        )
        for slots in (_BATCH, 1)
    ]


def _compared(name: str, behind: list[float], empty: list[float]) -> Figure:
    ratio = median(behind) / median(empty)
    return Figure(
        name,
        f"{median(behind):,.0f} executions/s",
        spread(behind, "/s"),
        f"{median(empty):,.0f} executions/s, empty ledger",
        f"{ratio:.2f}",
        f">= {_LEAST_OF_EMPTY}",
        ratio >= _LEAST_OF_EMPTY,
    )


def _fill(bench: Bench) -> None:
    """History as it would be found: rows, their transitions, and statistics. Triggers would take minutes."""
    bench.owner.execute("alter table crewai_flow_executions disable trigger user")
    bench.owner.execute(
        "insert into crewai_flow_executions (flow_id, execution_key, status, output_state, started_at, completed_at, "
        "duration_ms, executed_by, metadata) "
        "select %s, 'no_op-' || n, 'completed', '{\"state\": {}, \"result\": null}', at, at + interval '1 s', "
        "1000, %s, '{}' "
        "from generate_series(1, %s) as n cross join lateral (select now() - n * interval '1 s') as began (at)",
        (_FLOW, _USER, _HISTORY),
    )
    bench.owner.execute("alter table crewai_flow_executions enable trigger user")
    bench.owner.execute(
        "insert into flowledger.transitions (execution_id, from_status, to_status, actor) "
        "select id, 'running', 'completed', 'worker' from crewai_flow_executions"
    )
    bench.owner.execute("vacuum analyze")


def _claims_per_second(bench: Bench, slots: int) -> float:
    times = 40 if slots == 1 else 10
    bench.born(times * slots)
    with psycopg.connect(bench.postgres.url("flowledger_worker"), autocommit=True) as worker:
        values = {
            "worker": _WORKER,
            "flows": [_FLOW],
            "timeouts": [60.0],
            "slots": slots,
            "lease": _LEASE,
            "among": None,
        }
        begun = time.monotonic()
        for _ in range(times):
            assert len(worker.execute(query("executions", "claim"), values).fetchall()) == slots
        took = time.monotonic() - begun
    # They end, as they do in life; a million running ones would be no ledger.
    bench.owner.execute("update crewai_flow_executions set status = 'completed' where status = 'running'")
    return times * slots / took


# -- One hot flow -----------------------------------------------------------------------------------------------------


def hot_flow(stage: Stage) -> list[Figure]:
    """One writer and many, in turns, all on one flow; then the counter is compared with the rows."""
    bench, scripts = Bench(stage.quiet), _Scripts(stage.directory)
    rates: dict[int, list[float]] = {1: [], _HOT_WRITERS: []}
    for _ in range(_ROUNDS):
        for writers, found in rates.items():
            bench.empty()
            # A short queue, as it is while workers keep up: its length is another question.
            seconds = _pgbench(bench, "flowledger_api", scripts.insert, writers, "-T", _HOT_SECONDS)
            counter, rows = bench.counted()
            found.append(rows / seconds)
            if counter != rows:
                return [Figure("one hot flow: counter after the fold", f"{counter:,} of {rows:,}", reached=False)]
    ratio = median(rates[_HOT_WRITERS]) / median(rates[1])
    return [
        Figure(
            f"one hot flow, inserts/s with {_HOT_WRITERS} writers, counter exact",
            f"{median(rates[_HOT_WRITERS]):,.0f}/s",
            spread(rates[_HOT_WRITERS], "/s"),
            f"{median(rates[1]):,.0f}/s, 1 writer",
            f"{ratio:.2f}",
            ">= 1.0",
            ratio >= 1.0,
        )
    ]
