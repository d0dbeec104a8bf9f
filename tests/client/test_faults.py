"""What networks and busy servers do to a request: it is sent again where that is safe, and nowhere else."""

from __future__ import annotations

import logging
import socket
import time

import pytest

from flowledger.client import CancelAnswer
from flowledger.domain.status import Status
from flowledger.errors import (
    BudgetUsedUp,
    DatabaseBusy,
    InvalidInput,
    RateLimited,
    ServerUnreachable,
    UnexpectedAnswer,
)
from tests.api.serving import signed
from tests.client.proxy import Proxy, answering, cut_after, lost, refused
from tests.ledger.law import ALICE, born

PROBLEM = "application/problem+json"


def executions(owner) -> int:
    return owner.execute("select count(*) as found from crewai_flow_executions").fetchone()["found"]


# -- Sent again -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", [refused, lost, cut_after(200), answering(502), answering(503), answering(504)])
def test_a_start_whose_answer_is_lost_starts_one_execution(shaky, network, owner, flow, fate):
    network.next(fate, fate)
    execution = shaky.executions.create("FLOW", {"a": 1})
    assert len(network.requests) == 3
    assert len({one.headers["idempotency-key"] for one in network.requests}) == 1
    assert executions(owner) == 1
    assert shaky.executions.get(str(execution.id)).input_state == {"a": 1}


def test_the_count_of_executions_finds_what_started_twice(connected, network, owner, flow):
    client = connected(url=network.url, retry_seconds=0)
    network.next(lost)
    with pytest.raises(ServerUnreachable):
        client.executions.create("FLOW")
    client.executions.create("FLOW")
    assert executions(owner) == 2


def test_a_rerun_whose_answer_is_lost_starts_one_execution(shaky, network, alice, owner, flow):
    earlier = born(alice, flow)
    network.next(lost)
    again = shaky.executions.rerun(str(earlier))
    assert again.id != earlier
    assert executions(owner) == 2


def test_a_cancellation_whose_answer_is_lost_says_that_the_execution_has_ended(shaky, network, alice, flow):
    execution = born(alice, flow)
    network.next(lost)
    assert shaky.executions.cancel(str(execution)).answer is CancelAnswer.ENDED
    assert shaky.executions.get(str(execution)).status is Status.CANCELLED


def test_a_list_goes_on_behind_a_dropped_connection(shaky, network, alice, flow):
    ids = {born(alice, flow) for _ in range(5)}
    listed = shaky.executions.list(page_size=2)
    found = [next(listed).id]
    network.next(refused, cut_after(300))
    found += [one.id for one in listed]
    assert (set(found), len(found)) == (ids, 5)


def test_retry_after_is_waited_for(shaky, network, flow):
    network.next(answering(429, retry_after="1"))
    began = time.monotonic()
    shaky.executions.page()
    assert 1 <= time.monotonic() - began < 5
    assert len(network.requests) == 2


# -- Not sent again ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", [refused, lost, answering(503)])
def test_what_may_not_be_repeated_is_sent_once(shaky, network, fate):
    network.next(fate)
    with pytest.raises((ServerUnreachable, UnexpectedAnswer)):
        shaky.tokens.create("ci")
    assert len(network.requests) == 1


def test_what_lasts_is_not_asked_for_again(shaky, network, flow):
    body = '{"code": "budget_used_up", "title": "spent", "facts": {"reason": "spent"}}'
    network.next(answering(429, body, content_type=PROBLEM, retry_after="1"), answering(422))
    with pytest.raises(BudgetUsedUp):
        shaky.executions.create("FLOW")
    with pytest.raises(UnexpectedAnswer):
        shaky.executions.page()
    assert len(network.requests) == 2


def test_trying_ends_and_tells_the_last_trouble(connected, network):
    client = connected(url=network.url, retry_seconds=1)
    busy = '{"code": "database_busy", "title": "busy", "facts": {"reason": "full", "of_a_later_version": 1}}'
    network.next(*[answering(503, busy, content_type=PROBLEM)] * 20)
    began = time.monotonic()
    with pytest.raises(DatabaseBusy) as trouble:
        client.executions.page()
    assert trouble.value.reason == "full"
    assert 2 <= len(network.requests) <= 6
    assert time.monotonic() - began < 3


def test_a_pause_that_would_take_too_long_is_not_waited_for(connected, network):
    client = connected(url=network.url, retry_seconds=5)
    limited = '{"code": "rate_limited", "title": "x", "facts": {"limit": "1 per hour", "seconds": 3600}}'
    network.next(answering(429, limited, content_type=PROBLEM, retry_after="3600"))
    began = time.monotonic()
    with pytest.raises(RateLimited) as trouble:
        client.executions.page()
    assert trouble.value.seconds == 3600
    assert time.monotonic() - began < 2


def test_facts_that_do_not_fit_make_no_error_of_their_own(connected, network):
    client = connected(url=network.url, retry_seconds=0)
    for facts in ("{}", '{"limit": 1, "seconds": 1, "more": 2}', "[]", "null"):
        network.next(answering(429, f'{{"code": "rate_limited", "title": "slow down", "facts": {facts}}}'))
    kinds = []
    for _ in range(4):
        with pytest.raises((RateLimited, UnexpectedAnswer)) as trouble:
            client.executions.page()
        kinds.append(type(trouble.value))
    assert kinds == [UnexpectedAnswer, RateLimited, UnexpectedAnswer, UnexpectedAnswer]
    assert (trouble.value.problem, trouble.value.title) == ("rate_limited", "slow down")


def test_nobody_there_is_told_with_the_address(connected):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServerUnreachable) as trouble:
            connected(url=url, retry_seconds=0.3).executions.page()
    assert url in trouble.value.title


def test_an_export_that_breaks_off_leaves_no_file_and_is_not_taken_for_whole(shaky, network, alice, flow, tmp_path):
    for _ in range(20):
        born(alice, flow)
    (tmp_path / "all.jsonl").write_text("of yesterday")
    network.next(cut_after(2_000), path="export")
    with pytest.raises(ServerUnreachable):
        shaky.executions.export_to(tmp_path / "all.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == ["all.jsonl"]
    assert (tmp_path / "all.jsonl").read_text() == "of yesterday"
    shaky.executions.export_to(tmp_path / "all.jsonl")
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == 20


# -- The token --------------------------------------------------------------------------------------------------------


def test_a_token_goes_to_its_address_only(connected, network, server):
    with Proxy(server.url).running() as elsewhere:
        network.next(answering(307, location=f"{elsewhere.url}/api/v1/executions"))
        with pytest.raises(UnexpectedAnswer, match=elsewhere.url):
            connected(url=network.url).executions.page()
    assert elsewhere.requests == []
    assert network.requests[0].headers["authorization"].startswith("Bearer ")


def test_a_token_is_in_no_repr_no_log_and_no_error(connected, network, caplog, capfd):
    token = signed(ALICE)
    secret = token.rpartition(".")[2]
    client = connected(url=network.url, token=token, retry_seconds=0)
    network.next(refused, answering(500))
    with caplog.at_level(logging.DEBUG):
        for _ in range(2):
            with pytest.raises((ServerUnreachable, UnexpectedAnswer)) as trouble:
                client.executions.page()
            assert secret not in f"{trouble.value!r} {trouble.value} {vars(trouble.value)}"
        client.executions.page()
    assert len(caplog.records) > 3
    assert secret not in caplog.text + "".join(capfd.readouterr())
    assert secret not in f"{client!r} {client._wire!r} {vars(client._wire._address)}"
    assert network.requests[0].headers["authorization"] == f"Bearer {token}"


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "s\u00e9cret"])
def test_a_token_that_no_header_can_hold_is_refused_without_being_repeated(connected, token):
    with pytest.raises(InvalidInput) as refusal:
        connected(token=token)
    assert refusal.value.field == "token"
    assert token not in str(refusal.value)
