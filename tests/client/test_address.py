"""Where a client goes and what it carries there, given or from the environment."""

from __future__ import annotations

import pytest

from flowledger.client.address import Address, checked_key
from flowledger.errors import InvalidInput


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("FLOWLEDGER_URL", "FLOWLEDGER_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def test_what_is_given_comes_before_the_environment(monkeypatch):
    monkeypatch.setenv("FLOWLEDGER_URL", "http://of.the.environment")
    monkeypatch.setenv("FLOWLEDGER_TOKEN", "fl_environment\n")
    found = Address.of(None, None)
    assert found.url == "http://of.the.environment"
    assert found.headers == {"Authorization": "Bearer fl_environment"}
    given = Address.of("https://given", "fl_given")
    assert (given.url, given.headers) == ("https://given", {"Authorization": "Bearer fl_given"})


def test_without_a_token_nobody_is_told_who_asks():
    assert Address.of("http://here", None).headers == {}


@pytest.mark.parametrize("url", ["https://x.example/", "https://x.example/api/v1", "https://x.example/api/v1/"])
def test_the_address_of_the_api_is_the_servers(url):
    assert Address.of(url, None).url == "https://x.example"


def test_a_server_may_lie_below_a_path():
    assert Address.of("https://x.example/flows/", None).url == "https://x.example/flows"


@pytest.mark.parametrize(
    "url",
    ["", "x.example", "ftp://x.example", "http://", "http://x:99999", "http://x/?a=1", "http://x/#a", "http://x y"],
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(InvalidInput, match="url"):
        Address.of(url, None)


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(InvalidInput, match="password") as refusal:
        Address.of("https://ada:hunter2@x.example", None)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:8700", True),
        ("http://localhost", True),
        ("http://[::1]:1", True),
        ("http://10.0.0.1", False),
        ("https://localhost.example", False),
    ],
)
def test_this_machine_is_never_reached_through_a_proxy(url, here):
    assert Address.of(url, None).is_on_this_machine is here


@pytest.mark.parametrize("key", ["", "a b", "k" * 201, "\u00e9"])
def test_a_key_that_the_server_would_not_take_is_refused(key):
    with pytest.raises(InvalidInput, match="idempotency_key"):
        checked_key(key)
