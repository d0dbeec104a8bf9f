"""What the server does around every request: limits, ids, problems, probes, its end, and who is no good client."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import closing, contextmanager, suppress
from typing import Any

import httpx
import psutil
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from structlog.testing import capture_logs

from flowledger import server as serving_module
from flowledger.api import connections, limits, live
from flowledger.server import bound
from flowledger.settings import Settings
from tests.acceptance.product import wait_for
from tests.api.serving import Served, served, signed
from tests.api.watching import watching
from tests.ledger.law import ALICE, BOB, born

MOST_BODY = 4096
PROBLEM = "application/problem+json"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def api(postgres) -> Iterator[Served]:
    with served(postgres, max_body_bytes=MOST_BODY, has_login=True) as running:
        yield running


@pytest.fixture
def as_alice(api, database) -> Iterator[httpx.Client]:
    with api.as_user(ALICE) as client:
        yield client


@pytest.fixture
def log() -> Iterator[list[MutableMapping[str, Any]]]:
    """What is logged while the test runs."""
    with capture_logs() as told:
        yield told


def requests(log: list[MutableMapping[str, Any]]) -> list[MutableMapping[str, Any]]:
    """The lines that tell of requests, once there is one: it comes after the answer."""
    return wait_for(lambda: [fact for fact in log if fact["event"] == "request"], what="the request has ended")


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem that the answer is."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), answer.text
    told: dict[str, Any] = answer.json()
    assert (told["status"], told["code"], told["type"]) == (status, code, f"/docs/problems#{code}")
    assert answer.headers["x-request-id"]
    return told


def spoken(url: str, *pieces: bytes, seconds: float = 10) -> bytes:
    """What the server says to a client that says these bytes, until it hangs up."""
    host, port = url.removeprefix("http://").split(":")
    heard = b""
    with socket.create_connection((host, int(port)), timeout=seconds) as wire:
        for piece in pieces:
            try:
                wire.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break
        try:
            while piece := wire.recv(65_536):
                heard += piece
        except ConnectionResetError:
            pass
    return heard


def head(api: Served, *lines: str, start: str = "GET /api/v1/health HTTP/1.1") -> bytes:
    return "\r\n".join([start, f"Host: {api.url.removeprefix('http://')}", *lines, "", ""]).encode()


# -- How often --------------------------------------------------------------------------------------------------------


class TestRates:
    def test_who_asks_too_often_is_told_when_to_come_back_and_nobody_else_is(self, postgres, database):
        with served(postgres, rate_limit="3/hour") as few, few.as_user(ALICE) as alice, few.as_user(BOB) as bob:
            assert [alice.get("/api/v1/tokens").status_code for _ in range(3)] == [200] * 3
            refused = alice.get("/api/v1/tokens")
            told = problem(refused, 429, "rate_limited")
            assert "3 per 1 hour" in told["title"]
            assert "FLOWLEDGER_RATE_LIMIT" in told["remedy"]
            assert 0 < int(refused.headers["retry-after"]) <= 3600
            assert bob.get("/api/v1/tokens").status_code == 200
            assert alice.get("/api/v1/health").status_code == 200

    def test_an_identity_is_counted_once_whatever_it_comes_with(self, postgres, database):
        with served(postgres, rate_limit="3/hour") as few:
            with few.as_user(ALICE) as jwt:
                token = jwt.post("/api/v1/tokens", json={"name": "ci"}).json()["token"]
            with few.as_(token) as bearer, few.as_user(ALICE, role="service_role") as operator:
                assert bearer.get("/api/v1/tokens").status_code == 200
                assert operator.get("/api/v1/tokens").status_code == 200
                problem(bearer.get("/api/v1/tokens"), 429, "rate_limited")
                problem(operator.get("/api/v1/tokens"), 429, "rate_limited")

    def test_an_address_that_guesses_tokens_is_not_listened_to_and_known_users_go_on(
        self, postgres, database, monkeypatch
    ):
        monkeypatch.setattr(limits, "FAILURES", "3/minute")
        with served(postgres) as few, few.as_user(ALICE) as alice:
            token = alice.post("/api/v1/tokens", json={"name": "ci"}).json()["token"]
            with few.as_(f"fl_{'x' * 43}") as guesser, few.as_(token) as bearer:
                assert bearer.get("/api/v1/tokens").status_code == 200
                assert [guesser.get("/api/v1/tokens").status_code for _ in range(3)] == [401] * 3
                refused = guesser.get("/api/v1/tokens")
                problem(refused, 429, "rate_limited")
                assert 0 < int(refused.headers["retry-after"]) <= 60
                problem(bearer.get("/api/v1/tokens"), 429, "rate_limited")
            assert alice.get("/api/v1/tokens").status_code == 200

    def test_an_address_that_guesses_links_is_not_listened_to(self, postgres, database, monkeypatch):
        monkeypatch.setattr(limits, "FAILURES", "3/minute")
        with served(postgres, has_login=True) as few, few.as_() as guesser:
            assert [guesser.get("/login?link=guess").status_code for _ in range(3)] == [401] * 3
            problem(guesser.get("/login?link=guess"), 429, "rate_limited")


# -- How much ---------------------------------------------------------------------------------------------------------


class TestSizes:
    def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_read(self, api):
        said = head(api, f"Content-Length: {MOST_BODY + 1}", start="POST /api/v1/tokens HTTP/1.1")
        heard = spoken(api.url, said).decode()
        assert heard.startswith("HTTP/1.1 413 ")
        assert "connection: close" in heard.lower()

    def test_a_body_that_does_not_say_its_size_is_read_as_far_as_it_may_go(self, as_alice):
        sent = 0

        def endless() -> Iterator[bytes]:
            nonlocal sent
            while sent < 500 * 65_536:
                sent += 65_536
                yield b"x" * 65_536

        try:
            told = problem(as_alice.post("/api/v1/tokens", content=endless(), headers=JSON), 413, "body_too_large")
            assert (told["field"], f"{MOST_BODY:,} bytes" in told["title"]) == ("body", True)
            assert "FLOWLEDGER_MAX_BODY_BYTES" in told["remedy"]
        except httpx.WriteError:
            pass  # The connection was closed while the client still sent.
        assert sent < 500 * 65_536

    def test_a_body_of_just_the_limit_is_read(self, as_alice):
        text = json.dumps({"name": "ci"})
        answer = as_alice.post("/api/v1/tokens", content=text + " " * (MOST_BODY - len(text)), headers=JSON)
        assert answer.status_code == 201

    @pytest.mark.parametrize("content_type", ["application/json", "application/vnd.x+json; charset=utf-8"])
    def test_json_that_is_too_deep_is_refused_by_its_depth(self, as_alice, content_type):
        deep = '{"name": ' + "[" * 100 + "]" * 100 + "}"
        answer = as_alice.post("/api/v1/tokens", content=deep, headers={"Content-Type": content_type})
        told = problem(answer, 422, "json_too_deep")
        assert (told["field"], "100 levels" in told["title"]) == ("body", True)

    def test_brackets_in_a_text_are_no_depth(self, as_alice):
        answer = as_alice.post("/api/v1/tokens", json={"name": '["{' * 30})
        assert answer.status_code == 201, answer.text

    @pytest.mark.parametrize(
        "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonl", ""]
    )
    def test_a_body_that_does_not_say_that_it_is_json_is_told_how_to(self, as_alice, content_type):
        """A page of anybody's can send these without asking."""
        answer = as_alice.post("/api/v1/tokens", content='{"name": "ci"}', headers={"Content-Type": content_type})
        told = problem(answer, 415, "not_json")
        assert (told["field"], "application/json" in told["remedy"]) == ("Content-Type", True)

    def test_headers_have_a_size_together(self, api):
        with api.as_() as client:
            fits = {f"X-{number}": "v" * 1000 for number in range(30)}
            assert client.get("/api/v1/health", headers=fits).status_code == 200
            told = problem(client.get("/api/v1/health", headers={"X": "v" * 33_000}), 431, "headers_too_large")
            assert f"{connections.MOST_HEAD_BYTES:,} bytes" in told["title"]
            problem(client.get("/api/v1/health?" + "q" * 33_000), 431, "headers_too_large")

    def test_a_header_that_never_ends_is_not_kept(self, api):
        heard = spoken(api.url, b"GET / HTTP/1.1\r\nX: ", *[b"v" * 65_536] * 100)
        assert heard == b"" or heard.startswith(b"HTTP/1.1 431 ")

    @pytest.mark.parametrize(
        "said", [b"\x16\x03\x01\x02\x00\x01\x00", b"HELO you\r\n\r\n", b"GET /\x00 HTTP/1.1\r\n\r\n"]
    )
    def test_what_is_no_http_is_told_so(self, api, said):
        heard = spoken(api.url, said).decode()
        assert heard.startswith("HTTP/1.1 400 ")
        assert '"not_http"' in heard
        assert "x-request-id: " in heard


class TestPatience:
    def test_a_request_that_comes_too_slowly_is_given_up(self, api, monkeypatch):
        monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
        heard = spoken(api.url, b"GET /api/v1/health HTTP/1.1\r\nHost: ").decode()
        assert heard.startswith("HTTP/1.1 408 ")
        assert '"request_too_slow"' in heard
        assert spoken(api.url) == b""

    def test_a_request_that_was_read_may_take_longer_than_one_that_comes(self, api, as_alice, monkeypatch):
        monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
        with api.as_user(ALICE) as slow:

            def pieces() -> Iterator[bytes]:
                yield b'{"name": '
                time.sleep(0.4)
                yield b'"slow"}'

            assert slow.post("/api/v1/tokens", content=pieces(), headers=JSON).status_code == 201

    def test_a_body_that_comes_too_slowly_is_given_up(self, api, monkeypatch):
        monkeypatch.setattr(limits, "BODY_SECONDS", 0.2)
        said = head(api, "Content-Length: 10", start="POST /api/v1/tokens HTTP/1.1") + b"{"
        heard = spoken(api.url, said).decode()
        assert heard.startswith("HTTP/1.1 408 ")
        assert "connection: close" in heard.lower()

    def test_half_a_request_starts_nothing(self, api, owner, alice, worker, flow, log):
        """A body is optional there: without it, the cancellation would be a good one."""
        execution = born(alice, flow)
        host, port = api.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as wire:
            start = f"POST /api/v1/executions/{execution}/cancellation HTTP/1.1"
            wire.sendall(head(api, f"Authorization: Bearer {signed(ALICE)}", "Content-Length: 20", start=start))
        assert requests(log)[0]["status"] is None
        assert owner.execute("select status from crewai_flow_executions").fetchone() == {"status": "pending"}


# -- Ids and problems -------------------------------------------------------------------------------------------------


class TestRequestIds:
    @pytest.mark.parametrize("given", ["a", "0192f3aa-77d1", "A.b_c-9", "x" * 128])
    def test_a_sane_id_is_the_callers_own_everywhere(self, api, log, given):
        with api.as_(**{"X-Request-Id": given}) as client:
            answer = client.get("/api/v1/tokens")
        assert answer.headers["x-request-id"] == given
        assert requests(log)[0]["request"] == given

    @pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a;b", '{"a": 1}', "é"])
    def test_an_insane_id_is_replaced(self, api, log, given):
        with api.as_() as client:
            answer = client.get("/api/v1/tokens", headers=[(b"X-Request-Id", given.encode())])
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
        assert requests(log)[0]["request"] == answer.headers["x-request-id"]

    def test_a_fault_tells_its_id_and_nothing_else_and_the_log_tells_the_story(self, api, log, monkeypatch):
        async def broken(*_: object) -> None:
            raise RuntimeError("a secret of the inside")

        monkeypatch.setattr(api.app.state.rates, "count", broken)
        with api.as_user(ALICE) as client:
            answer = client.get("/api/v1/tokens")
        told = problem(answer, 500, "internal")
        assert told["request"] == answer.headers["x-request-id"]
        assert "secret" not in answer.text
        story = next(fact for fact in log if fact["event"] == "request_failed")
        assert (story["request"], str(story["exc_info"])) == (told["request"], "a secret of the inside")

    def test_a_line_of_the_log_tells_who_asked_what_and_no_secret(self, api, log, database):
        with api.as_user(ALICE) as client:
            client.get("/api/v1/executions?search=a-secret-word")
        line = requests(log)[0]
        assert (line["method"], line["path"], line["status"]) == ("GET", "/api/v1/executions", 200)
        assert (line["user"], line["role"]) == (str(ALICE), "authenticated")
        assert line["duration_ms"] > 0
        assert "a-secret-word" not in str(line)
        assert "Bearer" not in str(line)


class TestProblems:
    @pytest.mark.parametrize(
        "path", ["/", "/api", "/api/v1", "/api/v1/nothing", "/api/v2/executions", "/%00", "/../etc"]
    )
    def test_a_path_that_is_not_there(self, api, path):
        with api.as_user(ALICE) as client:
            problem(client.get(path), 404, "not_found")

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("PUT", "/api/v1/tokens", {"GET", "POST"}),
            ("DELETE", "/api/v1/executions", {"GET", "POST"}),
            ("POST", "/api/v1/health", {"GET"}),
            ("PATCH", "/api/v1/executions/export", {"GET"}),
        ],
    )
    def test_a_method_that_is_not_there_is_told_which_are(self, api, method, path, allowed):
        with api.as_user(ALICE) as client:
            answer = client.request(method, path)
        told = problem(answer, 405, "method_not_allowed")
        assert set(answer.headers["allow"].split(", ")) == allowed
        assert all(one in told["remedy"] for one in allowed)

    def test_a_slash_too_many_is_no_other_place(self, api):
        with api.as_user(ALICE) as client:
            problem(client.get("/api/v1/tokens/"), 404, "not_found")

    def test_every_answer_has_the_headers_of_a_careful_server(self, api):
        with api.as_() as client:
            for path in ("/api/v1/health", "/api/v1/tokens", "/nothing"):
                headers = client.get(path).headers
                assert headers["x-content-type-options"] == "nosniff"
                assert headers["cache-control"] == "no-store"
                assert "default-src 'none'" in headers["content-security-policy"]
                assert "server" not in headers


# -- Probes -----------------------------------------------------------------------------------------------------------


class TestProbes:
    def test_who_is_alive_says_so_without_being_asked_who_asks(self, api):
        with api.as_() as probe:
            assert probe.get("/api/v1/health").json() == {"alive": True}
            ready = probe.get("/api/v1/readiness").json()
        assert ready["ready"]
        assert ready["schema_version"] >= 6

    def test_a_server_whose_database_turns_it_away_is_alive_and_not_ready_until_it_is_let_in_again(
        self, postgres, database, connect
    ):
        password = conninfo_to_dict(postgres.url("flowledger_api"))["password"]
        itself = connect("flowledger_api")
        with served(postgres) as server, server.as_() as probe:
            assert probe.get("/api/v1/readiness").status_code == 200
            try:
                itself.execute("alter role flowledger_api password 'another'")
                itself.execute(
                    """select pg_terminate_backend(pid) from pg_stat_activity
                       where usename = current_user and pid <> pg_backend_pid()"""
                )
                refused = wait_for(lambda: _unless(probe.get("/api/v1/readiness"), 200), what="it is not ready")
                told = problem(refused, 503, "database_unreachable")
                assert "FLOWLEDGER_DATABASE_URL" in told["remedy"]
                assert refused.headers["retry-after"]
                assert probe.get("/api/v1/health").status_code == 200
            finally:
                itself.execute(sql.SQL("alter role flowledger_api password {}").format(sql.Literal(password)))
            wait_for(lambda: _unless(probe.get("/api/v1/readiness"), 503), what="it is ready again")

    def test_a_server_that_is_older_than_the_schema_is_not_ready(self, api, database, owner):
        with api.as_() as probe:
            name = "insert into flowledger.schema_migrations (version, name, sha256) values (9999, '9999_later', 'x')"
            try:
                owner.execute(name)
                problem(probe.get("/api/v1/readiness"), 503, "schema_too_new")
            finally:
                owner.execute("delete from flowledger.schema_migrations where version = 9999")
            assert probe.get("/api/v1/readiness").status_code == 200


def _unless(answer: httpx.Response, status: int) -> httpx.Response | None:
    return None if answer.status_code == status else answer


# -- The end ----------------------------------------------------------------------------------------------------------


class TestTheEnd:
    def test_a_request_in_flight_is_answered_and_none_is_taken_after(self, postgres, database, owner):
        """It waits for a row that somebody else holds, while the server is told to stop."""
        with served(postgres) as server:
            with server.as_user(ALICE) as alice:
                token = alice.post("/api/v1/tokens", json={"name": "ci"}).json()["id"]
            answers: list[int] = []

            def revoke() -> None:
                with server.as_user(ALICE) as alice:
                    answers.append(alice.delete(f"/api/v1/tokens/{token}").status_code)

            with owner.transaction():
                owner.execute("select 1 from flowledger.tokens for update")
                asking = threading.Thread(target=revoke)
                asking.start()
                wait_for(lambda: _waits_for_a_lock(database), what="the request waits")
                server.stop()
                wait_for(lambda: _is_refused(server.url), what="nobody is let in any more")
                assert answers == []
            asking.join(10)
            assert answers == [204]

    async def test_streams_are_ended_so_that_who_watches_resumes_elsewhere(self, postgres, database, alice, flow):
        with served(postgres) as old:
            async with watching(old.url, ALICE, "executions") as watcher:
                began = time.monotonic()
                old.stop()
                await watcher.until(lambda: watcher.has_ended)
                assert not watcher.was_cut
        assert time.monotonic() - began < 5
        missed = born(alice, flow)
        with served(postgres) as new:
            async with watching(new.url, ALICE, "executions", after=watcher.last_id) as resumed:
                await resumed.until(lambda: resumed.executions == {missed})

    def test_a_request_that_does_not_end_is_not_waited_for_without_end(self, postgres, database, owner, monkeypatch):
        monkeypatch.setattr(serving_module, "_GRACE_SECONDS", 1)
        with served(postgres) as server, server.as_user(ALICE) as alice:
            token = alice.post("/api/v1/tokens", json={"name": "ci"}).json()["id"]
            with owner.transaction():
                owner.execute("select 1 from flowledger.tokens for update")
                asking = threading.Thread(target=_quietly, args=(alice.delete, f"/api/v1/tokens/{token}"))
                asking.start()
                wait_for(lambda: _waits_for_a_lock(database), what="the request waits")
                began = time.monotonic()
                server.stop()
                server.wait()
                # Sooner than by the 10 seconds of old.
                assert time.monotonic() - began < 9
            asking.join(10)


def _waits_for_a_lock(database: Any) -> bool:
    with psycopg.connect(database.url("flowledger")) as owner:
        found = owner.execute("select 1 from pg_locks where not granted").fetchone()
    return found is not None


def _is_refused(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return True
    return False


def _quietly(ask: Callable[[str], Any], path: str) -> None:
    with suppress(httpx.HTTPError):
        ask(path)


# -- Clients that stall -----------------------------------------------------------------------------------------------


class TestStalledClients:
    async def test_nothing_is_left_of_a_connection_whose_client_does_not_read(
        self, postgres, database, alice, flow, monkeypatch
    ):
        monkeypatch.setattr(live, "STALLED_SECONDS", 0.5)
        with served(postgres, send_buffer=8192) as server:
            async with watching(server.url, ALICE, "executions") as opened:
                start = opened.last_id
            for _ in range(3):
                alice.execute(
                    """insert into crewai_flow_executions (flow_id, execution_key, executed_by)
                       select %s, 'FLOW-' || gen_random_uuid(), auth.uid() from generate_series(1, 1000)""",
                    [flow],
                )
            with asking_without_reading(server, f"/api/v1/live?topics=executions&after={start}") as port:
                await asyncio.to_thread(wait_for, lambda: server.streams == 1, what="it has come")
                await asyncio.to_thread(wait_for, lambda: server.streams == 0, what="it has been left")
                await asyncio.to_thread(wait_for, lambda: not is_connected(port), seconds=2, what="nothing is left")

    @pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such limit")
    def test_a_download_that_is_not_read_ends(self, postgres, database, owner, flow, monkeypatch):
        monkeypatch.setattr(serving_module, "_SILENT_SECONDS", 1)
        owner.execute(
            """insert into crewai_flow_executions (flow_id, execution_key, executed_by, input_state)
               select %s, 'FLOW-' || n, %s, jsonb_build_object('text', repeat('x', 500000))
               from generate_series(1, 20) as n""",
            [flow, ALICE],
        )
        with served(postgres) as server:
            with asking_without_reading(server, "/api/v1/executions/export") as port:
                wait_for(lambda: is_connected(port), what="it has come")
                wait_for(lambda: not is_connected(port), what="it is gone")
            with server.as_user(ALICE) as reader:
                assert len(reader.get("/api/v1/executions/export").text) > 20 * 500_000

    def test_an_answer_is_sent_whole_at_once(self, api):
        """Head and body are two writes: without TCP_NODELAY the second waits for the first to be acknowledged."""
        with api.as_() as client:
            client.get("/api/v1/health")
            began = time.monotonic()
            for _ in range(20):
                client.get("/api/v1/health")
        assert time.monotonic() - began < 20 * 0.03

    def test_an_address_whose_system_has_no_such_limit_is_served_too(self, monkeypatch):
        monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)
        with closing(bound(Settings(server_port=0))) as taken:
            assert taken.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@contextmanager
def asking_without_reading(server: Served, path: str) -> Iterator[int]:
    """A client of Alice's that asks and never reads; its port."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect((host, int(port)))
        stalled.sendall(head(server, f"Authorization: Bearer {signed(ALICE)}", start=f"GET {path} HTTP/1.1"))
        yield stalled.getsockname()[1]


def is_connected(port: int) -> bool:
    """Whether the server still has a connection to this client."""
    return any(
        one.raddr and one.raddr.port == port and one.status != psutil.CONN_TIME_WAIT
        for one in psutil.net_connections("tcp4")
    )
