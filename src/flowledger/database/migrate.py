"""Brings a database to the schema of this version: plain numbered .sql files, applied once, in order.

One transaction for each file, under a lock that lets one process migrate at a time. A file registers itself in
`flowledger.schema_migrations`, so one that was pasted into an SQL editor counts as well. What the schema is stands in
`sql/schema`; whether a database still has it is for `check`.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg

from flowledger.database.check import strangers
from flowledger.database.session import CONNECT_SECONDS, translated
from flowledger.database.session import Connection as AsyncConnection
from flowledger.errors import (
    MigrationChanged,
    SchemaNotOurs,
    SchemaTooNew,
    SchemaTooOld,
    ServerTooOld,
)
from flowledger.sql import query

if TYPE_CHECKING:
    from pathlib import Path

    Connection = psycopg.Connection[Any]

OLDEST_SERVER = 14
"""The major version of Postgres that the schema is made for, at least."""

_LOCK_SECONDS = 10
_LOCK_PATIENCE_MS = 200
"""For one table; for all that a migration locks together less than `deadlock_timeout`, a second by default."""
_PAUSE_SECONDS = 0.1

_FILE_NAME = re.compile(r"(\d{4})_(\w+)\.sql")
_HEADER = re.compile(r"-- Migration \d{4}, (\d{4})-(\d\d)-(\d\d)\.")


@dataclass(frozen=True)
class Migration:
    """One numbered file. `stamp` is its date and number in 14 digits, as Supabase names migrations."""

    version: int
    name: str
    text: str

    @property
    def file_name(self) -> str:
        return f"{self.version:04d}_{self.name}.sql"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def stamp(self) -> str:
        header = _HEADER.match(self.text)
        if header is None:
            raise ValueError(f"{self.file_name} does not open with its number and date")
        return "".join(header.groups()) + f"{self.version:06d}"


def migrate(conninfo: str) -> list[Migration]:
    """Applies what is missing and answers with it.

    Raises DatabaseUnreachable, ServerTooOld, SchemaTooNew, MigrationChanged, SchemaNotOurs, DatabaseBusy when a table
    stays locked by others (nothing is changed then), or PermissionRefused.
    """
    with translated(conninfo), _connect(conninfo) as conn:
        _require_server(conn)
        return [migration for migration in migrations() if _apply_when_nobody_is_in_the_way(conn, migration)]


def version(conn: Connection) -> int:
    """The number of the last migration that the database has; 0 when flowledger is not installed there."""
    if not _value(conn, query("migrations", "is_installed")):
        return 0
    return int(_value(conn, query("migrations", "latest")))


def require_current(conn: Connection) -> None:
    """Raises SchemaTooOld or SchemaTooNew unless the database has exactly the schema that this version works with."""
    _require(version(conn))


async def require_current_in(conn: AsyncConnection) -> int:
    """The same for a session of anybody's, with the number of the last migration as the answer."""
    row = await (await conn.execute(query("migrations", "latest"))).fetchone()
    found = int(row["version"]) if row else 0
    _require(found)
    return found


def _require(found: int) -> None:
    known = migrations()[-1].version
    if found < known:
        raise SchemaTooOld(found, known)
    if found > known:
        raise SchemaTooNew(found, known)


def export_supabase(directory: Path) -> list[Path]:
    """Writes the migrations, byte for byte, as a Supabase project keeps them below its `supabase/migrations`."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for migration in migrations():
        path = directory / f"{migration.stamp}_flowledger_{migration.version:04d}.sql"
        path.write_bytes(migration.text.encode())
        paths.append(path)
    return paths


@cache
def migrations() -> tuple[Migration, ...]:
    """The migrations of this version, in order."""
    directory = files("flowledger.sql") / "migrations"
    found = [
        Migration(int(match[1]), match[2], file.read_bytes().decode())
        for file in directory.iterdir()
        if (match := _FILE_NAME.fullmatch(file.name))
    ]
    return tuple(sorted(found, key=lambda migration: migration.version))


def _connect(conninfo: str) -> Connection:
    return psycopg.connect(
        conninfo, autocommit=True, connect_timeout=CONNECT_SECONDS, application_name="flowledger migrate"
    )


def _require_server(conn: Connection) -> None:
    major = conn.info.server_version // 10_000
    if major < OLDEST_SERVER:
        raise ServerTooOld(str(major), str(OLDEST_SERVER))


def _apply_when_nobody_is_in_the_way(conn: Connection, migration: Migration) -> bool:
    """Workers go on meanwhile. Whoever waits for a table makes all who come after wait too, and may be waited for by
    one who holds another table: better to give way, before Postgres ends either of the two, and to try again.
    """
    give_up_at = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return _apply_if_missing(conn, migration)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            if time.monotonic() > give_up_at:
                raise
        time.sleep(_PAUSE_SECONDS)


def _apply_if_missing(conn: Connection, migration: Migration) -> bool:
    with conn.transaction():
        conn.execute("set local client_min_messages = warning")
        conn.execute(query("migrations", "take_turns"))
        conn.execute(f"set local lock_timeout = '{_LOCK_PATIENCE_MS}ms'")
        applied = _applied(conn)
        _require_known(applied)
        missing = migration.version not in applied
        if missing:
            if not applied and (differences := strangers(conn)):
                raise SchemaNotOurs(tuple(differences))
            # Files of this package are as trusted as the source beside them.
            conn.execute(migration.text.encode())
        conn.execute(query("migrations", "record_checksum"), {"version": migration.version, "sha256": migration.sha256})
        return missing


def _applied(conn: Connection) -> dict[int, tuple[str, str | None]]:
    if not _value(conn, query("migrations", "is_installed")):
        return {}
    return {number: (name, sha256) for number, name, sha256 in conn.execute(query("migrations", "applied"))}


def _require_known(applied: dict[int, tuple[str, str | None]]) -> None:
    known = {migration.version: migration for migration in migrations()}
    if applied and max(applied) > max(known):
        raise SchemaTooNew(max(applied), max(known))
    for number, (_, sha256) in applied.items():
        if number in known and sha256 is not None and sha256 != known[number].sha256:
            raise MigrationChanged(known[number].file_name)


def _value(conn: Connection, text: LiteralString) -> Any:
    row = conn.execute(text).fetchone()
    assert row is not None
    return row[0]
