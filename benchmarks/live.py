"""The live stream under load: clients that read, clients that do not, and 100,000 events.

A real server in a process of its own. The clients that do not read are operators, who would be told of everything; each
of those that read is a user with executions of its own, who leaves now and then and resumes.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import aiohttp

from benchmarks.api import Served, server, token
from benchmarks.figures import Figure, p95, spread
from benchmarks.stage import Stage
from flowledger.database.session import Claims, Database
from flowledger.domain.execution import Claim, NewExecution, Outcome
from flowledger.domain.flow import Flow
from flowledger.domain.status import Status
from flowledger.domain.timeline import Event, EventKind
from flowledger.ledger import executions, flows, timeline

_LIVE, _STALLED, _STREAMS_EACH = 20, 200, 10
_EVENTS = 100_000
_SHORT_RUNS = 4_000
"""Executions that are born, claimed and ended while the events are written: three changes each."""
_EVENT_BATCH, _RUN_BATCH = 500, 20
_LEAVES_AFTER_SECONDS = 5.0
_MOST_MEMORY_MB, _MOST_SECONDS = 64, 1.0
_ALL_CLOSED_SECONDS = 200
_LIVE_AT = "/api/v1/live"
_WORKER = uuid4()
_USERS = [UUID(int=number + 1) for number in range(_LIVE)]


class _Watcher:
    """A user who watches: when each change was told, by execution and kind."""

    def __init__(self, url: str, user: UUID) -> None:
        self._url = url
        self._user = user
        self._last_id: str | None = None
        self.told: dict[tuple[UUID, str], float] = {}
        self.times_resumed = -1

    async def watch(self) -> None:
        """Until cancelled; leaves every few seconds and comes back with the last id."""
        async with aiohttp.ClientSession(self._url, timeout=aiohttp.ClientTimeout(total=None)) as client:
            while True:
                self.times_resumed += 1
                headers = token(self._user) | ({"Last-Event-ID": self._last_id} if self._last_id else {})
                async with client.get(_LIVE_AT, params={"topics": "executions"}, headers=headers) as answer:
                    answer.raise_for_status()
                    try:
                        async with asyncio.timeout(_LEAVES_AFTER_SECONDS * random.uniform(0.5, 1.5)):
                            await self._read(answer)
                    except TimeoutError:
                        continue

    async def _read(self, answer: aiohttp.ClientResponse) -> None:
        async for line in answer.content:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "id":
                self._last_id = value
            elif name == "data":
                told = json.loads(value)
                if told["kind"] == "reset":
                    raise RuntimeError("the server has forgotten where a client was")
                if "execution" in told:
                    self.told.setdefault((UUID(told["execution"]), told["kind"]), time.monotonic())


async def _stalled(port: int) -> list[socket.socket]:
    """Clients that ask and never read, with as little room as the system lets them have."""
    loop = asyncio.get_running_loop()
    clients = []
    for number in range(_STALLED):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)  # noqa: FBT003 - its only parameter
        await loop.sock_connect(client, ("127.0.0.1", port))
        bearer = token(UUID(int=1000 + number // _STREAMS_EACH), "service_role")["Authorization"]
        asks = f"GET {_LIVE_AT}?topics=executions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: {bearer}\r\n\r\n"
        await loop.sock_sendall(client, asks.encode())
        clients.append(client)
    return clients


def _open_at(port: int) -> int:
    """Connections that the server's side holds open, by the kernel's own table."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


def _memory_mb(pid: int) -> float:
    facts = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(facts["VmRSS"].split()[0]) / 1024


class _Work:
    """What a worker and its users do meanwhile; `done` is when each change was committed."""

    def __init__(self, worker: Database, users: Database, flow: UUID) -> None:
        self._worker, self._users, self._flow = worker, users, flow
        self._owners = itertools.cycle(_USERS)
        self.owner: dict[UUID, UUID] = {}
        self.done: dict[tuple[UUID, str], float] = {}

    async def start(self, number: int) -> list[Claim]:
        for _ in range(number):
            user = next(self._owners)
            async with self._users.session(Claims(user)) as session:
                execution = await executions.record(session, NewExecution("tells"))
            self.owner[execution.id] = user
            self.done[execution.id, "created"] = time.monotonic()
        async with self._worker.service() as connection:
            claims = await executions.claim(
                connection, _WORKER, {self._flow: 600.0}, number, timedelta(minutes=10), None
            )
        for claim in claims:
            self.done[claim.execution_id, "started"] = time.monotonic()
        return claims

    async def end(self, claims: list[Claim]) -> None:
        for claim in claims:
            async with self._worker.service() as connection:
                await executions.finish(connection, claim.execution_id, claim.fence, Outcome(Status.COMPLETED))
            self.done[claim.execution_id, "ended"] = time.monotonic()

    async def tell(self, long: list[Claim]) -> None:
        """All events, in turns of the long executions."""
        for first in range(0, _EVENTS, _EVENT_BATCH):
            claim = long[first // _EVENT_BATCH % len(long)]
            after = first // (_EVENT_BATCH * len(long)) * _EVENT_BATCH
            events = [
                ((claim.execution_id, claim.fence), Event(after + number + 1, datetime.now(UTC), EventKind.LOG, "told"))
                for number in range(_EVENT_BATCH)
            ]
            async with self._worker.service() as connection:
                await timeline.append(connection, events)
            await asyncio.sleep(0.05)


def live(stage: Stage) -> list[Figure]:
    """Delays, memory, what was missed, and whether those who do not read were left."""
    postgres = stage.server("live")
    with server(postgres.url("flowledger_api")) as served:
        return asyncio.run(_measure(served, postgres.url("flowledger_worker"), postgres.url("flowledger_api")))


async def _measure(served: Served, worker_url: str, api_url: str) -> list[Figure]:
    async with Database(worker_url) as worker, Database(api_url, most_connections=2) as users:
        async with worker.service() as connection:
            (flow,) = await flows.remember(connection, [Flow("tells", "Tells", "", "m:Tells", None, {}, "", "1")])
        work = _Work(worker, users, flow.id)
        async with _watching(served.url) as watchers, _sampled(served.pid) as memory:
            stalled = await _stalled(served.port)
            await _until(lambda: _open_at(served.port) >= _LIVE + _STALLED)
            began = time.monotonic()
            long = await work.start(_LIVE)
            await asyncio.gather(work.tell(long), _short_runs(work))
            await work.end(long)
            wrote = time.monotonic() - began
            await _until(lambda: not _missed(work, watchers), give_up=30)
            closed_at = await _until(lambda: _open_at(served.port) <= _LIVE, give_up=_ALL_CLOSED_SECONDS)
        left_open = _open_at(served.port)
        for client in stalled:
            client.close()
    delays = [
        watchers[work.owner[execution]].told[execution, kind] - at
        for (execution, kind), at in work.done.items()
        if (execution, kind) in watchers[work.owner[execution]].told
    ]
    missed = _missed(work, watchers)
    resumed = sum(watcher.times_resumed for watcher in watchers.values())
    grew = max(memory) - memory[0]
    return [
        Figure(
            f"change to told, p95, {_LIVE} live and {_STALLED} stalled clients, {_EVENTS:,} events",
            f"{p95(delays):.2f} s",
            spread(delays, "s", 2),
            f"written in {wrote:.0f} s",
            target=f"<= {_MOST_SECONDS:.0f} s",
            reached=p95(delays) <= _MOST_SECONDS,
        ),
        Figure(
            "changes missed by live clients",
            f"{len(missed)} of {len(work.done):,}",
            rival=f"{resumed} resumed",
            target="0",
            reached=not missed,
        ),
        Figure(
            "server's memory, grown at most",
            f"{grew:.1f} MB",
            rival=f"from {memory[0]:.0f} MB",
            target=f"<= {_MOST_MEMORY_MB} MB",
            reached=grew <= _MOST_MEMORY_MB,
        ),
        Figure(
            "stalled clients whose connection was closed",
            f"{_STALLED - left_open} of {_STALLED}" if closed_at is None else f"all {_STALLED}",
            rival="" if closed_at is None else f"{closed_at - began - wrote:.0f} s after the last event",
            target="all",
            reached=closed_at is not None,
        ),
    ]


async def _short_runs(work: _Work) -> None:
    for _ in range(_SHORT_RUNS // _RUN_BATCH):
        await work.end(await work.start(_RUN_BATCH))


def _missed(work: _Work, watchers: dict[UUID, _Watcher]) -> list[tuple[UUID, str]]:
    return [one for one in work.done if one not in watchers[work.owner[one[0]]].told]


@asynccontextmanager
async def _watching(url: str) -> AsyncIterator[dict[UUID, _Watcher]]:
    watchers = {user: _Watcher(url, user) for user in _USERS}
    tasks = [asyncio.create_task(watcher.watch()) for watcher in watchers.values()]
    await asyncio.sleep(1)
    try:
        yield watchers
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _sampled(pid: int) -> AsyncIterator[list[float]]:
    """The server's memory in MB, from now on every fifth of a second."""
    memory = [_memory_mb(pid)]

    async def sample() -> None:
        while True:
            await asyncio.sleep(0.2)
            memory.append(_memory_mb(pid))

    sampling = asyncio.create_task(sample())
    try:
        yield memory
    finally:
        sampling.cancel()


async def _until(fact: Callable[[], bool], give_up: float = 30) -> float | None:
    """When it came true; None if it did not."""
    ends = time.monotonic() + give_up
    while not fact():
        if time.monotonic() > ends:
            return None
        await asyncio.sleep(0.1)
    return time.monotonic()
