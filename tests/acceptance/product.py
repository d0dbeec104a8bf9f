"""flowledger as its users meet it: commands, worker processes and SQL, over one data directory."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch
from uuid import UUID, uuid4

import psutil
import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from flowledger.cli import main
from flowledger.database.embedded import EmbeddedPostgres
from flowledger.domain.status import Status
from tests.empty_ledger import empty

T = TypeVar("T")
Row = dict[str, Any]

PROJECT = Path(__file__).parent / "project"
ENDED = tuple(str(status) for status in Status if status.is_terminal)


def wait_for(fact: Callable[[], T], *, seconds: float = 40.0, every: float = 0.05, what: object = "") -> T:
    """The first true answer of `fact`."""
    give_up_at = time.monotonic() + seconds
    while True:
        if answer := fact():
            return answer
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {seconds:g} s: {what or fact}")
        time.sleep(every)


@dataclass(frozen=True)
class Product:
    """One ledger and one project."""

    postgres: EmbeddedPostgres
    project: Path
    user: UUID

    def environment(self, **settings: object) -> dict[str, str]:
        """The environment of a command; `settings` are flowledger's, None takes one away."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FLOWLEDGER_")}
        given = {
            "data_dir": self.postgres.data_dir,
            "project": self.project,
            "user_id": self.user,
            "log_format": "json",
            **settings,
        }
        ours = {f"FLOWLEDGER_{name.upper()}": str(value) for name, value in given.items() if value is not None}
        return {**kept, **ours, "COLUMNS": "200"}

    def run(
        self, *arguments: object, stdin: str | None = None, seconds: float = 60, **settings: object
    ) -> subprocess.CompletedProcess[str]:
        """A command, run to its end as a person's shell would in a pipe. One that hangs says where."""
        process = subprocess.Popen(
            command(*arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.environment(**settings), "PYTHONFAULTHANDLER": "1"},
            cwd=self.project if self.project.is_dir() else None,
        )
        try:
            out, err = process.communicate(stdin or "", timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            _, err = process.communicate(timeout=20)
            raise AssertionError(f"{arguments} did not end within {seconds:g} s:\n{err}") from None
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def call(self, *arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
        """The same in this very process: for commands of which a test wants dozens, at a second for each start."""
        out, err = io.StringIO(), io.StringIO()
        code: object = 0
        with (
            patch.dict(os.environ, self.environment(**settings), clear=True),
            patch.object(sys, "argv", ["flowledger", *map(str, arguments)]),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                main()
            except SystemExit as leaving:
                code = leaving.code
        return subprocess.CompletedProcess(arguments, int(str(code or 0)), out.getvalue(), err.getvalue())

    def json(self, *arguments: object, **settings: object) -> Any:
        """What a command with --json writes to stdout."""
        done = self.call(*arguments, "--json", **settings)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def worker(self, *arguments: object, log: Path, ready: bool = True, **settings: object) -> Iterator[WorkerProcess]:
        """A real worker process, killed at the end if it still lives."""
        with log.open("w") as stderr:
            process = subprocess.Popen(
                command("worker", *arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=self.environment(**settings),
            )
        worker = WorkerProcess(process, log)
        try:
            if ready:
                worker.wait_until_ready()
            yield worker
        finally:
            worker.end()

    @contextmanager
    def connection(self, login: str = "flowledger") -> Iterator[psycopg.Connection[Row]]:
        with psycopg.connect(self.postgres.url(login), autocommit=True, row_factory=dict_row) as connection:
            connection.execute("set lock_timeout = '10s'; set statement_timeout = '30s'")
            yield connection

    def sql(self, text: str, *values: object) -> list[Row]:
        """As the database's owner."""
        with self.connection() as connection:
            cursor = connection.execute(text.encode(), values)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def as_user(self, user: UUID) -> Iterator[psycopg.Connection[Row]]:
        """A connection as PostgREST opens one for a signed-in user."""
        with self.connection("flowledger_api") as connection:
            connection.execute("set role authenticated")
            claims = json.dumps({"sub": str(user), "role": "authenticated"})
            connection.execute(
                "select set_config('request.jwt.claim.sub', %s, false), set_config('request.jwt.claims', %s, false)",
                (str(user), claims),
            )
            yield connection

    def kickoff(self, flow: str, user: UUID | None = None, timeout: float | None = None, **inputs: object) -> UUID:
        """Starts an execution in one line of SQL, as the user."""
        with self.as_user(user or self.user) as connection:
            row = connection.execute(
                "select id from flowledger.kickoff(%s, %s, metadata => %s)",
                (flow, Jsonb(inputs), Jsonb({"timeout_seconds": timeout}) if timeout else None),
            ).fetchone()
            assert row is not None
            return UUID(str(row["id"]))

    def row(self, execution: object) -> Row:
        """Without input_state: what some users put there, Python cannot read."""
        return self.sql(
            "select id, flow_id, execution_key, status, output_state, error_type, error_message, error_stack, "
            "started_at, completed_at, duration_ms, token_count, board_meeting_id, executed_by, execution_mode, "
            "metadata "
            "from public.crewai_flow_executions where id = %s",
            execution,
        )[0]

    def rows(self) -> int:
        return int(self.sql("select count(*) as n from public.crewai_flow_executions")[0]["n"])

    def ended(self, execution: object, *, seconds: float = 40.0) -> Row:
        """The row, once it is terminal."""

        def look() -> Row | None:
            row = self.row(execution)
            return row if row["status"] in ENDED else None

        return wait_for(look, seconds=seconds, what=f"{execution} ends")

    def running(self, execution: object, *, seconds: float = 40.0) -> Row:
        """The row, once the flow has written its first line."""
        wait_for(lambda: self.logs(execution), seconds=seconds, what=f"{execution} prints")
        return self.row(execution)

    def logs(self, execution: object, stream: str = "stdout") -> str:
        rows = self.sql(
            "select text from flowledger.logs where execution_id = %s and stream = %s order by sequence",
            execution,
            stream,
        )
        return "".join(row["text"] for row in rows)

    def holder(self, execution: object) -> Row:
        """The worker that holds the execution's lease."""
        return self.sql(
            "select workers.* from flowledger.leases join flowledger.workers on workers.id = leases.worker_id "
            "where execution_id = %s",
            execution,
        )[0]


@dataclass(frozen=True)
class WorkerProcess:
    """A worker that runs, and its own log."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def id(self) -> str:
        return str(self.facts("worker_ready")[0]["worker"])

    def facts(self, event: str) -> list[Row]:
        """What the worker logged under this name."""
        told = []
        for line in self.log.read_text().splitlines():
            with suppress(ValueError):
                fact = json.loads(line)
                if fact.get("event") == event:
                    told.append(fact)
        return told

    def wait_until_ready(self) -> None:
        def look() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return bool(self.facts("worker_ready"))

        wait_for(look, seconds=90, what="the worker is ready")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 30) -> int:
        return self.process.wait(seconds)

    def descendants(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).children(recursive=True)
        return []

    def end(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "flowledger", *map(str, arguments)]


def emptied(postgres: EmbeddedPostgres, project: Path) -> Product:
    """The product on an empty ledger, for a user of its own."""
    product = Product(postgres, project, uuid4())
    with product.connection() as owner:
        empty(owner)
    return product
