"""How soon the API answers behind a million executions: lists by every filter, searches, single rows, starts.

A real server in a process of its own, asked over HTTP by a client in this one; both share the machine with Postgres.
Times are the client's. Loads are open: a request is due at its time whether those before it were answered or not, and
waits count.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import aiohttp
import jwt
import psycopg

from benchmarks.figures import Figure, median, p95, percentile, spread
from benchmarks.stage import Stage, wait_for

_EXECUTIONS = 1_000_000
_ROUNDS = 40
_MOST_RECENT_MS = 25
_MOST_FILTERED_MS = 100
_STARTS_PER_SECOND = 100
_READS_PER_SECOND = 300
_LOAD_SECONDS = 20
_CONNECTIONS = 100
_SECRET = "the benchmark's own secret, known to nobody else"
_AT = "/api/v1/executions"

_HEAVY = UUID(int=500)
"""A tenth of all executions are theirs; the others are spread evenly over a thousand users."""

_FILL = (
    """
    insert into crewai_flows (id, flow_key, flow_name, flow_definition, status)
    select lpad(n::text, 32, '0')::uuid, 'flow_' || n, 'Flow',
           '{"input_schema": {"type": "object", "properties": {"topic": {"type": "string"}}}}', 'active'
    from generate_series(0, 19) as n
    """,
    "alter table crewai_flow_executions disable trigger user",
    """
    insert into crewai_flow_executions (
      id, flow_id, execution_key, executed_by, execution_mode, board_meeting_id, status, started_at, completed_at,
      duration_ms, token_count, cost_usd, error_type, error_message, input_state, output_state, metadata
    )
    select gen_random_uuid(), lpad((n % 20)::text, 32, '0')::uuid, 'KEY-' || n,
           -- Hexadecimal, as UUID(int=...) counts.
           lpad(to_hex(case when n % 10 = 7 then 500 else n::bigint * 7919 % 1000 end), 32, '0')::uuid,
           case when n % 10000 = 0 then 'triggered' when n % 10 = 1 then 'scheduled' else 'manual' end,
           case when n % 10 = 0 then lpad(to_hex(n % 300), 32, '0')::uuid end,
           status, at, at + interval '9 s', 9000, 1100, 0.0071,
           case when status <> 'completed' then 'ValueError' end,
           case when status <> 'completed' then 'the answer of provider ' || n % 500 || ' cannot be read' end,
           jsonb_build_object('topic', 'topic ' || n % 50, 'text', repeat(md5(n::text), 8), 'n', n),
           jsonb_build_object('result', repeat(md5((n + 1)::text), 8)), '{"flow_version": 1}'
    from (
      select n, now() - n * interval '365 days' / 1000000 as at,
             -- Of flow_4 nothing ever fails.
             case when n % 5000 = 11 then 'cancelled' when n % 3000 = 13 then 'timeout' when n % 20 = 3 then 'failed'
               else 'completed' end as status
      from generate_series(1, 1000000) as n
    ) as born
    """,
    "alter table crewai_flow_executions enable trigger user",
    """
    insert into flowledger.ended_executions (
      execution_id, listed_at, executed_by, flow_id, board_meeting_id, status, execution_mode, error
    )
    select id, started_at, executed_by, flow_id, board_meeting_id, status, execution_mode,
           nullif(concat_ws(': ', error_type, error_message), '')
    from crewai_flow_executions
    """,
    # A queue that is well filled.
    """
    insert into crewai_flow_executions (flow_id, execution_key, executed_by)
    select lpad((n % 20)::text, 32, '0')::uuid, 'WAITS-' || n, lpad(to_hex(n % 1000), 32, '0')::uuid
    from generate_series(1, 1000) as n
    """,
    "update flowledger.settings set value = '1000000' where name = 'queue_limit'",
    "vacuum analyze",
)


def answers(stage: Stage) -> list[Figure]:
    """Each question in turns with the others; then starts and reads at a steady rate."""
    postgres = stage.server("api")
    with psycopg.connect(postgres.url("flowledger"), autocommit=True) as owner:
        for statement in _FILL:
            owner.execute(statement.encode())
    with server(postgres.url("flowledger_api")) as served:
        return asyncio.run(_measure(served.url))


async def _measure(url: str) -> list[Figure]:
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=_CONNECTIONS)) as client:
        deep = await _deep(client)
        figures = await _questions(client, deep)
        figures.append(await _starts(client))
        figures.append(await _reads(client))
    return figures


# -- Single questions -------------------------------------------------------------------------------------------------

Ask = Callable[[], tuple[str, dict[str, Any], dict[str, str]]]


def _recent() -> dict[str, Ask]:
    return {
        "a user's recent 50": lambda: (_AT, {}, token(UUID(int=random.randrange(1000)))),
        "the heavy user's recent 50": lambda: (_AT, {}, token(_HEAVY)),
        "everybody's recent 50, to an operator": lambda: (_AT, {}, _operator()),
    }


def _filtered(deep: dict[str, str]) -> dict[str, Ask]:
    filters: dict[str, dict[str, Any]] = {
        "status=failed": {"status": "failed"},
        "status=cancelled, 1 of 5,000": {"status": "cancelled"},
        "status=failed,timeout": {"status": "failed,timeout"},
        "flow": {"flow": "flow_3"},
        "mode=triggered, 1 of 10,000": {"mode": "triggered"},
        "since=24h": {"since": "24h"},
        "since and until, half a year ago": {"since": "180d", "until": "179d"},
        "meeting": {"meeting": str(UUID(int=30))},
        "flow and status that never meet": {"flow": "flow_4", "status": "failed"},
        "search that finds": {"search": "provider 3"},
        "search that finds nothing": {"search": "no such words"},
        "path and value that find": {"path": "input_state.topic", "value": "topic 7"},
        "path and value that find nothing": {"path": "input_state.topic", "value": "none"},
    }
    asks: dict[str, Ask] = {}
    for name, given in filters.items():
        asks[f"{name}, a user"] = lambda given=given: (_AT, given, token(UUID(int=random.randrange(1000))))  # type: ignore[misc]
        asks[f"{name}, the heavy user"] = lambda given=given: (_AT, given, token(_HEAVY))  # type: ignore[misc]
        asks[f"{name}, an operator"] = lambda given=given: (_AT, given, _operator())  # type: ignore[misc]
    asks["by a user, an operator"] = lambda: (_AT, {"by": str(UUID(int=random.randrange(1000)))}, _operator())
    asks["a page in the depth of the history, an operator"] = lambda: (_AT, {"after": deep["all"]}, _operator())
    asks["a page in the depth of the history, the heavy user"] = lambda: (_AT, {"after": deep["heavy"]}, token(_HEAVY))
    asks["1,000 rows, an operator"] = lambda: (_AT, {"limit": 1000}, _operator())
    asks["one execution by its key"] = lambda: (f"{_AT}/KEY-{random.randrange(1, _EXECUTIONS)}", {}, _operator())
    return asks


async def _deep(client: aiohttp.ClientSession) -> dict[str, str]:
    """Places nearly a year back."""
    places = {}
    for name, headers in (("all", _operator()), ("heavy", token(_HEAVY))):
        async with client.get(_AT, params={"until": "330d", "limit": 1}, headers=headers) as answer:
            places[name] = str((await answer.json())["next"])
    return places


async def _questions(client: aiohttp.ClientSession, deep: dict[str, str]) -> list[Figure]:
    recent, filtered = _recent(), _filtered(deep)
    times: dict[str, list[float]] = {name: [] for name in (*recent, *filtered)}
    for turn in range(_ROUNDS + 1):
        for name, ask in {**recent, **filtered}.items():
            path, given, headers = ask()
            begun = time.monotonic()
            async with client.get(path, params=given, headers=headers) as answer:
                body = await answer.read()
            took = (time.monotonic() - begun) * 1000
            assert answer.status == 200, body
            if turn:
                times[name].append(took)
    return [
        Figure(
            f"{name}, p95",
            f"{p95(taken):.1f} ms",
            spread(taken, "ms", 1),
            target=f"<= {most} ms",
            reached=p95(taken) <= most,
        )
        for name, taken in times.items()
        for most in [_MOST_RECENT_MS if name in recent else _MOST_FILTERED_MS]
    ]


# -- Loads ------------------------------------------------------------------------------------------------------------


async def _starts(client: aiohttp.ClientSession) -> Figure:
    users = itertools.cycle([token(UUID(int=user)) for user in range(100)])

    async def start(number: int) -> None:
        async with client.post(
            _AT,
            json={"flow": f"flow_{number % 20}", "inputs": {"topic": "pricing"}},
            headers={**next(users), "Idempotency-Key": f"{os.getpid()}-{number}"},
        ) as answer:
            assert answer.status == 201, await answer.text()
            await answer.read()

    taken, rate = await _at_a_rate(_STARTS_PER_SECOND, start)
    return Figure(
        f"POST /executions at {_STARTS_PER_SECOND}/s, p50 and p99",
        f"{median(taken):.1f} and {percentile(taken, 99):.1f} ms",
        spread(taken, "ms", 1),
        f"{rate:.0f}/s answered",
        target="<= 8 and <= 40 ms",
        reached=median(taken) <= 8 and percentile(taken, 99) <= 40,
    )


async def _reads(client: aiohttp.ClientSession) -> Figure:
    """Of ten reads, six are of one execution, three of a list, one of its timeline."""
    headers = [token(UUID(int=user)) for user in range(100)]
    known = []
    for of in headers:
        async with client.get(_AT, headers=of) as answer:
            known.append((await answer.json())["executions"][0]["id"])

    async def read(number: int) -> None:
        at = number % 100
        path = {0: "", 1: "", 2: "", 3: f"/{known[at]}/timeline"}.get(number % 10, f"/{known[at]}")
        async with client.get(_AT + path, headers=headers[at]) as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()

    taken, rate = await _at_a_rate(_READS_PER_SECOND, read)
    return Figure(
        f"reads at {_READS_PER_SECOND}/s, answered per second",
        f"{rate:.0f}/s",
        spread(taken, "ms", 1),
        f"p50 {median(taken):.1f}, p99 {percentile(taken, 99):.1f} ms",
        target=f">= {_READS_PER_SECOND}/s sustained",
        # A server that falls behind answers later and later.
        reached=rate >= 0.97 * _READS_PER_SECOND and percentile(taken, 99) <= 1000,
    )


async def _at_a_rate(rate: int, ask: Callable[[int], Any]) -> tuple[list[float], float]:
    """Times in ms from when each request was due, and how many were answered in a second."""
    begun, taken = time.monotonic(), []

    async def one(number: int) -> None:
        due = begun + number / rate
        await asyncio.sleep(due - time.monotonic())
        await ask(number)
        taken.append((time.monotonic() - due) * 1000)

    # A warm-up of one second is not counted.
    await asyncio.gather(*(one(number) for number in range(rate)))
    begun, taken = time.monotonic(), []
    await asyncio.gather(*(one(number) for number in range(rate, rate * (_LOAD_SECONDS + 1))))
    return taken, len(taken) / (time.monotonic() - begun - 1)


# -- The server -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """`flowledger server` in a process of its own."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def server(conninfo: str) -> Iterator[Served]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "flowledger", "server", "--port", str(port), "--database-url", conninfo],
        env={**os.environ, "FLOWLEDGER_JWT_SECRET": _SECRET},
        # It writes its log, a line for each request, as it does elsewhere.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: _listens(port) or process.poll() is not None)
        yield Served(port, process.pid)
    finally:
        process.terminate()
        process.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def token(user: UUID, role: str = "authenticated") -> dict[str, str]:
    claims = {"sub": str(user), "role": role, "exp": int(time.time()) + 3600}
    return {"Authorization": f"Bearer {jwt.encode(claims, _SECRET, algorithm='HS256')}"}


def _operator() -> dict[str, str]:
    return token(UUID(int=1), "service_role")
