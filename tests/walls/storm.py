"""Many users at once over few connections, while clients leave and backends die; and what each answer may say.

Speaks HTTP by hand: a client that leaves in the middle of a request closes its socket, and an answer is looked at
byte by byte, whole or not.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit
from uuid import NAMESPACE_URL, UUID, uuid5

import psycopg
from psycopg.types.json import Jsonb

from tests.api.serving import signed

AT = "/api/v1/executions"
FLOW = "STORM"
USERS = 20
IN_FLIGHT = 200
SEEDED = 4
"""Executions that each user has before."""

ABORTED = 0.1
"""Of the requests: their client leaves before the answer is there."""
_REPEATED = 30
"""Idempotency keys of each user, each sent again and again."""
_PATIENCE_SECONDS = 60
_KILL_SECONDS = 0.05
_LONGEST_WAIT_SECONDS = 0.03


@dataclass(frozen=True)
class User:
    """`number` is in everything that is theirs: in their id and in the canary of their rows."""

    number: int
    token: str

    @property
    def id(self) -> UUID:
        return user_id(self.number)

    @property
    def canary(self) -> str:
        return f"canary-{self.number:02}-of-the-storm"

    @property
    def executions(self) -> list[UUID]:
        return [uuid5(NAMESPACE_URL, f"{self.canary}/{place}") for place in range(SEEDED)]


def user_id(number: int) -> UUID:
    return UUID(f"5702a000-0000-4000-8000-0000000000{number:02}")


def users() -> list[User]:
    return [User(number, signed(user_id(number), exp=4_000_000_000)) for number in range(USERS)]


_OWNER = re.compile(rb"canary-(\d\d)-of-the-storm|5702a000-0000-4000-8000-0000000000(\d\d)")


def numbers_in(answer: bytes) -> set[int]:
    """Whose things an answer speaks of."""
    return {int(canary or user) for canary, user in _OWNER.findall(answer)}


def seed(owner: psycopg.Connection[Any], flow: UUID) -> None:
    """Executions of each user, their last one failed, and what belongs to each, all with its owner's canary."""
    with owner.transaction():
        for user in users():
            for place, execution in enumerate(user.executions):
                _seed(owner, flow, user, execution, is_failed=place == SEEDED - 1)


def _seed(owner: psycopg.Connection[Any], flow: UUID, user: User, execution: UUID, *, is_failed: bool) -> None:
    said = {"said": user.canary}
    owner.execute(
        "insert into crewai_flow_executions (id, flow_id, execution_key, input_state, executed_by)"
        " values (%s, %s, %s, %s, %s)",
        [execution, flow, f"{FLOW}-{execution}", Jsonb(said), user.id],
    )
    owner.execute(
        "insert into flowledger.timeline (execution_id, sequence, at, kind, name, fields)"
        " select %s, n, now(), 'log', %s, %s from generate_series(1, 5) as n",
        [execution, user.canary, Jsonb(said)],
    )
    owner.execute(
        "insert into flowledger.usage (execution_id, number, call_id, status, model, provider, started_at)"
        " values (%s, 1, %s, 'unknown', %s, 'stub', now())",
        [execution, user.canary, user.canary],
    )
    if is_failed:
        owner.execute(
            "update crewai_flow_executions set status = 'failed', error_message = %s where id = %s",
            [user.canary, execution],
        )


# -- Requests ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What one user asks. `may` are the statuses that it can have whatever goes wrong around it."""

    user: User
    method: str
    path: str
    may: tuple[int, ...] = (200,)
    shows_own: bool = True
    """Whether a 200 always holds the user's own canary: an empty answer is as wrong as a foreign one."""
    key: str | None = None
    body: dict[str, Any] | None = None

    def encoded(self) -> bytes:
        body = b"" if self.body is None else json.dumps(self.body).encode()
        lines = [
            # An answer then ends with the connection, and is one piece.
            f"{self.method} {self.path} HTTP/1.0",
            "Host: 127.0.0.1",
            f"Authorization: Bearer {self.user.token}",
        ]
        if self.key is not None:
            lines.append(f"Idempotency-Key: {self.key}")
        if self.body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body


TROUBLE = (429, 503)
"""What any request may be told: that there is too much of something, or that the database cannot be reached."""


class Mix:
    """Endless requests of all users, in proportions like those of a busy day; the same for the same seed."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._users = users()
        self._kinds: list[tuple[int, Callable[[User], Request]]] = [
            (20, self._list),
            (15, self._show),
            (10, self._timeline),
            (8, self._usage),
            (4, self._export),
            (8, self._search),
            (15, self._start),
            (8, self._cancel),
            (12, self._foreign),
        ]

    def __iter__(self) -> Iterator[Request]:
        weights = [weight for weight, _ in self._kinds]
        while True:
            ((_, kind),) = self._chance.choices(self._kinds, weights)
            yield kind(self._chance.choice(self._users))

    def _list(self, user: User) -> Request:
        return Request(user, "GET", f"{AT}?limit={self._chance.choice([5, 50])}")

    def _show(self, user: User) -> Request:
        return Request(user, "GET", f"{AT}/{self._chance.choice(user.executions)}")

    def _timeline(self, user: User) -> Request:
        return Request(user, "GET", f"{AT}/{self._chance.choice(user.executions)}/timeline")

    def _usage(self, user: User) -> Request:
        return Request(user, "GET", f"{AT}/{self._chance.choice(user.executions)}/usage")

    def _export(self, user: User) -> Request:
        return Request(user, "GET", f"{AT}/export?format={self._chance.choice(['csv', 'jsonl'])}")

    def _search(self, user: User) -> Request:
        # In what nobody but its owner has, and in what everybody has.
        query = self._chance.choice([{"search": "canary"}, {"path": "input_state.said"}])
        return Request(user, "GET", f"{AT}?{urlencode(query)}")

    def _start(self, user: User) -> Request:
        key = f"key-{self._chance.randrange(_REPEATED)}"
        body = {"flow": FLOW, "inputs": {"said": user.canary, "key": key}}
        return Request(user, "POST", AT, (201,), key=key, body=body)

    def _cancel(self, user: User) -> Request:
        return Request(
            user, "POST", f"{AT}/{self._chance.choice(user.executions)}/cancellation", (202, 409), shows_own=False
        )

    def _foreign(self, user: User) -> Request:
        """What is another's is not there."""
        other = self._chance.choice([one for one in self._users if one != user])
        execution = self._chance.choice(other.executions)
        method, more = self._chance.choice([("GET", ""), ("GET", "/timeline"), ("POST", "/cancellation")])
        return Request(user, method, f"{AT}/{execution}{more}", (404,), shows_own=False)


# -- The storm --------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What came of the requests: how many of each status, None for those whose client left, and all that is wrong."""

    statuses: Counter[int | None] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    killed: int = 0
    started: dict[tuple[int, str], set[str]] = field(default_factory=dict)
    """The executions that each user was told of under each key."""

    @property
    def answered(self) -> int:
        return sum(number for status, number in self.statuses.items() if status and status < 500)

    def judge(self, request: Request, answer: bytes, *, is_whole: bool) -> None:
        """Looks at one answer. Half of one may lack what it should hold, and holds nothing foreign."""
        if foreign := numbers_in(answer) - {request.user.number}:
            self.faults.append(f"{request.method} {request.path}: user {request.user.number} sees {foreign}")
        if not is_whole:
            self.statuses[None] += 1
            return
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        self.statuses[status] += 1
        if status not in (*request.may, *TROUBLE):
            self.faults.append(f"{request.method} {request.path}: {status} {body[:300]!r}")
        elif status in request.may:
            self._judge_content(request, status, body)
        if status >= 400 and b"application/problem+json" not in head:
            self.faults.append(f"{request.method} {request.path}: {status} is no problem")

    def _judge_content(self, request: Request, status: int, body: bytes) -> None:
        if status < 300 and request.shows_own and request.user.number not in numbers_in(body):
            self.faults.append(f"{request.method} {request.path}: user {request.user.number} misses what is theirs")
        if request.key is not None:
            told = json.loads(body)["id"]
            self.started.setdefault((request.user.number, request.key), set()).add(told)


async def storm(url: str, api_url: str, number: int, *, is_rough: bool = True, seed_: int = 1) -> Report:
    """So many requests, 200 of them at a time. `is_rough`: clients leave, and backends of the API's login die."""
    report, chance = Report(), random.Random(seed_)
    requests = iter(Mix(chance))
    waiting = [next(requests) for _ in range(number)]
    async with asyncio.TaskGroup() as group:
        killer = group.create_task(_kill(api_url, report, chance)) if is_rough else None
        askers = [group.create_task(_ask_all(url, waiting, report, chance, is_rough)) for _ in range(IN_FLIGHT)]
        await asyncio.wait(askers)
        if killer:
            killer.cancel()
    return report


async def _ask_all(url: str, waiting: list[Request], report: Report, chance: random.Random, is_rough: bool) -> None:
    while waiting:
        request = waiting.pop()
        stays = chance.uniform(0, _LONGEST_WAIT_SECONDS) if is_rough and chance.random() < ABORTED else None
        async with asyncio.timeout(_PATIENCE_SECONDS):
            answer = await _answer(url, request, stays)
        if answer is not None:
            report.judge(request, answer, is_whole=stays is None and _is_whole(answer))


def _is_whole(answer: bytes) -> bool:
    """A connection that was cut behind the head of a stream has told its status, and nobody can take that back."""
    return answer.startswith(b"HTTP/1.") and b"\r\n\r\n" in answer


async def _answer(url: str, request: Request, stays: float | None) -> bytes:
    """Everything that arrives; or what has arrived within so many seconds, and then the client is gone."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        writer.write(request.encoded())
        return await _everything(reader) if stays is None else await _beginning(reader, stays)
    finally:
        writer.transport.abort()


async def _everything(reader: asyncio.StreamReader) -> bytes:
    answer = b""
    try:
        while piece := await reader.read(65_536):
            answer += piece
    except ConnectionError:
        pass
    return answer


async def _beginning(reader: asyncio.StreamReader, seconds: float) -> bytes:
    try:
        async with asyncio.timeout(seconds):
            return await reader.read(65_536)
    except (TimeoutError, ConnectionError):
        return b""


async def _kill(api_url: str, report: Report, chance: random.Random) -> None:
    """Ends one backend of the API's after another, whatever it does at that moment."""
    async with await psycopg.AsyncConnection.connect(api_url, autocommit=True) as conn:
        while True:
            await asyncio.sleep(chance.uniform(0, 2 * _KILL_SECONDS))
            found = await conn.execute(
                """select count(pg_terminate_backend(pid)) from (
                     select pid from pg_stat_activity
                     where usename = session_user and pid <> pg_backend_pid() order by random() limit 1) as one"""
            )
            row = await found.fetchone()
            report.killed += row[0] if row else 0


# -- Afterwards -------------------------------------------------------------------------------------------------------


async def nothing_left_open(login: psycopg.Connection[Any], seconds: float = 20) -> None:
    """Waits until no other connection of the API's login is in a transaction. Raises TimeoutError."""
    until = time.monotonic() + seconds
    while left_open(login):
        if time.monotonic() > until:
            raise TimeoutError
        await asyncio.sleep(0.05)


def left_open(login: psycopg.Connection[Any]) -> int:
    """Transactions of the API's login that have not ended. Nobody but the login itself is told of them."""
    row = login.execute(
        """select count(*) as number from pg_stat_activity
           where usename = session_user and pid <> pg_backend_pid() and xact_start is not null"""
    ).fetchone()
    return int(row["number"])


def backends(login: psycopg.Connection[Any]) -> int:
    """Other connections of the API's login."""
    row = login.execute(
        "select count(*) as number from pg_stat_activity where usename = session_user and pid <> pg_backend_pid()"
    ).fetchone()
    return int(row["number"])


def wrong_rows(owner: psycopg.Connection[Any]) -> list[dict[str, Any]]:
    """Executions that are not whose they say; that were started twice under one key; or were ended by somebody else."""
    found = owner.execute(
        """
        select 'belongs to ' || executed_by || ' and says ' || input_state::text as what
        from crewai_flow_executions
        where substr(input_state ->> 'said', 8, 2) <> right(executed_by::text, 2)
        union all
        select 'started ' || count(*) || ' times: ' || (input_state ->> 'key') || ' of ' || executed_by
        from crewai_flow_executions
        where input_state ? 'key' group by executed_by, input_state ->> 'key' having count(*) > 1
        union all
        select 'was ended by ' || actor || ' and is of ' || executed_by
        from flowledger.transitions join crewai_flow_executions as executions on executions.id = execution_id
        where to_status = 'cancelled' and actor <> executed_by::text
        union all
        select 'request of ' || user_id || ' answered with an execution of ' || executed_by
        from flowledger.requests join crewai_flow_executions as executions on executions.id = execution_id
        where user_id <> executed_by
        """
    )
    return found.fetchall()
