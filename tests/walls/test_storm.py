"""Twenty users, two hundred requests at a time, three connections; clients leave and backends die: nobody is ever
answered with what is somebody else's, and afterwards everything is as before.

`STORM_REQUESTS` says how many requests (1,500 when it is not set; `make chaos` asks for 10,000).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from psycopg import sql

from flowledger.database import session
from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.session import Claims
from tests.api.serving import Served, served
from tests.empty_ledger import Emptying
from tests.walls import storm
from tests.walls.probes import Connection, connection
from tests.walls.storm import FLOW, Mix, Report, backends, left_open, nothing_left_open, wrong_rows

REQUESTS = int(os.environ.get("STORM_REQUESTS", "1500"))
CONNECTIONS = 3

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def owner(postgres: EmbeddedPostgres, emptying: Emptying) -> Iterator[Connection]:
    """Of a ledger in which every user has executions."""
    emptying()
    with connection(postgres.url("flowledger")) as owner:
        flow = owner.execute("select id from flowledger.remember_flow(%s, 'Storm', '', '{}', '')", [FLOW]).fetchone()
        storm.seed(owner, flow["id"])
        yield owner
    emptying()


@pytest.fixture(scope="module")
def server(postgres: EmbeddedPostgres) -> Iterator[Served]:
    with served(postgres, most_connections=CONNECTIONS, rate_limit="1000000/second") as running:
        yield running


async def test_nobody_is_answered_with_what_is_somebody_elses(
    server: Served, postgres: EmbeddedPostgres, owner: Connection
) -> None:
    report = await storm.storm(server.url, postgres.url("flowledger_api"), REQUESTS)
    print(f"{REQUESTS} requests: {dict(report.statuses)}, {report.killed} backends killed")  # noqa: T201 - for `-s`
    assert report.faults == []
    assert report.answered > REQUESTS / 2
    assert report.killed > 5
    assert report.statuses[None] > REQUESTS / 50
    # A key that was sent again was answered with the same execution, and started no other.
    assert {key: ids for key, ids in report.started.items() if len(ids) > 1} == {}
    assert len(report.started) > 50
    assert wrong_rows(owner) == []
    # Not before: it would be killed like any other.
    with connection(postgres.url("flowledger_api")) as login:
        await after_the_storm(server, login)


async def after_the_storm(server: Served, login: Connection) -> None:
    """Nothing is left open, and every user is answered."""
    await nothing_left_open(login)
    report = await storm_of(server, 200)
    assert report.faults == []
    assert report.answered == 200
    await nothing_left_open(login)
    # One more listens.
    assert backends(login) <= CONNECTIONS + 1


async def storm_of(server: Served, number: int = 300) -> Report:
    """A smaller one, in which nobody leaves and nothing dies."""
    return await storm.storm(server.url, "", number, is_rough=False)


# -- The check itself -------------------------------------------------------------------------------------------------


class Leak:
    """Sessions that now and then speak for whoever asked before."""

    def __init__(self) -> None:
        self._begin = session._begin
        self._last: Claims | None = None
        self._chance = random.Random(2)

    def __call__(self, claims: Claims) -> Any:
        before, self._last = self._last or claims, claims
        return self._begin(before if self._chance.random() < 0.2 else claims)


async def test_claims_that_leak_are_found(server: Served, owner: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_begin", Leak())
    report = await storm_of(server)
    assert any("misses what is theirs" in fault or ": 404" in fault for fault in report.faults)
    assert any("sees" in fault for fault in report.faults) or wrong_rows(owner)


async def test_a_session_that_speaks_for_nobody_is_found(
    server: Served, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_begin", lambda _: sql.SQL("begin"))
    report = await storm_of(server, 20)
    assert len(report.faults) >= 20


async def test_a_session_above_the_walls_is_found(
    server: Served, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody an operator: what then tells users apart are conditions of queries alone."""
    real = session._begin
    monkeypatch.setattr(session, "_begin", lambda claims: real(Claims(claims.user, "service_role")))
    report = await storm_of(server)
    assert report.faults != []


async def test_an_answer_that_holds_a_foreign_canary_is_found() -> None:
    request = next(iter(Mix(random.Random(1))))
    own, other = request.user, next(one for one in storm.users() if one.number != request.user.number)
    for text in (other.canary, str(other.id)):
        report = Report()
        for is_whole in (True, False):
            answer = f"HTTP/1.1 200 OK\r\n\r\n{own.canary} {text}".encode()
            report.judge(request, answer, is_whole=is_whole)
        assert len(report.faults) == 2
    report = Report()
    report.judge(request, f"HTTP/1.1 200 OK\r\n\r\n{own.canary}".encode(), is_whole=True)
    assert report.faults == []


def test_a_transaction_that_stays_open_is_found(postgres: EmbeddedPostgres) -> None:
    url = postgres.url("flowledger_api")
    with connection(url) as login, connection(url) as other, other.transaction():
        other.execute("select 1")
        assert left_open(login) > 0
