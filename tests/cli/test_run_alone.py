"""`flowledger run` with nothing else at work: it starts what it needs and leaves nothing behind."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from flowledger.database.embedded import EmbeddedPostgres
from tests.acceptance.product import Product, command, wait_for

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def own(product: Product, tmp_path: Path) -> Iterator[Path]:
    """A data directory of its own, in which nothing runs before and nothing may run after."""
    data = tmp_path / "data"
    yield data
    wait_for(lambda: not _using(data), seconds=10, what=f"nothing runs for {data}: {_using(data)}")


def test_run_brings_its_own_postgres_and_worker_and_leaves_nothing_running(product: Product, own: Path) -> None:
    done = product.run("run", "good", "-i", "given=alone", data_dir=own)
    assert done.returncode == 0, done.stderr
    assert "alone" in done.stdout
    # The row is there when the server is started again.
    with EmbeddedPostgres.start(own) as postgres, psycopg.connect(postgres.url("flowledger")) as owner:
        rows = owner.execute("select status, metadata ? 'worker_id' from crewai_flow_executions").fetchall()
        workers = owner.execute("select count(*) from flowledger.workers").fetchone()
    assert rows == [("completed", True)]
    assert workers == (0,)


def test_ctrl_c_cancels_its_own_execution_and_leaves_nothing_running(product: Product) -> None:
    """On a terminal, where Ctrl-C reaches every process of the foreground group."""
    before = product.rows()
    master, slave = pty.openpty()
    running = subprocess.Popen(
        command("run", "slow", "-i", "seconds=60"),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**product.environment(grace_seconds=1), "TERM": "xterm"},
        start_new_session=True,
    )
    os.close(slave)
    said = bytearray()
    (row,) = wait_for(
        lambda: _read(master, said) and product.sql("select id from crewai_flow_executions where status = 'running'"),
        seconds=60,
        what=lambda: said,
    )
    product.running(row["id"])
    family = psutil.Process(running.pid).children(recursive=True)
    os.killpg(running.pid, signal.SIGINT)
    wait_for(lambda: _read(master, said) and running.poll() is not None, seconds=20, what="it ends")
    os.close(master)
    assert running.returncode == 130, said.decode()
    ended = product.row(row["id"])
    assert (ended["status"], ended["error_message"]) == ("cancelled", "interrupted on the terminal")
    assert product.rows() == before + 1
    assert not [process for process in family if process.is_running() and "postgres" not in process.name()]
    assert b"Traceback" not in said


def test_unknown_flow_exits_5_with_the_nearest_name_and_leaves_nothing(product: Product) -> None:
    before = product.rows()
    done = product.run("run", "goood")
    assert done.returncode == 5, done.stderr
    assert "Did you mean good?" in done.stderr
    assert product.rows() == before
    assert product.sql("select 1 from flowledger.workers") == []


def _read(master: int, said: bytearray) -> bool:
    """Takes what the terminal was sent; always true."""
    while select.select([master], [], [], 0)[0]:
        try:
            data = os.read(master, 65_536)
        except OSError:
            break
        if not data:
            break
        said += data
    return True


def _using(data: Path) -> list[str]:
    """Processes that were started for this data directory, by command line or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(data) in " ".join(process.cmdline()) or process.environ().get("FLOWLEDGER_DATA_DIR") == str(data):
                found.append(" ".join(process.cmdline())[:200])
        except psutil.Error:
            continue
    return found
