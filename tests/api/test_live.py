"""The live stream: nothing that the caller may see is missed, nothing else is told, and nobody is held up by it."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest

from flowledger import feed
from flowledger.api import live
from flowledger.domain.change import MOST_TOPICS, Position
from tests.api.serving import served, signed
from tests.api.watching import watching
from tests.ledger.law import ALICE, BOB, Row, born, cancel, claim, finish

OPERATOR = UUID("0be7a700-0000-4000-8000-000000000009")


@pytest.fixture(scope="module")
def url(postgres) -> Iterator[str]:
    with served(postgres) as server:
        yield server.url


def many(user: psycopg.Connection, flow: UUID, number: int) -> set[UUID]:
    """So many births in one transaction."""
    rows = user.execute(
        """insert into crewai_flow_executions (flow_id, execution_key, executed_by)
           select %s, 'FLOW-' || gen_random_uuid(), auth.uid() from generate_series(1, %s) returning id""",
        [flow, number],
    ).fetchall()
    return {row["id"] for row in rows}


def carried(worker: psycopg.Connection, flow: UUID) -> Row:
    """The next execution of the flow, claimed."""
    return claim(worker, flow, slots=1)[0]


def append(worker: psycopg.Connection, held: Row, *sequences: int) -> None:
    number = len(sequences)
    worker.execute(
        "select flowledger.append_events(%s, %s, %s, %s, %s, %s, %s, %s, %s::text[]::jsonb[])",
        [
            [held["execution_id"]] * number,
            [held["fence"]] * number,
            list(sequences),
            [None] * number,
            [None] * number,
            [datetime.now(UTC)] * number,
            ["log"] * number,
            ["told"] * number,
            ["{}"] * number,
        ],
    )


class TestWhatIsTold:
    async def test_it_opens_with_ready_an_id_and_headers_that_no_proxy_buffers(self, url, database):
        async with watching(url, ALICE, "executions") as watcher:
            headers = watcher.response.headers
            opening = watcher.told[0]
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["x-accel-buffering"] == "no"
        assert "no-store" in headers["cache-control"]
        assert (opening.event, json.loads(opening.data)) == ("ready", {"kind": "ready"})
        assert Position.parse(opening.id) is not None

    async def test_birth_start_and_end_are_told_in_this_order_with_ids_and_kinds_only(self, url, alice, worker, flow):
        async with watching(url, ALICE, "executions") as watcher:
            execution = born(alice, flow, input_state={"topic": "secret"})
            held = carried(worker, flow)
            finish(worker, execution, held["fence"], output={"result": "secret"})
            await watcher.until(lambda: len(watcher.changes) == 3)
        assert watcher.changes == [(kind, str(execution)) for kind in ("created", "started", "ended")]
        assert all(set(json.loads(message.data)) <= {"kind", "execution"} for message in watcher.told)
        assert "secret" not in "".join(message.data for message in watcher.told)

    async def test_what_is_told_at_once_comes_within_a_second_though_nobody_had_moved_for_long(
        self, url, alice, flow, owner
    ):
        async with watching(url, ALICE, "executions") as watcher:
            waiting = "select from flowledger.watchers where waits_until > now()"
            await _until(lambda: bool(owner.execute(waiting).fetchall()), "the server waits to be told")
            began = time.monotonic()
            born(alice, flow)
            await watcher.until(lambda: bool(watcher.changes))
            # Less than the poll: the notification came through.
            assert time.monotonic() - began < 2

    async def test_each_user_is_told_of_their_own_and_an_operator_of_all(self, url, alice, bob, flow):
        async with (
            watching(url, ALICE, "executions") as hers,
            watching(url, BOB, "executions") as his,
            watching(url, OPERATOR, "executions", role="service_role") as all_of_them,
        ):
            hers_born, his_born = many(alice, flow, 30), many(bob, flow, 30)
            await hers.until(lambda: hers.executions >= hers_born)
            await his.until(lambda: his.executions >= his_born)
            await all_of_them.until(lambda: all_of_them.executions >= hers_born | his_born)
        assert hers.executions == hers_born
        assert his.executions == his_born

    async def test_a_named_execution_tells_of_its_timeline_and_of_no_other(self, url, alice, worker, flow):
        execution, other = born(alice, flow), born(alice, flow)
        held = carried(worker, flow)
        assert held["execution_id"] == execution
        async with watching(url, ALICE, f"execution:{execution}") as watcher:
            append(worker, held, 1, 2)
            await watcher.until(lambda: ("timeline", str(execution)) in watcher.changes)
            cancel(alice, other)
            finish(worker, execution, held["fence"])
            await watcher.until(lambda: ("ended", str(execution)) in watcher.changes)
        assert watcher.executions == {execution}

    async def test_a_timeline_in_flood_is_told_four_times_a_second_at_most(self, url, alice, worker, flow):
        execution = born(alice, flow)
        held = carried(worker, flow)
        async with watching(url, ALICE, f"execution:{execution}") as watcher:
            began, sequence = time.monotonic(), 0
            while time.monotonic() - began < 2:
                append(worker, held, *range(sequence + 1, sequence + 21))
                sequence += 20
                await asyncio.sleep(0)
            finish(worker, execution, held["fence"])
            await watcher.until(lambda: ("ended", str(execution)) in watcher.changes)
            seconds = time.monotonic() - began
        told = watcher.changes.count(("timeline", str(execution)))
        assert 1 <= told <= seconds / feed.LOOK_SECONDS + 2

    async def test_what_happened_inside_is_told_before_the_end(self, url, alice, worker, flow):
        execution = born(alice, flow)
        held = carried(worker, flow)
        async with watching(url, ALICE, f"execution:{execution}") as watcher:
            append(worker, held, 1)
            finish(worker, execution, held["fence"])
            await watcher.until(lambda: ("ended", str(execution)) in watcher.changes)
        kinds = [kind for kind, _ in watcher.changes]
        assert "timeline" in kinds[: kinds.index("ended")]

    async def test_flows_are_told_when_one_is_paused_and_when_one_is_new(self, url, worker, flow):
        async with watching(url, ALICE, "flows") as watcher:
            worker.execute("select flowledger.pause_flow(%s, 'why')", [flow])
            await watcher.until(lambda: len(watcher.changes) == 1)
            worker.execute("select flowledger.remember_flow('OTHER', 'Other', '', '{}', '')")
            await watcher.until(lambda: len(watcher.changes) == 2)
        assert watcher.changes == [("flows", ""), ("flows", "")]

    async def test_a_stream_of_flows_is_silent_about_executions(self, url, alice, flow):
        async with watching(url, ALICE, "flows") as of_flows, watching(url, ALICE, "executions") as of_executions:
            born(alice, flow)
            await of_executions.until(lambda: bool(of_executions.changes))
            await asyncio.sleep(2 * feed.LOOK_SECONDS)
        assert of_flows.changes == []


class TestNothingIsMissed:
    async def test_commits_out_of_order(self, url, as_user, owner, flow):
        early, late = as_user(ALICE), as_user(ALICE)
        async with watching(url, ALICE, "executions") as watcher:
            with early.transaction():
                first = born(early, flow)
                second = born(late, flow)
                await watcher.until(lambda: second in watcher.executions)
                assert first not in watcher.executions
            await watcher.until(lambda: first in watcher.executions)
        rows = owner.execute("select execution_id, seq from flowledger.transitions").fetchall()
        numbers = {row["execution_id"]: row["seq"] for row in rows}
        # The trap that a resume by number falls into.
        assert numbers[first] < numbers[second]
        assert sorted(watcher.changes) == sorted([("created", str(first)), ("created", str(second))])

    async def test_what_was_under_way_when_the_client_dropped_is_told_after_the_resume(self, url, as_user, alice, flow):
        early = as_user(ALICE)
        with early.transaction():
            under_way = born(early, flow)
            async with watching(url, ALICE, "executions") as before:
                seen = born(alice, flow)
                await before.until(lambda: seen in before.executions)
        while_away = many(alice, flow, 20)
        async with watching(url, ALICE, "executions", after=before.last_id) as after:
            await after.until(lambda: after.executions >= while_away | {under_way})
        assert after.executions == while_away | {under_way}

    async def test_a_drop_after_every_message(self, url, alice, bob, flow):
        expected, told, last_id = set(), set(), None
        async with watching(url, ALICE, "executions") as watcher:
            last_id = watcher.last_id
        for _ in range(8):
            expected |= many(alice, flow, 7)
            foreign = many(bob, flow, 3)
            async with watching(url, ALICE, "executions", after=last_id) as watcher:
                await watcher.until(lambda: told | watcher.executions >= expected)  # noqa: B023
                told |= watcher.executions
                last_id = watcher.last_id
            assert told.isdisjoint(foreign)
        assert told == expected

    async def test_a_transaction_larger_than_a_page_is_resumed_in_its_middle(self, url, alice, flow):
        async with watching(url, ALICE, "executions") as opened:
            start = opened.last_id
        expected = many(alice, flow, 2 * feed.PAGE + 100)
        async with watching(url, ALICE, "executions", after=start) as whole:
            await whole.until(lambda: whole.executions >= expected)
        ids = [message.id for message in whole.told if message.id]
        after_first_page = next(id_ for id_ in ids if "/" in id_)
        async with watching(url, ALICE, "executions", after=after_first_page) as rest:
            await rest.until(lambda: len(rest.changes) >= feed.PAGE + 100)
        assert len(whole.changes) == len(expected)
        assert len(rest.changes) == feed.PAGE + 100
        assert rest.executions <= expected

    async def test_a_quiet_stream_moves_on_with_its_heartbeat(self, url, bob, flow, monkeypatch):
        monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.1)
        async with watching(url, ALICE, "executions") as watcher:
            opening = Position.parse(watcher.last_id or "")
            many(bob, flow, 5)
            born(bob, flow)

            def has_moved_on() -> bool:
                now = Position.parse(watcher.last_id or "")
                return now.snapshot.xmax > opening.snapshot.xmax + 1

            await watcher.until(has_moved_on)
        assert watcher.changes == []

    async def test_the_timeline_of_a_named_execution_counts_as_news_after_a_resume(self, url, alice, worker, flow):
        execution = born(alice, flow)
        held = carried(worker, flow)
        async with watching(url, ALICE, f"execution:{execution}") as before:
            pass
        append(worker, held, 1)
        async with watching(url, ALICE, f"execution:{execution}", after=before.last_id) as after:
            await after.until(lambda: ("timeline", str(execution)) in after.changes)

    async def test_flows_that_changed_meanwhile_are_told_after_the_resume(self, url, worker, flow):
        async with watching(url, ALICE, "flows") as before:
            pass
        async with watching(url, ALICE, "flows", after=before.last_id) as unchanged:
            await asyncio.sleep(2 * feed.LOOK_SECONDS)
        worker.execute("select flowledger.pause_flow(%s, 'why')", [flow])
        async with watching(url, ALICE, "flows", after=before.last_id) as changed:
            await changed.until(lambda: changed.changes == [("flows", "")])
        assert unchanged.changes == []

    @pytest.mark.parametrize("unknown", ["17", "x" * 9000, "1:2", "3:9:7,5", "9:3:", "9:9:12", "0:0:", "5:5:;é"])
    async def test_an_id_that_is_not_known_resets(self, url, database, unknown):
        async with httpx.AsyncClient(base_url=url) as client:
            headers = {"Authorization": f"Bearer {signed(ALICE)}"}
            params = {"topics": "executions", "after": unknown}
            async with client.stream("GET", "/api/v1/live", params=params, headers=headers) as response:
                lines = response.aiter_lines()
                while not (line := await anext(lines)).startswith("event:"):
                    pass
        assert line == "event: reset"

    async def test_an_id_of_a_database_that_was_restored_since_resets(self, url, database):
        async with watching(url, ALICE, "executions", after=f"{2**60}:{2**60}:") as watcher:
            assert [message.event for message in watcher.told] == ["reset"]

    async def test_transactions_that_a_restored_database_has_not_come_to_are_not_told_for_ever(
        self, url, alice, owner, flow
    ):
        old = born(alice, flow)
        async with watching(url, ALICE, "executions") as watcher:
            owner.execute(
                "update flowledger.transitions set xid = '4611686018427387904' where execution_id = %s", [old]
            )
            execution = born(alice, flow)
            await watcher.until(lambda: execution in watcher.executions)
        assert watcher.executions == {execution}

    async def test_without_any_notification_the_poll_finds_it(self, database, alice, owner, flow):
        owner.execute("alter table flowledger.transitions disable trigger watchers_are_told_of_transitions")
        try:
            with served(database, poll_seconds=0.5) as server:
                async with watching(server.url, ALICE, "executions") as watcher:
                    execution = born(alice, flow)
                    await watcher.until(lambda: execution in watcher.executions, seconds=5)
        finally:
            owner.execute("alter table flowledger.transitions enable trigger watchers_are_told_of_transitions")


class TestWhoIsRefused:
    @pytest.mark.parametrize(
        "topics",
        ["", ",", "everything", "execution:", "execution:1", "executions,nonsense:2", "flows," * MOST_TOPICS * 2],
    )
    async def test_topics_that_are_none(self, url, database, topics):
        answer = await _get(url, topics)
        assert answer.status_code == 422
        assert answer.json()["field"] == "topics"
        assert "execution:ID" in answer.json()["remedy"]

    async def test_whoever_does_not_say_who_they_are(self, url, database):
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/api/v1/live", params={"topics": "executions"})).status_code == 401

    async def test_an_execution_of_somebody_else_is_answered_as_one_that_is_not_there(self, url, bob, flow):
        his, none = born(bob, flow), uuid4()
        answers = [await _get(url, f"execution:{one}") for one in (his, none)]
        assert [answer.status_code for answer in answers] == [404, 404]
        told = [answer.text.replace(str(one), "ID") for answer, one in zip(answers, (his, none), strict=True)]
        assert told[0] == told[1]

    async def test_a_position_of_somebody_else_shows_nothing_of_theirs(self, url, alice, bob, flow):
        async with watching(url, BOB, "executions") as his:
            pass
        many(bob, flow, 5)
        mine = born(alice, flow)
        async with watching(url, ALICE, "executions", after=his.last_id) as watcher:
            await watcher.until(lambda: bool(watcher.changes))
        assert watcher.executions == {mine}

    async def test_one_stream_too_many_until_one_is_closed(self, database, monkeypatch):
        monkeypatch.setattr(feed, "MOST_STREAMS", 2)
        with served(database) as server:
            async with watching(server.url, BOB, "executions"):
                async with watching(server.url, BOB, "executions"), watching(server.url, ALICE, "executions"):
                    answer = await _get(server.url, "executions", BOB)
                    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_streams")
                await _until(lambda: server.streams == 1, "the places are free again")
                async with watching(server.url, BOB, "executions"):
                    pass


class TestWhoStalls:
    async def test_a_client_that_does_not_read_is_left_and_resumes_later(self, database, alice, flow, monkeypatch):
        monkeypatch.setattr(live, "STALLED_SECONDS", 0.5)
        with served(database, send_buffer=8192) as server:
            async with watching(server.url, ALICE, "executions") as opened:
                start = opened.last_id
            await _until(lambda: server.streams == 0, "the first client's place is free")
            expected = many(alice, flow, 3000)
            with _stalled(server.url, start):
                await _until(lambda: server.streams == 1, "the stalled client has come")
                await _until(lambda: server.streams == 0, "the stalled client has been left")
            async with watching(server.url, ALICE, "executions", after=start) as resumed:
                await resumed.until(lambda: resumed.executions >= expected)
        assert resumed.executions == expected

    async def test_a_stream_ends_in_time_for_its_token_to_be_checked_again(self, database, monkeypatch):
        monkeypatch.setattr(feed, "LONGEST_SECONDS", 0.2)
        with served(database) as server:
            async with watching(server.url, ALICE, "executions") as watcher:
                await watcher.until(lambda: watcher.has_ended)


@contextmanager
def _stalled(url: str, after: str) -> Iterator[None]:
    """A client that asks and never reads."""
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect((host, int(port)))
        lines = (
            "GET /api/v1/live?topics=executions HTTP/1.1",
            f"Host: {host}",
            f"Authorization: Bearer {signed(ALICE)}",
            f"Last-Event-ID: {after}",
        )
        stalled.sendall("\r\n".join([*lines, "", ""]).encode())
        yield


async def _get(url: str, topics: str, user: UUID = ALICE) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url) as client:
        headers = {"Authorization": f"Bearer {signed(user)}"}
        return await client.get("/api/v1/live", params={"topics": topics}, headers=headers)


async def _until(fact: Callable[[], bool], what: str, seconds: float = 20) -> None:
    give_up_at = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < give_up_at, f"not seen within {seconds:g} s: {what}"
        await asyncio.sleep(0.02)
