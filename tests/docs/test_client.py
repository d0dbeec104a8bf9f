"""The page about the client runs as it is written, against a real server, whose flow ends as its input wants."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.api.serving import served, signed
from tests.docs.pages import DOCS, Block, blocks_of
from tests.ledger.law import ALICE, append_usage, claim, finish, used

PAGE = DOCS / "how-to" / "client.md"
BLOCKS = [block for block in blocks_of(PAGE, PAGE.read_text()) if block.kind == "python"]


@pytest.fixture(scope="module")
def server(postgres) -> Iterator[str]:
    with served(postgres) as running:
        yield running.url


@pytest.fixture
def worker(database) -> Iterator[None]:
    """Works on lead_score: fails for Nobody, completes for everybody else."""
    stop = threading.Event()

    def work() -> None:
        with psycopg.connect(database.url("flowledger_worker"), autocommit=True, row_factory=dict_row) as worker:
            flow = worker.execute("select id from flowledger.remember_flow('lead_score', 'Leads', '', '{}', '')")
            flow_id = flow.fetchone()["id"]
            ready.set()
            while not stop.wait(0.02):
                for held in claim(worker, flow_id):
                    append_usage(worker, held, used())
                    is_nobody = held["inputs"]["company"] == "Nobody"
                    outcome = {"error_type": "LookupError"} if is_nobody else {"output": {"score": 87}, "tokens": 110}
                    finish(
                        worker, held["execution_id"], held["fence"], "failed" if is_nobody else "completed", **outcome
                    )

    ready = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(10)
    yield
    stop.set()
    thread.join(10)


@pytest.fixture
def told(server, worker, monkeypatch, tmp_path, capsys):
    """Runs a block of the page and answers with what it printed."""
    monkeypatch.setenv("FLOWLEDGER_URL", server)
    monkeypatch.setenv("FLOWLEDGER_TOKEN", signed(ALICE))
    monkeypatch.chdir(tmp_path)

    def told(block: Block) -> str:
        capsys.readouterr()
        exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
        return "".join(line for line in capsys.readouterr().out.splitlines(keepends=True) if "[info" not in line)

    return told


def test_the_page_runs_as_it_is_written(told, tmp_path):
    run, failed, gathered, later, listed = map(told, BLOCKS)
    assert run == "{'score': 87} 110 None\n"
    assert failed.splitlines()[-1] == "LookupError None"
    assert gathered == "[None, None]\n"
    assert later.splitlines()[-1].startswith("gpt Usage(input_tokens=100")
    assert listed.endswith(" LookupError\n")
    assert (tmp_path / "executions.csv").read_text().count("lead_score") >= 5


def test_a_block_that_does_not_do_as_it_says_is_found(told):
    with pytest.raises(AttributeError):
        told(Block(PAGE, 1, "python", BLOCKS[0].text.replace("client.run", "client.sprint"), None))
