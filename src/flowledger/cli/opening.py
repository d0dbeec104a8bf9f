"""Opens the ledger for a command: the embedded Postgres or the named one, and the identity of whoever calls."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from flowledger.cli.desk import Desk
from flowledger.cli.here import Here
from flowledger.cli.served import Served
from flowledger.client import AsyncClient
from flowledger.database import migrate
from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.session import Claims, Database, checked, connected, password
from flowledger.errors import InvalidInput
from flowledger.settings import Settings
from flowledger.telemetry.destination import header_values
from flowledger.worker.served import Surroundings

NO_SERVER = InvalidInput(
    "--url",
    "this command works on the database itself and cannot go through a server",
    "Run it where the database can be reached, without --url and FLOWLEDGER_URL.",
)


@dataclass(frozen=True)
class Addresses:
    """Where the ledger answers, by who asks. For a database that the user named, all three are the same."""

    owner: str
    worker: str
    api: str
    embedded: EmbeddedPostgres | None


@contextmanager
def addresses(settings: Settings) -> Iterator[Addresses]:
    """The named database; else the embedded Postgres, started if need be and with its schema brought up to date.

    Raises DatabaseUnreachable, EmbeddedPostgresFailed, SchemaTooNew; and InvalidInput where a server is named, lest a
    command does here what was meant for there.
    """
    if settings.url is not None:
        raise NO_SERVER
    if settings.database_url is not None:
        url = checked(settings.database_url.get_secret_value())
        yield Addresses(url, url, url, None)
        return
    with EmbeddedPostgres.start(settings.data_dir) as postgres:
        owner = postgres.url("flowledger")
        migrate.migrate(owner)
        yield Addresses(owner, postgres.url("flowledger_worker"), postgres.url("flowledger_api"), postgres)


def require_current(where: Addresses) -> None:
    """Raises SchemaTooOld or SchemaTooNew unless the schema is exactly the one that this version works with."""
    with connected(where.worker) as connection:
        migrate.require_current(connection)


@dataclass(frozen=True)
class Ledger:
    """An open ledger. `me` starts executions; `operator` reads those of everybody."""

    database: Database
    addresses: Addresses
    me: Claims
    operator: Claims


@asynccontextmanager
async def ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """The ledger with its schema checked. Raises also SchemaTooOld."""
    with addresses(settings) as where:
        require_current(where)
        async with Database(where.api, most_connections=2) as database:
            yield Ledger(database, where, Claims(local_user(settings)), Claims.of_operator())


@asynccontextmanager
async def desk(settings: Settings) -> AsyncIterator[Desk]:
    """Where the command asks: the named server, else the ledger itself. Raises also InvalidInput for a bad address."""
    if settings.url is None:
        async with ledger(settings) as open_ledger:
            yield Here(open_ledger)
    else:
        async with server(settings) as served:
            yield served


@asynccontextmanager
async def server(settings: Settings) -> AsyncIterator[Served]:
    """The named server. Raises ServerUnreachable, InvalidInput."""
    token = None if settings.token is None else settings.token.get_secret_value()
    async with AsyncClient(settings.url, token) as client:
        # A wrong address is told at once; a server that was there may be away for a while.
        await client.ping()
        yield Served(client)


def local_user(settings: Settings) -> UUID:
    """Who starts executions from here: the setting, else an identity made once for this data directory."""
    if settings.user_id is not None:
        return settings.user_id
    place = settings.data_dir / "user"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = place.with_suffix(f".{os.getpid()}")
        fresh.write_text(f"{uuid4()}\n")
        try:
            # A link fails if somebody else was first; then theirs counts.
            place.hardlink_to(fresh)
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return UUID(place.read_text().strip())


def storage(settings: Settings) -> Path:
    """Where CrewAI may keep its own files (memory, caches) for the flows of this data directory."""
    place = (settings.data_dir / "crewai").absolute()
    place.mkdir(parents=True, exist_ok=True)
    return place


def surroundings(settings: Settings, where: Addresses) -> Surroundings:
    """What flow code may find: nothing of the ledger's."""
    urls = {where.owner, where.worker, where.api}
    if settings.listen_url is not None:
        urls.add(settings.listen_url.get_secret_value())
    passwords = {password(url) for url in urls}
    headers = "" if settings.otlp_headers is None else settings.otlp_headers.get_secret_value()
    signing = "" if settings.jwt_secret is None else settings.jwt_secret.get_secret_value()
    return Surroundings(
        secrets=frozenset((urls | passwords | {signing, headers, *header_values(headers).values()}) - {""}),
        hidden=() if where.embedded is None else (where.embedded.data_dir / "postgres",),
        storage=storage(settings),
    )
