"""Nothing of a run outlives it: each way to leave a process behind, for each way that a run is ended from outside.

As root and as an ordinary user without a passwd entry, with namespaces and without. Every case runs in a real worker.
Without namespaces a killed worker's leftovers may live until a worker starts again; with them, two seconds.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

import pytest

from flowledger.database.embedded import EmbeddedPostgres
from tests.acceptance.product import Product, Row, WorkerProcess, emptied, wait_for

pytestmark = pytest.mark.timeout(300)

KINDS = (
    "plain",
    "setsid",
    "double fork",
    "ignores TERM",
    "thread",
    "stopped",
    "bomb of 200",
    "holds the pipe",
    "never execs",
)
CAUSES = {
    "timeout": ("timeout", "Timeout"),
    "cancel": ("cancelled", "Cancelled"),
    "worker stopped": ("failed", "WorkerStopped"),
    "worker killed": ("failed", "WorkerLost"),
}
MODES = ("namespace", "subreaper")
USERS = ("root", "ordinary") if os.geteuid() == 0 else ("ordinary",)

SURVIVAL_SECONDS = 2.0
LEAST_TIMEOUT_SECONDS = 4.0
"""On a busy machine more: what is killed must have left its processes by then."""
LEASE_SECONDS = 10.0
GRACE_SECONDS = 1.0
STRANGER = 54_321
"""A uid that no passwd knows."""

PROJECT = Path(__file__).parent / "escapes"

_WORKER = """
import sys
from functools import partial
from flowledger.cli import main
from flowledger.runner.templates import Template
Template.start = partial(Template.start, isolation=sys.argv.pop(1))
main()
"""


@dataclass(frozen=True)
class Case:
    """What was found of one run, some time after its end."""

    row: Row
    left: bool
    survivors: list[str]
    seconds: float
    """From the end of the run to when nothing of it was left."""


@dataclass
class Station:
    """One user in one mode: a project of its own, so that its workers take nobody else's runs."""

    product: Product
    user: str
    mode: str
    directory: Path
    cases: dict[tuple[str, str], Case] = field(default_factory=dict)
    trouble: Exception | None = None

    def try_to_carry_out(self) -> None:
        """One station's trouble is not another's."""
        try:
            self.carry_out()
        except Exception as trouble:
            self.trouble = trouble

    def carry_out(self) -> None:
        """All causes for all kinds, with two workers: the second is also the next start after the first was killed."""
        with self._worker("first") as worker:
            begun = time.monotonic()
            runs = self._leave("worker killed")
            timeout = LEAST_TIMEOUT_SECONDS + 2 * (time.monotonic() - begun)
            worker.process.kill()
            worker.wait()
            killed_at = time.monotonic()
            if self.mode == "namespace":
                self._settle("worker killed", runs, killed_at)
        with self._worker("second") as worker:
            if self.mode == "subreaper":
                self._settle("worker killed", runs, time.monotonic())
            timeouts, cancels = self._leave("timeout", timeout), self._leave("cancel")
            self._cancel(cancels.values())
            for cause, ends in (("cancel", cancels), ("timeout", timeouts)):
                self._settle(cause, ends, self._wait_for_ends(ends))
            stops = self._leave("worker stopped")
            worker.signal(signal.SIGTERM)
            wait_for(lambda: worker.facts("worker_draining"), what="the worker drains")
            worker.signal(signal.SIGTERM)
            assert worker.wait(30) is not None
            self._settle("worker stopped", stops, time.monotonic())
        self._read_rows()

    # -- Steps --------------------------------------------------------------------------------------------------------

    def _leave(self, cause: str, timeout: float | None = None) -> dict[str, UUID]:
        """Starts one run of each kind; returns when each has left its processes."""
        runs = {
            kind: self.product.kickoff(self._flow, timeout=timeout, kind=kind, mark=self._mark(cause, kind))
            for kind in KINDS
        }
        for kind, execution in runs.items():
            begun = wait_for(lambda e=execution: self.product.logs(e) or self._ended_early(e), seconds=60, what=kind)
            assert begun is not True, (self.user, self.mode, cause, kind, self.product.row(execution))
        return runs

    def _ended_early(self, execution: UUID) -> bool:
        return self.product.row(execution)["status"] not in ("pending", "running")

    def _mark(self, cause: str, kind: str) -> str:
        return f"mark of {self.user}, {self.mode}, {cause}, {kind}, {self.directory.name}"

    def _cancel(self, executions: object) -> None:
        with self.product.as_user(self.product.user) as me:
            for execution in executions:  # type: ignore[attr-defined]
                me.execute("select flowledger.cancel(%s)", (execution,))

    def _wait_for_ends(self, runs: dict[str, UUID]) -> float:
        for execution in runs.values():
            self.product.ended(execution)
        return time.monotonic()

    def _settle(self, cause: str, runs: dict[str, UUID], ended_at: float) -> None:
        """Looks until nothing is left, for as long as something may be."""
        gone_after: dict[str, float] = {}
        while len(gone_after) < len(runs):
            found = processes_of({str(run): self._mark(cause, kind) for kind, run in runs.items()})
            late = time.monotonic() - ended_at
            gone_after.update({kind: late for kind in runs if kind not in gone_after and not found[str(runs[kind])]})
            if late > SURVIVAL_SECONDS:
                break
            time.sleep(0.05)
        for kind, run in runs.items():
            survivors = [] if kind in gone_after else found[str(run)]
            seconds = gone_after.get(kind, time.monotonic() - ended_at)
            self.cases[cause, kind] = Case({"id": run}, "left" in self.product.logs(run), survivors, seconds)

    def _read_rows(self) -> None:
        """After all is over, so that nobody waits for leases in between."""
        for key, case in self.cases.items():
            self.cases[key] = replace(case, row=self.product.row(case.row["id"]))

    # -- The worker ---------------------------------------------------------------------------------------------------

    @property
    def _flow(self) -> str:
        return f"leaves_{self.user}_{self.mode}"

    @contextmanager
    def _worker(self, name: str) -> Iterator[WorkerProcess]:
        log = self.directory / f"{name}.log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=self._environment(),
                cwd=self.directory,
            )
        worker = WorkerProcess(process, log)
        try:
            worker.wait_until_ready()
            assert worker.facts("worker_ready")[0]["flows"].count(self._flow) == 1
            yield worker
        finally:
            worker.end()

    def _command(self) -> list[str]:
        worker = [sys.executable, "-c", _WORKER, self.mode, "worker"]
        return worker if self._is_ourselves else as_stranger(worker, self._socket_dir, self.directory)

    @property
    def _is_ourselves(self) -> bool:
        return self.user == "root" or os.geteuid() != 0

    @property
    def _socket_dir(self) -> Path:
        return self.product.postgres.socket_dir

    def _environment(self) -> dict[str, str]:
        """With a URL of its own: the data directory belongs to us, and a stranger may not look into it."""
        url = self.product.postgres.url("flowledger_worker")
        if not self._is_ourselves:
            url = url.replace(quote(str(self._socket_dir), safe=""), quote(str(self.directory / "pg"), safe=""))
        settings: dict[str, object] = {
            "data_dir": self.directory / "data",
            "database_url": url,
            "slots": 2 * len(KINDS),
            "lease_seconds": LEASE_SECONDS,
            "grace_seconds": GRACE_SECONDS,
            "poll_seconds": 0.5,
            "import_seconds": 120,
        }
        return {**self.product.environment(**settings), "HOME": str(self.directory), "TMPDIR": str(self.directory)}


def as_stranger(command: list[str], socket_dir: Path, directory: Path) -> list[str]:
    """`command` as an ordinary user without a passwd entry, who can read our interpreter and reach our database.

    In mounts of its own: the interpreter may lie below a home directory that is closed to others, so that an open
    directory with only the interpreter in it is laid over that. The sockets are shown below `directory`.
    """
    lines = [f"mount --bind {shlex.quote(str(socket_dir))} {shlex.quote(str(directory / 'pg'))}"]
    prefix = Path(sys.base_prefix)
    if (closed := _closed_to_others(prefix)) is not None:
        aside, place, over = (shlex.quote(str(path)) for path in (directory / "python", prefix, closed))
        lines += [
            f"mount --bind {place} {aside}",
            f"mount -t tmpfs -o mode=755 none {over}",
            f"mkdir -p {place}",
            f"mount --bind {aside} {place}",
        ]
    user = ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups", "--inh-caps=-all"]
    lines.append(f"exec {shlex.join([*user, *command])}")
    return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", "\n".join(lines)]


def _closed_to_others(path: Path) -> Path | None:
    """The topmost directory on the way to `path` that strangers may not enter."""
    return next((each for each in reversed([path, *path.parents]) if not each.stat().st_mode & stat.S_IXOTH), None)


def processes_of(marks: dict[str, str]) -> dict[str, list[str]]:
    """Execution id -> its living processes, found by its mark in the environment or its word in the command line."""
    found: dict[str, list[str]] = {run: [] for run in marks}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            environment = b""
            with suppress(PermissionError):
                environment = (entry / "environ").read_bytes()
            for run, mark in marks.items():
                if f"FLOWLEDGER_RUN={run}".encode() in environment or mark.encode() in command:
                    state, flags = _state_of(entry)
                    if state not in "ZX" and not flags & _EXITING and not _is_sentenced(entry):
                        found[run].append(f"{entry.name} {state} {command!r:.80}")
    return found


_EXITING = 0x4
"""PF_EXITING: the kernel takes it apart."""


def _state_of(process: Path) -> tuple[str, int]:
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[6])


def _is_sentenced(process: Path) -> bool:
    """SIGKILL is on its way: it runs no instruction of its own any more, and waits for a processor to end on."""
    lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return any(int(lines[name], 16) >> (signal.SIGKILL - 1) & 1 for name in ("SigPnd", "ShdPnd"))


# -- The matrix -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Not pytest's own, into which only its user may look."""
    path = Path(tempfile.mkdtemp(prefix="flowledger-kill-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def stations(postgres: EmbeddedPostgres, directory: Path) -> Iterator[dict[tuple[str, str], Station]]:
    """The whole matrix, carried out two stations at a time."""
    stations = {}
    emptied(postgres, PROJECT)
    with _open_to_others(postgres.socket_dir):
        for user in USERS:
            for mode in MODES:
                stations[user, mode] = _station(postgres, user, mode, directory / f"{user}-{mode}")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(Station.try_to_carry_out, stations.values()))
        yield stations


@contextmanager
def _open_to_others(directory: Path) -> Iterator[None]:
    """The sockets of the embedded Postgres; its passwords still keep it."""
    before = {path: stat.S_IMODE(path.stat().st_mode) for path in (directory, *directory.glob(".s.PGSQL.*"))}
    for path, mode in before.items():
        path.chmod(mode | 0o007)
    try:
        yield
    finally:
        for path, mode in before.items():
            path.chmod(mode)


def _station(postgres: EmbeddedPostgres, user: str, mode: str, directory: Path) -> Station:
    project = directory / "project"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("__pycache__", ".flowledger", "steady.py"))
    for name in ("data", "pg", "python"):
        (directory / name).mkdir()
    source = project / "src/escapes/descendants.py"
    name = f"Leaves{user.capitalize()}{mode.capitalize()}"
    source.write_text(source.read_text().replace("class Leaves(", f"class {name}("))
    (project / "src/escapes/other.py").write_text(
        f"from crewai.flow import Flow, start\n\n\nclass Other{name}(Flow):\n    @start()\n    def only(self): ...\n"
    )
    if os.geteuid() == 0 and user == "ordinary":
        for path in (directory, *directory.rglob("*")):
            os.chown(path, STRANGER, STRANGER)
    product = Product(postgres, project, UUID(int=len(user) * 100 + len(mode)))
    return Station(product, user, mode, directory)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("user", USERS)
def test_nothing_of_a_run_outlives_it(
    stations: dict[tuple[str, str], Station], user: str, mode: str, cause: str, kind: str
) -> None:
    station = stations[user, mode]
    if station.trouble:
        raise station.trouble
    case = station.cases[cause, kind]
    assert case.left, "the flow left a process before it was ended"
    assert case.survivors == []
    assert case.seconds <= SURVIVAL_SECONDS + 0.5
    assert (case.row["status"], case.row["error_type"]) == CAUSES[cause], case.row
    assert (case.row["metadata"] or {}).get("isolation") in (None if cause == "worker killed" else mode, mode)


def test_ordinary_user_is_one(stations: dict[tuple[str, str], Station]) -> None:
    for mode in MODES:
        data = stations["ordinary", mode].directory / "data"
        files = [path for path in data.rglob("*") if path.is_file() or path.is_dir()]
        owners = {path.stat().st_uid for path in (data, *files)}
        assert owners == {os.geteuid() or STRANGER}


def test_search_finds_what_was_planted() -> None:
    """The negative control: one that is marked in its environment only, and one in its command line only."""
    run, mark = "11111111-1111-1111-1111-111111111111", "a planted mark"
    sleep = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    by_environment = subprocess.Popen(sleep, env={"FLOWLEDGER_RUN": run})
    by_command = subprocess.Popen([*sleep, mark])
    try:
        found = wait_for(lambda: len(each := processes_of({run: mark})[run]) == 2 and each, what="both are found")
        assert {int(line.split()[0]) for line in found or ()} == {by_environment.pid, by_command.pid}
    finally:
        for process in (by_environment, by_command):
            process.kill()
            process.wait()
    assert processes_of({run: mark})[run] == []
