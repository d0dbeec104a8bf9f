"""What is documented is true: links lead somewhere, commands exist, SQL and the quickstart run, Python compiles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.api.serving import served
from tests.docs.pages import (
    DOCS,
    FORBIDDEN,
    REGISTRIES,
    ROOT,
    blocks,
    blocks_of,
    broken_links,
    pages,
    python_faults,
    toml_faults,
    wrong_commands,
)
from tests.ledger.law import ALICE

PAGES = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages()]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert broken_links(page, page.read_text()) == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_no_registry_and_no_machine(page):
    assert FORBIDDEN.findall(page.read_text()) == []


@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_commands_of_a_shell_block_exist(block):
    assert wrong_commands(block.text) == []


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_a_python_block_compiles(block):
    assert python_faults(block.text) is None


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_a_toml_block_can_be_read(block):
    assert toml_faults(block.text) is None


SQL = [block for block in blocks("sql") if block.why_not_run is None and "/reference/schema/" not in str(block)]


@pytest.fixture
def ledger(database):
    """The owner's address of an empty ledger that knows the flows which the docs start."""
    with psycopg.connect(database.url("flowledger"), autocommit=True) as owner:
        for key in ("greet", "lead_score"):
            owner.execute("select flowledger.remember_flow(%s, 'a flow of the docs', '', '{}', '')", [key])
        yield database.url("flowledger")
        owner.execute("drop role if exists ledger_worker")


@pytest.mark.parametrize("block", SQL, ids=str)
def test_a_sql_block_runs_on_a_real_ledger(block, ledger):
    with psycopg.connect(ledger, autocommit=True) as owner:
        owner.execute(block.text.encode())


def test_a_sql_block_that_starts_a_flow_starts_it(ledger):
    starting = [
        block for block in SQL if "kickoff(" in block.text or "insert into crewai_flow_executions" in block.text
    ]
    assert len(starting) >= 3
    with psycopg.connect(ledger, autocommit=True) as owner:
        for number, block in enumerate(starting, start=1):
            owner.execute(block.text.encode())
            born = owner.execute("select count(*) from crewai_flow_executions where status = 'pending'").fetchone()
            assert born == (number,)


def test_the_quickstart_runs_as_it_is_written(tmp_path, ledger):
    page = DOCS / "quickstart.md"
    written = list(blocks_of(page, page.read_text()))
    (tmp_path / "src" / "greeter").mkdir(parents=True)
    _first(written, "toml", tmp_path / "pyproject.toml")
    _first(written, "python", tmp_path / "src" / "greeter" / "main.py")
    shown = next(block.text for block in written if "✓ completed" in block.text)

    ran = _flowledger(tmp_path, ledger, "run", "greet", "-i", "name=Ada")
    assert (ran.returncode, ran.stdout.strip()) == (0, shown.splitlines()[-1])

    refused = next(block.text for block in written if "no such input" in block.text)
    ran = _flowledger(tmp_path, ledger, "run", "greet", "-i", "nme=Ada")
    assert ran.returncode == 2
    assert ran.stderr.strip().startswith(refused.partition("\n")[2].strip())


API_PAGE = DOCS / "how-to" / "api.md"


@pytest.fixture
def serving(database):
    """The API, and a token of a user's, beside a flow that the page starts."""
    with psycopg.connect(database.url("flowledger_worker"), autocommit=True) as worker:
        worker.execute("select flowledger.remember_flow('board_brief', 'Brief', '', '{}', '')")
    with served(database) as server, server.as_user(ALICE) as alice:
        yield server, alice.post("/api/v1/tokens", json={"name": "curl"}).json()["token"]


def _asked(server, token: str, text: str, place: Path) -> subprocess.CompletedProcess[str]:
    """Shell blocks as a person runs them, in the directory; the first failure ends them."""
    return subprocess.run(
        ["bash", "-c", "set -euo pipefail\n" + text.replace("http://127.0.0.1:8700", server.url)],
        cwd=place,
        env={**os.environ, "TOKEN": token},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_api_page_runs_as_it_is_written(serving, tmp_path):
    shell = [block for block in blocks_of(API_PAGE, API_PAGE.read_text()) if block.kind == "bash"]
    runs = [block for block in shell if not block.why_not_run]
    assert len(shell) - len(runs) == 2
    ran = _asked(*serving, "".join(block.text for block in runs), tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "304\n" in ran.stdout
    assert len((tmp_path / "executions.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "failed.csv").read_text().startswith("id,flow_id,")


def test_the_api_page_shows_a_problem_as_it_is(serving):
    server, token = serving
    shown = next(block.text for block in blocks_of(API_PAGE, API_PAGE.read_text()) if block.kind == "json")
    with server.as_(token) as client:
        assert client.post("/api/v1/executions", json={"flow": "board_breif"}).json() == json.loads(shown)


def _first(written, kind: str, path: Path) -> None:
    path.write_text(next(block.text for block in written if block.kind == kind))


def _flowledger(project: Path, address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flowledger", *arguments],
        cwd=project,
        env={**os.environ, "FLOWLEDGER_DATABASE_URL": address},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class TestTheCheckersFindWhatTheyShould:
    @pytest.mark.parametrize(
        "text",
        [
            "[a](nowhere.md)",
            "[a](CONTRIBUTING.md#no-such-heading)",
            '<img src="nowhere.svg">',
            "![a](nowhere.png)",
            "[a](#not-here)",
        ],
    )
    def test_a_link_that_leads_nowhere(self, text):
        assert broken_links(ROOT / "README.md", text) != []

    @pytest.mark.parametrize(
        "text", ["[a](CONTRIBUTING.md#the-ideal-commit)", "[a](docs)", "# Here\n[a](#here)", "[a](https://x.example)"]
    )
    def test_a_link_that_leads_somewhere_is_none(self, text):
        assert broken_links(ROOT / "README.md", text) == []

    @pytest.mark.parametrize(
        "text", ["in /home/ada/flows", *(f"index https://{registry}example/simple" for registry in REGISTRIES)]
    )
    def test_a_forbidden_word(self, text):
        assert FORBIDDEN.search(text)

    @pytest.mark.parametrize(
        "line",
        [
            "flowledger serve",
            "flowledger run greet --budget-eur 1",
            "flowledger executions compare ID",
            "make havoc",
            "A=1 make x",
        ],
    )
    def test_a_command_that_is_not_there(self, line):
        assert wrong_commands(line) == [line]

    @pytest.mark.parametrize(
        "line", ["flowledger run greet -i a=1 --timeout 5m", "flowledger db check # now", "make demo"]
    )
    def test_a_command_that_is_there_is_none(self, line):
        assert wrong_commands(line) == []

    def test_python_and_toml_that_cannot_be_read(self):
        assert python_faults("def (:") is not None
        assert toml_faults("a = ") is not None

    def test_a_request_that_is_refused(self, serving, tmp_path):
        opening = next(block.text for block in blocks_of(API_PAGE, API_PAGE.read_text()) if "ask()" in block.text)
        assert _asked(*serving, opening + 'ask "$API/executions/none"', tmp_path).returncode == 22

    def test_sql_that_does_not_run(self, ledger):
        with psycopg.connect(ledger, autocommit=True) as owner, pytest.raises(psycopg.errors.UndefinedTable):
            owner.execute("select 1; select * from no_such_table")

    def test_a_reason_not_to_run_belongs_to_the_next_block_only(self):
        text = "<!-- not run: needs a superuser -->\n```sql\na\n```\n\n```sql\nb\n```\n"
        assert [block.why_not_run for block in blocks_of(DOCS, text)] == ["needs a superuser", None]
