"""The commands around the API by real processes: server, tokens, login, and up with its one-time link."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.acceptance.product import Product, command, emptied, wait_for
from tests.api.serving import SECRET, served, signed
from tests.ledger.law import ALICE

LINK = re.compile(r"http://\S+/login\?link=\S+")


@pytest.fixture(scope="module")
def product(postgres, tmp_path_factory) -> Product:
    """A project with one flow, which nobody runs."""
    project = tmp_path_factory.mktemp("project")
    (project / "pyproject.toml").write_text('[project]\nname = "idle"\n[tool.crewai]\ntype = "flow"\n')
    (project / "src/idle").mkdir(parents=True)
    (project / "src/idle/main.py").write_text("from crewai.flow.flow import Flow\n\n\nclass Idle(Flow):\n    pass\n")
    return emptied(postgres, project)


@contextmanager
def started(product: Product, log: Path, *arguments: str, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    """A command that goes on until it is stopped, without a terminal and with lines of 80 columns."""
    environment = {**product.environment(**settings), "COLUMNS": "80"}
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, env=environment
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def told(process: subprocess.Popen[bytes], log: Path, pattern: str) -> str:
    """The first match in what it says, once it is there."""

    def look() -> re.Match[str] | None:
        assert process.poll() is None, log.read_text()
        return re.search(pattern, log.read_text())

    return wait_for(look, what=pattern)[0]


def stopped(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(20)


# -- server -----------------------------------------------------------------------------------------------------------


def test_a_server_answers_at_a_database_of_ones_own_until_it_is_told_to_stop(product, tmp_path):
    log = tmp_path / "log"
    given = {"database_url": product.postgres.url("flowledger_api"), "jwt_secret": SECRET}
    with started(product, log, "server", "--port", "0", **given) as process:
        told(process, log, r'"server_ready"')
        url = json.loads(log.read_text().splitlines()[0])["url"]
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {signed(ALICE)}"}) as alice:
            assert alice.get("/api/v1/executions").json() == {"executions": [], "next": None}
            request = alice.get("/api/v1/readiness", headers={"X-Request-Id": "of-mine"}).headers["x-request-id"]
        assert request == "of-mine"
        assert stopped(process) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["server_ready", "request"]
    assert SECRET not in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "said"),
    [
        (("--host", "0.0.0.0"), {}, 2, "can be reached by others, and no key for JWTs is configured"),
        ((), {"jwt_secret": "short"}, 2, "has 5 bytes, fewer than 32"),
        ((), {"rate_limit": "often"}, 2, "'often' is no rate"),
        (("--host", "192.0.2.1"), {"jwt_secret": SECRET}, 2, "192.0.2.1:8700 cannot be served at"),
        ((), {"database_url": "postgresql://nobody@127.0.0.1:1/none"}, 1, "the database at 127.0.0.1:1/none"),
        ((), {"database_url": "postgres:/nobody"}, 2, "is no Postgres URL"),
    ],
)
def test_a_server_that_cannot_be_served_says_why(product, arguments, settings, code, said):
    refused = product.call("server", *arguments, **settings)
    assert refused.returncode == code, refused.stderr
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_server_is_not_started_on_a_schema_that_it_does_not_know(product):
    """Also by a login that has no right of its own, and so cannot look."""
    product.sql("insert into flowledger.schema_migrations (version, name, sha256) values (9999, '9999_later', 'x')")
    try:
        for login in ("flowledger", "flowledger_api"):
            refused = product.call("server", "--port", "0", database_url=product.postgres.url(login))
            assert refused.returncode == 1
            assert "the database has schema 9999" in refused.stderr
    finally:
        product.sql("delete from flowledger.schema_migrations where version = 9999")


def test_an_address_that_is_taken_is_told(product, postgres):
    with served(postgres) as other:
        refused = product.call("server", "--port", other.url.rpartition(":")[2])
    assert refused.returncode == 2
    assert "Address already in use" in refused.stderr
    assert "--port" in refused.stderr


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_is_made_used_listed_and_revoked(product, postgres):
    secret = product.call("tokens", "create", "ci", "--scope", "read", "--expires", "90d").stdout.strip()
    with served(postgres) as server, server.as_(secret) as bearer:
        assert bearer.get("/api/v1/executions").status_code == 200
        assert bearer.post("/api/v1/executions", json={"flow": "any"}).status_code == 403
        listed = product.json("tokens", "list")
        assert [(one["name"], one["user_id"], one["scopes"]) for one in listed] == [("ci", str(product.user), ["read"])]
        assert listed[0]["last_used_at"]
        assert secret not in json.dumps(listed)
        assert product.json("tokens", "revoke", "ci") == {"revoked": True}
        assert bearer.get("/api/v1/executions").status_code == 401
    assert product.json("tokens", "list") == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("create", ""), 2, "name"),
        (("create", "x", "--expires", "soon"), 2, "soon"),
        (("create", "x", "--scope", "admin"), 2, "admin"),
        (("revoke", "none"), 5, "there is no token 'none'"),
    ],
)
def test_a_token_that_cannot_be_made_or_found_is_told(product, arguments, code, said):
    refused = product.call("tokens", *arguments)
    assert (refused.returncode, said in refused.stderr) == (code, True), refused.stderr
    assert "Traceback" not in refused.stderr


# -- up and login -----------------------------------------------------------------------------------------------------


@contextmanager
def entered(link: str) -> Iterator[httpx.Client]:
    """A browser that opened the link."""
    with httpx.Client(base_url=link.partition("/login")[0], trust_env=False, follow_redirects=True) as browser:
        assert browser.get(link).status_code == 200
        yield browser


def test_up_prints_a_link_that_lets_one_browser_in_and_login_another(product, tmp_path):
    log = tmp_path / "log"
    with started(product, log, "up", "--port", "0", log_format="console") as process:
        link = told(process, log, LINK.pattern + r"\n")
        with entered(link.strip()) as browser:
            assert browser.get("/api/v1/executions").json() == {"executions": [], "next": None}
        assert httpx.get(link.strip()).status_code == 401
        another = product.call("login").stdout.strip()
        assert LINK.fullmatch(another)
        with entered(another) as browser:
            assert browser.get("/api/v1/tokens").status_code == 200
        assert stopped(process) == 0
    refused = product.call("login")
    assert (refused.returncode, "Start `flowledger up`" in refused.stderr) == (2, True)


def test_what_up_prints_is_no_entrance_where_logins_are_not_taken(product, tmp_path):
    """At a public address people come with tokens: the first page is all that can be named."""
    log = tmp_path / "log"
    with started(product, log, "up", "--host", "0.0.0.0", "--port", "0", jwt_secret=SECRET) as process:
        greeting = told(process, log, r"Open  http://\S+")
        assert "login" not in greeting
        assert "Once, within 10 minutes" not in log.read_text()
        assert stopped(process) == 0
