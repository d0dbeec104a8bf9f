"""Every endpoint of a server that runs: nobody without an identity gets anything, and nobody with one gets anything of
somebody else's, whatever they ask for.

The endpoints are those that the server describes: one that is added later is asked without anybody thinking of it, and
fails here until it shows its owner their own canary, or is named as one that shows nothing.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
import pytest

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.session import Claims
from tests.api.serving import SECRET, Served, served, signed
from tests.api.watching import watching
from tests.ledger.law import ALICE, BOB
from tests.walls.canaries import FLOW_KEY, OWNERS, Owner, everything_of, told
from tests.walls.endpoints import TOLD_TO_ALL, Ask, Endpoint, body_for, described, text_of, undescribed
from tests.walls.law import CAROL
from tests.walls.probes import STRANGER, Connection

Clients = dict[str, httpx.Client]

BOBS = OWNERS["bob"]
NOT_THERE = Owner("stranger", STRANGER)

FOR_EVERYBODY = {
    "GET /api/v1/health": "that the process answers",
    "GET /api/v1/readiness": "that the database answers",
}
"""What needs no identity, and what it tells."""

SHOW_NOTHING_OF_ONES_OWN = {
    **FOR_EVERYBODY,
    "GET /metrics": "numbers of the server, for operators",
    "GET /api/v1/flows/{key}/pause": "what operators decided about a flow, for operators",
    "GET /api/v1/crewai/{key}/inputs": "the inputs of a flow that all may start; nobody starts a draft",
}
"""Endpoints that hold nobody's rows, and why they need none."""

UNDESCRIBED = {
    "/api/v1/openapi.json": "the description itself",
    "/docs": "pages about the API",
    "/redoc": "pages about the API",
    "/login": "opens a session for whoever has a link that was not opened yet",
}
"""Where the server answers without describing it, there or below."""


@pytest.fixture(scope="module")
def server(planted: EmbeddedPostgres) -> Iterator[Served]:
    with served(planted, has_login=True, rate_limit="100000/second") as running:
        yield running


@pytest.fixture(scope="module")
def clients(server: Served) -> Iterator[Clients]:
    who = {"alice": (ALICE, "authenticated"), "bob": (BOB, "authenticated"), "carol": (CAROL, "service_role")}
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(server.as_(signed(user, role=role, exp=int(time.time()) + 3600)))
            for name, (user, role) in who.items()
        }


@pytest.fixture(scope="module")
def endpoints(server: Served) -> list[Endpoint]:
    return described(server.app)


def reads(endpoints: list[Endpoint]) -> list[Endpoint]:
    return [one for one in endpoints if one.method == "GET" and not one.is_stream]


def test_there_are_endpoints_of_every_kind(endpoints: list[Endpoint]) -> None:
    assert len(reads(endpoints)) >= 10
    assert [str(one) for one in endpoints if one.is_stream] == ["GET /api/v1/live"]
    assert {one.method for one in endpoints} >= {"GET", "POST", "DELETE"}


def test_what_is_not_described_is_known_and_tells_of_nobody(server: Served) -> None:
    found = undescribed(server.app)
    assert "/login" in found
    assert [path for path in found if not any(f"{path}/".startswith(f"{known}/") for known in UNDESCRIBED)] == []
    with server.as_() as nobody:
        for path in found:
            answer = nobody.get(path)
            assert answer.status_code < 500
            assert [told(text_of(answer), one) for one in OWNERS] == [[]] * len(OWNERS)


# -- Without an identity ----------------------------------------------------------------------------------------------


def signed_payload(payload: bytes) -> str:
    """A good signature under what is no claims."""
    return jwt.PyJWS().encode(payload, SECRET, algorithm="HS256")


def credentials() -> dict[str, dict[str, str]]:
    """Headers of those who are nobody, and what is wrong with each."""
    now = int(time.time())
    tokens: dict[str, str] = {
        "anon": signed(BOB, role="anon"),
        "anon without a sub": signed(None, role="anon", sub=None),
        "empty sub": signed("", sub=""),
        "no sub": signed("", sub=None),
        "sub is no UUID": signed("bob"),
        "sub is a number": signed("", sub=7),
        "sub is a list": signed("", sub=[str(BOB)]),
        "sub with more behind it": signed(f"{BOB}' or true"),
        "sub in braces": signed(f"{{{BOB}}}"),
        "unknown role": signed(BOB, role="postgres"),
        "role is a list": signed(BOB, role=["service_role"]),
        "payload is no JSON": signed_payload(b"{{{"),
        "payload is a list": signed_payload(json.dumps([{"sub": str(BOB), "exp": now + 60}]).encode()),
        "sub stands twice": signed_payload(f'{{"sub": "{ALICE}", "sub": "{BOB}", "exp": {now + 60}}}'.encode()),
        "no token at all": "garbage",
        "expired": signed(BOB, exp=now - 60),
        "never expires": signed(BOB, exp=None),
        "not valid yet": signed(BOB, nbf=now + 600),
        "another key": signed(BOB, key="another secret, just as long as the first"),
        "expired token": BOBS.expired_secret.text,
        "revoked token": BOBS.revoked_secret.text,
        "unknown token": "fl_unknown",
        "session as a token": BOBS.session.text,
    }
    return {
        "nothing": {},
        **{what: {"Authorization": f"Bearer {token}"} for what, token in tokens.items()},
        "basic": {"Authorization": "Basic Ym9iOmJvYg=="},
    }


def cookies(server: Served) -> dict[str, dict[str, str]]:
    name = f"flowledger_{httpx.URL(server.url).port}"
    secrets = {"link as a cookie": BOBS.link, "token as a cookie": BOBS.secret, "expired link": BOBS.expired_link}
    return {what: {"Cookie": f"{name}={secret.text}", "Origin": server.url} for what, secret in secrets.items()}


SIX = ("nothing", "anon", "empty sub", "sub is no UUID", "expired", "expired token")
"""Come to every endpoint; the others vary them at one."""


def test_whoever_is_nobody_gets_nothing_from_any_endpoint(server: Served, endpoints: list[Endpoint]) -> None:
    known = credentials()
    with server.as_() as client:
        for endpoint in endpoints:
            if str(endpoint) not in FOR_EVERYBODY:
                for what in SIX:
                    assert_nothing(client, endpoint, what, known[what])


def test_whoever_says_who_they_are_in_a_way_that_shows_nothing_is_nobody(
    server: Served, endpoints: list[Endpoint]
) -> None:
    listing = next(one for one in endpoints if str(one) == "GET /api/v1/executions")
    with server.as_() as client:
        for what, headers in {**credentials(), **cookies(server)}.items():
            assert_nothing(client, listing, what, headers)


def assert_nothing(client: httpx.Client, endpoint: Endpoint, what: str, headers: dict[str, str]) -> None:
    ask = next(endpoint.asks(BOBS))
    answer = client.request(endpoint.method, ask.path, params=ask.query, headers=headers)
    assert answer.status_code == 401, (what, str(endpoint), answer.text)
    assert told(text_of(answer), "bob", ask.said) == [], (what, str(endpoint))


def test_what_everybody_may_ask_tells_of_nobody(server: Served) -> None:
    with server.as_() as nobody:
        for endpoint in FOR_EVERYBODY:
            answer = nobody.get(endpoint.removeprefix("GET "))
            assert answer.status_code == 200
            assert [told(text_of(answer), one) for one in OWNERS] == [[]] * len(OWNERS)


# -- As somebody else -------------------------------------------------------------------------------------------------


def got(client: httpx.Client, ask: Ask) -> httpx.Response:
    answer = client.get(ask.path, params=ask.query)
    assert answer.status_code < 500, answer.text
    return answer


def test_no_answer_to_one_user_tells_of_another(clients: Clients, endpoints: list[Endpoint]) -> None:
    asked = 0
    for endpoint in reads(endpoints):
        for his, nowhere in zip(endpoint.asks(BOBS), endpoint.asks(NOT_THERE), strict=True):
            answers = [got(clients["alice"], ask) for ask in (his, nowhere)]
            asked += 1
            assert leaks(endpoint, answers[0], his) == []
            # What is somebody else's is as if it were not there.
            assert answers[0].status_code == answers[1].status_code, his
            assert as_problem(answers[0], BOBS) == as_problem(answers[1], NOT_THERE), his
    assert asked > 60


def test_no_answer_to_what_is_ones_own_or_nobodys_tells_of_another(clients: Clients, endpoints: list[Endpoint]) -> None:
    for endpoint in reads(endpoints):
        for one in ("alice", "nobody", "carol"):
            ask = next(endpoint.asks(OWNERS[one]))
            assert leaks(endpoint, got(clients["alice"], ask), ask) == []


def leaks(endpoint: Endpoint, answer: httpx.Response, ask: Ask) -> list[tuple[Ask, str]]:
    """What an answer to Alice tells of others."""
    text = text_of(answer)
    if author := TOLD_TO_ALL.get(str(endpoint)):
        text = re.sub(rf'"{author}":"[^"]*"', "", text)
    return [(ask, mark) for one in OWNERS if one != "alice" for mark in told(text, one, ask.said)]


def as_problem(answer: httpx.Response, owner: Owner) -> str:
    """A refusal without the names that were asked for."""
    text = answer.text if answer.is_error else ""
    for mark in sorted((*owner.markers, *(one.hex[:12] for one in owner.executions)), key=len, reverse=True):
        text = text.replace(mark, "IT")
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", text)


def test_each_endpoint_shows_its_owner_their_canary_or_is_known_to_hold_none(
    clients: Clients, endpoints: list[Endpoint]
) -> None:
    """Else there would be nothing behind the walls that the other tests walk along. Some show it to operators alone."""
    silent = {
        str(endpoint)
        for endpoint in reads(endpoints)
        if not any(
            told(text_of(got(clients[who], ask)), "bob", ask.said)
            for who in ("bob", "carol")
            for ask in endpoint.asks(BOBS)
        )
    }
    assert silent == set(SHOW_NOTHING_OF_ONES_OWN) & {str(endpoint) for endpoint in endpoints}


def test_an_operator_sees_everybodys_executions_through_the_same_endpoints(
    clients: Clients, endpoints: list[Endpoint]
) -> None:
    for endpoint in reads(endpoints):
        if endpoint.template.startswith("/api/v1/executions"):
            for one in OWNERS.values():
                ask = next(endpoint.asks(one))
                assert told(text_of(got(clients["carol"], ask)), one.name, ask.said), (str(endpoint), one.name)


# -- To change what is somebody else's --------------------------------------------------------------------------------


def test_no_request_of_one_user_changes_what_is_anothers(
    clients: Clients, endpoints: list[Endpoint], owner: Connection
) -> None:
    before = others(owner)
    for endpoint in endpoints:
        if endpoint.method == "GET":
            continue
        for ask in endpoint.asks(BOBS):
            body = body_for(endpoint, BOBS)
            answer = clients["alice"].request(endpoint.method, ask.path, params=ask.query, json=body)
            assert answer.status_code < 500, (str(endpoint), answer.text)
            said = [*ask.said, *map(str, body.values()), str(BOBS.ended), str(BOB)]
            assert told(text_of(answer), "bob", said) == [], str(endpoint)
            assert others(owner) == before, str(endpoint)


def test_a_token_that_may_only_see_changes_nothing_of_its_own_users(
    server: Served, endpoints: list[Endpoint], owner: Connection
) -> None:
    owner.execute("update flowledger.tokens set last_used_at = null")
    before = others(owner)
    with server.as_(BOBS.read_only_secret.text) as reader:
        assert reader.get("/api/v1/executions").status_code == 200
        for endpoint in endpoints:
            if endpoint.method != "GET":
                for ask in endpoint.asks(BOBS):
                    body = body_for(endpoint, BOBS)
                    answer = reader.request(endpoint.method, ask.path, params=ask.query, json=body)
                    assert answer.status_code == 403, str(endpoint)
    # But that the token was used.
    owner.execute("update flowledger.tokens set last_used_at = null")
    assert others(owner) == before


def test_a_key_that_reads_like_the_id_of_anothers_execution_does_not_hide_it(
    clients: Clients, owner: Connection
) -> None:
    """Whoever knows an id may choose it as the key of an execution of their own."""
    started = clients["alice"].post("/api/v1/executions", json={"flow": FLOW_KEY, "execution_key": str(BOBS.running)})
    assert started.status_code == 201
    for client in (clients["bob"], clients["carol"]):
        answer = client.get(f"/api/v1/executions/{BOBS.running}")
        assert answer.status_code == 200, answer.text
        assert answer.json()["id"] == str(BOBS.running)
    assert clients["alice"].get(f"/api/v1/executions/{BOBS.running}").json()["id"] == started.json()["id"]


def others(owner: Connection) -> dict[str, list[str]]:
    """All that is not Alice's, but for the servers that wait for changes."""
    return {table: rows for table, rows in everything_of(owner, "alice").items() if table != "flowledger.watchers"}


def test_the_same_requests_change_what_is_ones_own(clients: Clients, owner: Connection) -> None:
    before = others(owner)
    for method, path in [
        ("POST", f"/api/v1/executions/{BOBS.pending}/cancellation"),
        ("POST", f"/api/v1/executions/{BOBS.ended}/rerun"),
        ("DELETE", f"/api/v1/tokens/{BOBS.token}"),
    ]:
        answer = clients["bob"].request(method, path, json={} if method == "POST" else None)
        assert answer.is_success, answer.text
        now = others(owner)
        assert now != before
        before = now


# -- The live stream --------------------------------------------------------------------------------------------------


async def test_nobody_hears_of_what_is_somebody_elses(server: Served, owner: Connection) -> None:
    alices = OWNERS["alice"]
    async with (
        watching(server.url, ALICE, f"executions,flows,execution:{alices.running}") as hers,
        watching(server.url, BOB, f"executions,execution:{BOBS.running}") as his,
        watching(server.url, CAROL, f"executions,execution:{BOBS.running}", role="service_role") as operators,
    ):
        made = changed_by(owner, BOBS)
        await his.until(lambda: {BOBS.running, made} <= his.executions)
        await operators.until(lambda: {BOBS.running, made} <= operators.executions)
        # She goes on from where he is, and hears her own alone.
        async with watching(server.url, ALICE, "executions,flows", after=his.last_id) as hers_from_his:
            own = changed_by(owner, alices)
            await hers.until(lambda: {own, alices.running} <= hers.executions)
            await hers_from_his.until(lambda: own in hers_from_his.executions)
            assert hers.executions == {own, alices.running}
            assert hers_from_his.executions == {own}


def test_nobody_watches_what_is_somebody_elses_by_its_name(clients: Clients) -> None:
    problems = []
    for one in (BOBS, NOT_THERE):
        topics = {"topics": f"execution:{one.running}"}
        # Of one that is opened nothing is read: it would not end.
        with clients["alice"].stream("GET", "/api/v1/live", params=topics) as answer:
            assert answer.status_code == 404
            answer.read()
            problems.append(as_problem(answer, one))
    assert problems[0] == problems[1]


def changed_by(owner: Connection, one: Owner) -> UUID:
    """A birth, and an event and a log line of what runs, all of one owner's. Answers which was born."""
    born = uuid4()
    owner.execute(
        "insert into crewai_flow_executions (id, flow_id, execution_key, executed_by)"
        " select %s, id, %s, %s from crewai_flows where flow_key = %s",
        [born, f"{FLOW_KEY}-{born}", one.user, FLOW_KEY],
    )
    for table, columns in [
        ("timeline", "sequence, at, kind, name, execution_id) values (99, now(), 'log', 'told'"),
        ("logs", "sequence, at, stream, text, execution_id) values (99, now(), 'stdout', 'told'"),
    ]:
        owner.execute(f"insert into flowledger.{table} ({columns}, %s)".encode(), [one.running])
    return born


# -- The checks themselves --------------------------------------------------------------------------------------------


@pytest.fixture
def mistaken(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server takes everybody for Bob."""

    class Mistaken:
        async def claims(self, _: str) -> Claims:
            return Claims(BOB)

    monkeypatch.setattr(server.app.state, "verifier", Mistaken())


@pytest.mark.usefixtures("mistaken")
def test_a_leak_of_any_endpoint_would_be_found(clients: Clients, endpoints: list[Endpoint]) -> None:
    def has_leak(endpoint: Endpoint) -> bool:
        return any(leaks(endpoint, got(clients["alice"], ask), ask) for ask in endpoint.asks(BOBS))

    to_users = [one for one in reads(endpoints) if got(clients["bob"], next(one.asks(BOBS))).status_code != 403]
    silent = {str(endpoint) for endpoint in to_users if not has_leak(endpoint)}
    assert silent <= set(SHOW_NOTHING_OF_ONES_OWN)


def test_an_endpoint_with_a_parameter_that_nobody_knows_fails_the_walk() -> None:
    for parameters, template in [
        ((), "/api/v1/secrets/{drawer}"),
        (({"name": "drawer", "in": "query", "schema": {"type": "string"}},), "/api/v1/secrets"),
    ]:
        endpoint: Any = Endpoint("GET", template, parameters, is_stream=False)
        with pytest.raises(AssertionError, match="drawer"):
            list(endpoint.asks(BOBS))
