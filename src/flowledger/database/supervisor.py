"""The process that keeps one embedded Postgres: makes its cluster, starts, restarts and at last stops it.

Runs as a script of its own with nothing but the standard library, in its own session, and outlives whoever started it.
Whoever uses the server holds a shared flock on `use.lock`; the supervisor waits for the exclusive one, which the kernel
grants when the last user is gone, however it went. It reads its plan from stdin, answers with one JSON line on stdout,
and knows the roles' passwords only while it makes the cluster. Finding binaries, choosing the account and joining a
running server are left to `embedded`.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

DATABASE = "flowledger"
PORT = 5432
ROLES = ("flowledger", "flowledger_worker", "flowledger_api")

_RESTART_PAUSES = (0.0, 0.2, 1.0, 3.0)
_LONGEST_RESTART_PAUSE = 10.0
_SECONDS_THAT_COUNT_AS_STABLE = 60.0
_SECONDS_TO_ANSWER = 120.0
_SECONDS_FOR_THE_LAST_ONE_TO_END = 30.0
_MOST_LOG_BYTES = 4 * 1024 * 1024
_LOG_LOOK_SECONDS = 60.0
_TAKEN_UP = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM)

# What nobody may loosen, said at every start; what a user may tune is written once, into postgresql.conf.
_FIXED = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "port": str(PORT),
    "password_encryption": "scram-sha-256",
    "logging_collector": "off",
    "log_destination": "stderr",
    # Failing statements and rows hold users' inputs; who sent them gets the whole message.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}
_TUNABLE = {
    "shared_buffers": "128MB",
    "max_connections": "100",
    "max_wal_size": "512MB",
    "huge_pages": "off",
    # What it reads lies in memory or on flash: a list picks the few executions that wait by their own index.
    "random_page_cost": "1.1",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "idle_in_transaction_session_timeout": "5min",
    # The query of a client that was killed ends by itself.
    "client_connection_check_interval": "10s",
}
_PG_HBA = "# Everyone proves a password, and nobody comes over the network.\nlocal all all scram-sha-256\n"


@dataclass(frozen=True)
class Place:
    """Where an embedded Postgres keeps what it has. Lock files stay for ever: removing one would split its users."""

    data_dir: Path

    @property
    def home(self) -> Path:
        """Cluster and passwords: renamed into place together, once both are whole."""
        return self.data_dir / "postgres"

    @property
    def cluster(self) -> Path:
        return self.home / "cluster"

    @property
    def passwords(self) -> Path:
        return self.home / "passwords"

    @property
    def log(self) -> Path:
        return self.data_dir / "postgres.log"

    @property
    def run(self) -> Path:
        return self.data_dir / "postgres.run"

    @property
    def record(self) -> Path:
        """What is running: a `Running` as JSON, there while a supervisor is."""
        return self.run / "running.json"

    def lock(self, name: str) -> Path:
        """`use`: shared by the users. `start`: one starts at a time. `supervisor`: there is one. `server`: inherited by
        the postmaster and all its backends, so that it is free exactly when none of them lives.
        """
        return self.run / f"{name}.lock"


@dataclass(frozen=True)
class Plan:
    """How to run Postgres here. `prefix` goes in front of every command; `uid` and `gid`, None for our own, own it."""

    data_dir: str
    binaries: str
    version: str
    socket_dir: str
    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None

    @property
    def place(self) -> Place:
        return Place(Path(self.data_dir))

    def command(self, name: str, *arguments: str) -> list[str]:
        return [*self.prefix, str(Path(self.binaries, name)), *arguments]


@dataclass(frozen=True)
class Running:
    """The server that can be joined."""

    socket_dir: str
    version: str
    binaries: str


class Failed(Exception):
    """Postgres could not be made or started; the message is Postgres's own where it left one."""


# -- For both sides ---------------------------------------------------------------------------------------------------


def locked(path: Path, mode: int, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> int | None:
    """A descriptor that holds the flock until it is closed, or None when others hold it for `seconds`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            meanwhile()
            time.sleep(0.01)
        else:
            return descriptor


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock exclusively."""
    descriptor = locked(path, fcntl.LOCK_SH, 0)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def answers(binaries: str, socket_dir: str) -> bool:
    """Whether a server accepts connections there, as `pg_isready` sees it."""
    if not Path(socket_dir, f".s.PGSQL.{PORT}").exists():
        return False
    probe = [
        str(Path(binaries, "pg_isready")),
        "-q",
        "-t",
        "3",
        "-h",
        socket_dir,
        "-p",
        str(PORT),
        "-d",
        DATABASE,
        "-U",
        ROLES[0],
    ]
    return subprocess.run(probe, env=bare_environment(), stdin=subprocess.DEVNULL, check=False).returncode == 0


def bare_environment() -> dict[str, str]:
    """What Postgres and its supervisor inherit: nothing of ours, no PG... variable, no secret."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "LC_ALL": "C"}


# -- The supervisor ---------------------------------------------------------------------------------------------------


def main() -> None:
    plan = Plan(**json.load(sys.stdin))
    if os.fork():
        os._exit(0)
    os.umask(0o077)
    os.chdir("/")
    # Blocked for good and taken up one at a time by `_watch`: no handler ever interrupts anything.
    signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN_UP)
    alone = locked(plan.place.lock("supervisor"), fcntl.LOCK_EX, 0)
    if alone is None:
        _report(outcome="taken")
    else:
        _supervise(plan)


def _report(**facts: str) -> None:
    """Says the one word that the starter waits for; the starter may be gone by now."""
    with suppress(OSError):
        os.write(1, json.dumps(facts).encode() + b"\n")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _supervise(plan: Plan) -> None:
    _forget_last_run(plan)
    try:
        _make_cluster_if_missing(plan)
        socket_dir = _make_socket_dir(plan)
        _give_to_owner(plan, plan.place.cluster)
        _write_record(plan, socket_dir)
        server = _start(plan, socket_dir)
    except (Failed, OSError) as failure:
        _forget_last_run(plan)
        _report(outcome="failed", reason=str(failure))
        return
    _report(outcome="ready")
    last = _watch(plan, socket_dir, server)
    if last is not None:
        _stop(plan, last)
    _forget_last_run(plan)


def _watch(plan: Plan, socket_dir: Path, server: subprocess.Popen[bytes]) -> subprocess.Popen[bytes] | None:
    """Returns when nobody uses the server any more or somebody asks to stop; None when it does not run by then."""
    threading.Thread(target=_wait_until_unused, args=(plan,), daemon=True).start()
    signal.setitimer(signal.ITIMER_REAL, _LOG_LOOK_SECONDS, _LOG_LOOK_SECONDS)
    pauses: Iterator[float] = _restart_pauses()
    started = time.monotonic()
    while True:
        happened = signal.sigwait(_TAKEN_UP)
        if happened == signal.SIGALRM:
            _keep_log_small(plan.place.log)
        elif happened != signal.SIGCHLD:
            return server
        elif server.poll() is not None:
            _say(f"Postgres ended ({_how(server.returncode)}) while it was in use; starting it again")
            if time.monotonic() - started > _SECONDS_THAT_COUNT_AS_STABLE:
                pauses = _restart_pauses()
            restarted = _restart(plan, socket_dir, pauses)
            if restarted is None:
                return None
            server, started = restarted, time.monotonic()


def _wait_until_unused(plan: Plan) -> None:
    """Holds `use.lock` from then on, so that a newcomer waits until the server is gone and starts a fresh one."""
    descriptor = os.open(plan.place.lock("use"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.kill(os.getpid(), signal.SIGUSR1)


def _restart_pauses() -> Iterator[float]:
    """A disk that is full may have room again in an hour, so whoever uses the server gets it back in the end."""
    return chain(_RESTART_PAUSES, repeat(_LONGEST_RESTART_PAUSE))


def _restart(plan: Plan, socket_dir: Path, pauses: Iterator[float]) -> subprocess.Popen[bytes] | None:
    """None when nobody wants it any more."""
    for pause in pauses:
        if signal.sigtimedwait({signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}, pause) is not None:
            return None
        try:
            return _start(plan, socket_dir)
        except (Failed, OSError) as failure:
            _say(f"Postgres did not start again: {failure}")
    return None


# -- Starting and stopping the server ---------------------------------------------------------------------------------


def _start(plan: Plan, socket_dir: Path) -> subprocess.Popen[bytes]:
    place = plan.place
    lock = locked(place.lock("server"), fcntl.LOCK_EX, _SECONDS_FOR_THE_LAST_ONE_TO_END, _Sweeper(place.cluster))
    if lock is None:
        raise Failed(f"another Postgres still uses {place.cluster}")
    _keep_log_small(place.log)
    settings = [part for name, value in _FIXED.items() for part in ("-c", f"{name}={value}")]
    before = log_size(place.log)
    try:
        _forget_stale_pid_file(place.cluster)
        _forget_socket(socket_dir)
        server = _popen(
            plan,
            plan.command("postgres", "-D", str(place.cluster), "-k", str(socket_dir), *settings),
            dies_with_us_by=signal.SIGINT,
            inherited=(lock,),
        )
    finally:
        # The postmaster holds it now, for as long as it or one of its backends lives.
        os.close(lock)
    _wait_until_it_answers(plan, socket_dir, server, before)
    return server


def _wait_until_it_answers(plan: Plan, socket_dir: Path, server: subprocess.Popen[bytes], before: int) -> None:
    deadline = time.monotonic() + _SECONDS_TO_ANSWER
    while not answers(plan.binaries, str(socket_dir)):
        if server.poll() is not None:
            raise Failed(last_words(plan.place.log, before) or f"postgres ended: {_how(server.returncode)}")
        if time.monotonic() > deadline:
            _stop(plan, server)
            raise Failed(f"it accepted no connection within {_SECONDS_TO_ANSWER:.0f} s")
        time.sleep(0.01)


def _stop(plan: Plan, server: subprocess.Popen[bytes]) -> None:
    """Fast, which ends sessions and writes a checkpoint; then immediate, which leaves recovery to the next start."""
    for sign, seconds in ((signal.SIGINT, 30), (signal.SIGQUIT, 8), (signal.SIGKILL, 5)):
        if server.poll() is None:
            server.send_signal(sign)
        with suppress(subprocess.TimeoutExpired):
            server.wait(seconds)
            break
    for process in processes_in(plan.place.cluster):
        _kill(process, signal.SIGKILL)


class _Sweeper:
    """Ends what an earlier supervisor left: backends without a postmaster at once, a postmaster after some patience."""

    def __init__(self, cluster: Path) -> None:
        self._cluster = cluster
        self._asked: int | None = None
        self._patience_ends = time.monotonic() + 10

    def __call__(self) -> None:
        postmaster = _recorded_pid(self._cluster)
        left = processes_in(self._cluster)
        if postmaster not in left or time.monotonic() > self._patience_ends:
            for process in left:
                _kill(process, signal.SIGKILL)
        elif self._asked != postmaster:
            self._asked = postmaster
            _kill(postmaster, signal.SIGINT)


def processes_in(cluster: Path) -> set[int]:
    """The processes of this cluster: Postgres works inside its data directory. Empty where there is no /proc."""
    try:
        home = cluster.stat()
        candidates = [name for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - names are all we need
    except OSError:
        return set()
    found = set()
    for name in candidates:
        with suppress(OSError):
            there = os.stat(f"/proc/{name}/cwd")  # noqa: PTH116 - called for every process of the machine
            if (there.st_dev, there.st_ino) == (home.st_dev, home.st_ino) and _is_postgres(name):
                found.add(int(name))
    return found


def _is_postgres(process: str) -> bool:
    """Somebody's shell may stand in the directory too."""
    return Path(f"/proc/{process}/comm").read_text().strip() == "postgres"


def _kill(process: int, sign: signal.Signals) -> None:
    with suppress(OSError):
        os.kill(process, sign)


def _recorded_pid(cluster: Path) -> int:
    try:
        return int((cluster / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return 0


def _forget_stale_pid_file(cluster: Path) -> None:
    """We hold `server.lock`, so no server of ours lives. Postgres still refuses when the number in its pid file now
    belongs to another process, as happens when a container restarts; else the file is of use to it and stays.
    """
    recorded = _recorded_pid(cluster)
    if not recorded or recorded in processes_in(cluster) or not Path("/proc/self").exists():
        return
    if Path(f"/proc/{recorded}").exists():
        (cluster / "postmaster.pid").unlink()


def _popen(
    plan: Plan, command: list[str], *, dies_with_us_by: signal.Signals, inherited: tuple[int, ...] = (), **streams: Any
) -> subprocess.Popen[bytes]:
    """Starts a program of Postgres under the plan's account; its messages go where ours go, into the log."""
    tie = _tie_to(os.getpid(), dies_with_us_by)
    other: dict[str, Any] = {"user": plan.uid, "group": plan.gid, "extra_groups": []} if plan.uid is not None else {}
    return subprocess.Popen(
        command,
        env=bare_environment(),
        pass_fds=inherited,
        preexec_fn=tie,  # safe: the only other thread waits in the kernel and holds nothing
        **{"stdin": subprocess.DEVNULL, "stdout": 2, "stderr": 2, **other, **streams},
    )


def _tie_to(parent: int, sign: signal.Signals) -> Callable[[], None]:
    """In the child: take signals again, and be told by the kernel (Linux) when the supervisor dies."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def tie() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if prctl is not None:
            prctl(1, int(sign))  # PR_SET_PDEATHSIG
            if os.getppid() != parent:
                os._exit(1)

    return tie


# -- Making the cluster -----------------------------------------------------------------------------------------------


def _make_cluster_if_missing(plan: Plan) -> None:
    """Made beside its place and renamed into it: a first start that is killed leaves nothing half made."""
    place = plan.place
    for leftover in place.data_dir.glob("postgres.new-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if place.home.exists():
        return
    new = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=place.data_dir))
    before = log_size(place.log)
    try:
        if plan.uid is not None:
            new.chmod(0o711)
        _initdb(plan, new / "cluster")
        _make_roles(plan, new / "cluster", _write_passwords(new / "passwords"))
        _run(plan, plan.command("initdb", "--sync-only", "-D", str(new / "cluster")))
        _sync(new, new / "passwords")
        new.rename(place.home)
        _sync(place.data_dir)
    except (Failed, OSError) as failure:
        reason = last_words(place.log, before) or str(failure)
        shutil.rmtree(new, ignore_errors=True)
        raise Failed(reason) from failure


def _initdb(plan: Plan, cluster: Path) -> None:
    cluster.mkdir(0o700)
    _give_to_owner(plan, cluster)
    major = int(plan.version.split(".")[0])
    # Sorting must not depend on the machine: an index made under one libc is broken under another.
    locale = ["--locale=C", "--encoding=UTF8"]
    if major >= 17:
        locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    tuned = [part for name, value in _TUNABLE.items() for part in ("-c", f"{name}={value}")]
    # The superuser gets no password, and `reject` until our own pg_hba.conf is there: there is nothing to give away.
    options = ["--username=postgres", "--auth=reject", "--data-checksums", "--no-sync", "--no-instructions"]
    _run(plan, plan.command("initdb", "-D", str(cluster), *options, *locale, *tuned), stdout=subprocess.DEVNULL)
    (cluster / "pg_hba.conf").write_text(_PG_HBA)


def _write_passwords(directory: Path) -> dict[str, str]:
    directory.mkdir(0o700)
    passwords = {role: secrets.token_urlsafe(32) for role in ROLES}
    for role, password in passwords.items():
        descriptor = os.open(directory / role, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(password)
            file.flush()
            os.fsync(file.fileno())
    return passwords


def _make_roles(plan: Plan, cluster: Path, passwords: dict[str, str]) -> None:
    """In single-user mode, where the superuser needs no password. One statement a line."""
    owner, worker, api = (f"login password '{passwords[role]}'" for role in ROLES)
    statements = f"""
        create role anon nologin
        create role authenticated nologin
        create role service_role nologin
        create role flowledger createrole {owner}
        create role flowledger_worker {worker}
        create role flowledger_api noinherit {api}
        grant anon, authenticated, service_role to flowledger with admin option
        grant service_role to flowledger_worker
        grant anon, authenticated, service_role to flowledger_api
        create database {DATABASE} owner flowledger
    """
    # Not synced here: `initdb --sync-only` syncs it all, once, before the cluster is moved into place.
    quiet = [
        "-c",
        "fsync=off",
        "-c",
        "exit_on_error=true",
        "-c",
        "log_min_error_statement=panic",
        "-c",
        "log_checkpoints=off",
    ]
    lines = "".join(f"{line.strip()}\n" for line in statements.splitlines() if line.strip())
    command = plan.command("postgres", "--single", "-D", str(cluster), *quiet, "postgres")
    _run(plan, command, typed=lines, stdout=subprocess.DEVNULL)


def _run(plan: Plan, command: list[str], typed: str = "", **streams: Any) -> None:
    process = _popen(plan, command, dies_with_us_by=signal.SIGKILL, stdin=subprocess.PIPE, **streams)
    process.communicate(typed.encode())
    if process.returncode != 0:
        raise Failed(f"{Path(command[len(plan.prefix)]).name} ended: {_how(process.returncode)}")


def _give_to_owner(plan: Plan, path: Path) -> None:
    """Postgres insists on owning its files; another account than last time may have to run it."""
    owner = os.getuid() if plan.uid is None else plan.uid
    group = os.getgid() if plan.gid is None else plan.gid
    if plan.uid is not None:
        for parent in (plan.place.data_dir, plan.place.home, plan.place.run):
            if parent.exists():
                parent.chmod(0o711)
    if path.stat().st_uid == owner:
        return
    for directory, _, files in os.walk(path):
        for name in (directory, *(os.path.join(directory, file) for file in files)):  # noqa: PTH118 - thousands of files
            os.chown(name, owner, group, follow_symlinks=False)


def _sync(*directories: Path) -> None:
    """A directory's entries reach the disk only when the directory itself is synced."""
    for directory in directories:
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# -- Socket directory and record --------------------------------------------------------------------------------------


def _make_socket_dir(plan: Plan) -> Path:
    """Ours alone, or another one: in a shared directory somebody may have been there before us under that name."""
    wanted = Path(plan.socket_dir)
    try:
        wanted.mkdir(0o700)
    except FileExistsError:
        if not _is_ours_alone(plan, wanted):
            wanted = Path(tempfile.mkdtemp(prefix="flowledger-", dir=wanted.parent))
    _give_to_owner(plan, wanted)
    return wanted


def _is_ours_alone(plan: Plan, directory: Path) -> bool:
    found = directory.lstat()
    is_directory = (found.st_mode & 0o170000) == 0o040000
    return is_directory and found.st_uid in (os.getuid(), plan.uid) and not found.st_mode & 0o022


def _write_record(plan: Plan, socket_dir: Path) -> None:
    place = plan.place
    draft = place.record.with_suffix(".new")
    draft.write_text(json.dumps(asdict(Running(str(socket_dir), plan.version, plan.binaries))))
    draft.rename(place.record)


def read_record(place: Place) -> Running | None:
    try:
        return Running(**json.loads(place.record.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _forget_last_run(plan: Plan) -> None:
    """Also what a supervisor that was killed left behind outside the data directory."""
    place = plan.place
    running = read_record(place)
    place.record.unlink(missing_ok=True)
    if running is None or Path(running.socket_dir).parent == place.run:
        return
    directory = Path(running.socket_dir)
    with suppress(OSError):
        if _is_ours_alone(plan, directory):
            _forget_socket(directory)
            directory.rmdir()


def _forget_socket(directory: Path) -> None:
    """Its lock file names a process too, and is as wrong as a pid file about who that is."""
    for name in (f".s.PGSQL.{PORT}", f".s.PGSQL.{PORT}.lock"):
        (directory / name).unlink(missing_ok=True)


# -- The log ----------------------------------------------------------------------------------------------------------


def _keep_log_small(log: Path) -> None:
    """Copied and emptied in place, because everybody appends through a descriptor that is already open."""
    with suppress(OSError):
        if log.stat().st_size > _MOST_LOG_BYTES:
            shutil.copyfile(log, log.with_suffix(".log.1"))
            os.truncate(log, 0)


def log_size(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:
        return 0


def last_words(log: Path, since: int) -> str:
    """Why Postgres says it could not go on: the last complaint it logged after the position `since`."""
    try:
        with log.open("rb") as file:
            file.seek(since)
            lines = file.read(65_536).decode(errors="replace").splitlines()
    except OSError:
        return ""
    grave = ("PANIC:", "FATAL:", "ERROR:", "error:", "cannot execute", "error while loading")
    complaints = [(line, sign) for line in lines for sign in grave if sign in line]
    if not complaints:
        return ""
    line, sign = complaints[-1]
    return line.split(sign, 1)[1].strip() if sign.endswith(":") else line.strip()


def _say(message: str) -> None:
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    os.write(2, f"{now} flowledger: {message}\n".encode(errors="replace"))


def _how(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"signal {-status}"


if __name__ == "__main__":
    main()
