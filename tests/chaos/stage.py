"""What chaos plays on: an embedded Postgres, three real workers that are started again when they die, a stub model."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Self
from uuid import uuid4

import psutil

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.migrate import migrate
from flowledger.database.supervisor import Place
from flowledger.runner.namespace import SUPERVISOR_NAME
from tests.acceptance.product import Product, command

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
PROJECT = HERE / "project"
STUBBORN_WORKER = HERE / "stubborn_worker.py"

LEASE_SECONDS, GRACE_SECONDS, POLL_SECONDS = 2.0, 1.0, 1.0
WORKERS = 3
_SETTINGS = {
    "lease_seconds": LEASE_SECONDS,
    "grace_seconds": GRACE_SECONDS,
    "poll_seconds": POLL_SECONDS,
    "slots": 4,
    "timeout_seconds": 60,
    "import_seconds": 150,
}
_START_SECONDS = 180.0


@dataclass
class WorkerPlace:
    """One of the places where a worker runs; whoever dies there is followed by another."""

    number: int
    command: list[str]
    environment: dict[str, str]
    directory: Path
    process: subprocess.Popen[bytes] | None = None
    logs: list[Path] = field(default_factory=list)
    start_at: float = 0.0
    resume_at: float | None = None
    ended_by_itself: list[str] = field(default_factory=list)
    not_begun: list[str] = field(default_factory=list)
    """Ended before they were ready, as is right while the database is away."""
    _ready: bool = False
    _whole_line: int = 1

    def tend(self) -> None:
        """Starts, resumes or replaces the worker when it is time to."""
        now = time.monotonic()
        if self.resume_at is not None and now >= self.resume_at:
            self.resume()
        if self.process is None:
            if now >= self.start_at:
                self.start()
        elif self.process.poll() is not None:
            told = self.ended_by_itself if b'"worker_ready"' in self.logs[-1].read_bytes() else self.not_begun
            told.append(f"{self.logs[-1]}: exit status {self.process.returncode}")
            self._gone(restart_in=0.5)

    def start(self) -> None:
        log = self.directory / f"worker-{self.number}.{len(self.logs)}.log"
        self.logs.append(log)
        self._ready = False
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, env=self.environment
            )

    @property
    def is_ready(self) -> bool:
        """It has loaded its project and is not paused."""
        if self.process is None or self.resume_at is not None or self.process.poll() is not None:
            return False
        self._ready = self._ready or b'"worker_ready"' in self.logs[-1].read_bytes()
        return self._ready

    @property
    def is_working(self) -> bool:
        """Ready, and with all that it forks runs from in place."""
        return self.is_ready and len(self._line()) >= self._whole_line

    def take_measure(self) -> None:
        """How many processes stand between a worker and its runs depends on what the kernel allows."""
        self._whole_line = len(self._line())

    def kill(self, restart_in: float) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._gone(restart_in)

    def pause(self, seconds: float) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        self.resume_at = time.monotonic() + seconds

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.resume_at = None

    def drain(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Waits for it to be drained, not for ever."""
        if self.process is None:
            return
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.ended_by_itself.append(f"{self.logs[-1]}: not drained within 20 s")
            self.process.kill()
            self.process.wait()
        self.process = None

    def _gone(self, restart_in: float) -> None:
        self.process = None
        self.resume_at = None
        self.start_at = time.monotonic() + restart_in

    # -- Its processes ------------------------------------------------------------------------------------------------

    def launchers(self) -> list[psutil.Process]:
        """The launcher and what is forked from it before any template."""
        return self._line()[:-1]

    def templates(self) -> list[psutil.Process]:
        return self._line()[-1:]

    def supervisors(self) -> list[psutil.Process]:
        return [process for process in self._descendants() if _is_supervisor(process)]

    def children(self) -> list[psutil.Process]:
        found = []
        for supervisor in self.supervisors():
            with suppress(psutil.Error):
                found += supervisor.children()
        return found

    def _line(self) -> list[psutil.Process]:
        """From the launcher down to the youngest template."""
        if self.process is None:
            return []
        line: list[psutil.Process] = []
        with suppress(psutil.Error):
            below = [p for p in psutil.Process(self.process.pid).children() if "template" in p.cmdline()]
            while below:
                line.append(max(below, key=lambda process: process.create_time()))
                below = [p for p in line[-1].children() if not _is_supervisor(p) and "template" in p.cmdline()]
        return line

    def _descendants(self) -> list[psutil.Process]:
        if self.process is not None:
            with suppress(psutil.Error):
                return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def facts(self) -> Iterator[dict[str, Any]]:
        """What its workers logged, one after the other."""
        for log in self.logs:
            for line in log.read_text(errors="replace").splitlines():
                try:
                    yield {"log": log, **json.loads(line)}
                except ValueError:
                    yield {"log": log, "event": "unreadable", "line": line}


class Stage:
    """Everything of one run; leaving it ends all of it. `stubborn` workers do not give their leases up."""

    def __init__(self, rng: random.Random, *, stubborn: bool = False, keep: bool = False) -> None:
        self.rng = rng
        self._stubborn = stubborn
        self._keep = keep
        self._leaving = ExitStack()

    def __enter__(self) -> Self:
        with self._leaving:
            self.directory = self._leaving.enter_context(_directory(keep=self._keep))
            project = self.directory / "project"
            shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("__pycache__", ".flowledger"))
            self.effects = self.directory / "effects"
            self.effects.touch()
            self.postgres = self._leaving.enter_context(EmbeddedPostgres.start(self.directory / "data"))
            migrate(self.postgres.url("flowledger"))
            self.product = Product(self.postgres, project, uuid4())
            environment = {**self._leaving.enter_context(_stub_llm()), "CHAOS_EFFECTS": str(self.effects)}
            self.workers = [self._place(number, environment) for number in range(WORKERS)]
            self._leaving.callback(self._end_workers)
            self._leaving = self._leaving.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.close()

    def _place(self, number: int, environment: dict[str, str]) -> WorkerPlace:
        argv = [sys.executable, str(STUBBORN_WORKER), "worker"] if self._stubborn else command("worker")
        return WorkerPlace(number, argv, {**self.product.environment(**_SETTINGS), **environment}, self.directory)

    def tend(self) -> None:
        for worker in self.workers:
            worker.tend()

    def open(self) -> None:
        """Starts the workers and waits for all of them."""
        deadline = time.monotonic() + _START_SECONDS
        while not all(worker.is_ready for worker in self.workers):
            self.tend()
            told = [text for worker in self.workers for text in worker.ended_by_itself + worker.not_begun]
            if told or time.monotonic() > deadline:
                logs = "\n".join(log.read_text() for worker in self.workers for log in worker.logs)
                raise AssertionError(f"the workers did not start: {told}\n{logs}")
            time.sleep(0.05)
        for worker in self.workers:
            worker.take_measure()

    def postmaster(self) -> int:
        return int((Place(self.postgres.data_dir).cluster / "postmaster.pid").read_text().split("\n", 1)[0])

    def drain(self) -> None:
        for worker in self.workers:
            worker.drain()
        for worker in self.workers:
            worker.end()

    def _end_workers(self) -> None:
        for worker in self.workers:
            if worker.process is not None:
                worker.kill(restart_in=0)


def supervised_runs() -> list[tuple[int, str]]:
    """Every run on this machine that has a living supervisor: its pid and the execution's id."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            if Path(entry.path, "comm").read_text().strip() == SUPERVISOR_NAME:
                variables = Path(entry.path, "environ").read_bytes().split(b"\0")
                mark = next((one for one in variables if one.startswith(b"FLOWLEDGER_RUN=")), b"")
                found.append((int(entry.name), mark.partition(b"=")[2].decode()))
    return found


def _is_supervisor(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.name() == SUPERVISOR_NAME
    return False


@contextmanager
def _directory(*, keep: bool) -> Iterator[Path]:
    """Somewhere with a short path, since sockets live in it."""
    directory = Path(mkdtemp(prefix="fl-chaos-"))
    try:
        yield directory
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _stub_llm() -> Iterator[dict[str, str]]:
    sys.path.append(str(EXAMPLES))
    from stub_llm import StubServer, environment  # type: ignore[import-not-found]

    with StubServer() as url:
        yield environment(url)
