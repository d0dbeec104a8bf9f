"""One-time links for a browser on this machine, and where the API of this data directory is served."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flowledger.cli.actions.reading import with_ledger
from flowledger.cli.flags import settings
from flowledger.cli.opening import Ledger, local_user
from flowledger.cli.output import out
from flowledger.database.session import Claims, Database
from flowledger.errors import InvalidInput
from flowledger.ledger import logins
from flowledger.settings import Settings

_FILE = "address"


def login(**flags: Any) -> None:
    chosen = settings(**flags)
    url = served_at(chosen)

    async def make(open_ledger: Ledger) -> str:
        return await link(open_ledger.database, chosen, url)

    out.print(with_ledger(chosen, make))


async def link(database: Database, chosen: Settings, url: str) -> str:
    """Lets a browser in as the local user, once."""
    async with database.session(Claims.of_operator()) as session:
        secret = await logins.open_(session, local_user(chosen))
    return f"{url}/login?link={secret.text}"


@contextmanager
def announced(chosen: Settings, url: str) -> Iterator[None]:
    """While the block runs, other commands find the API of this data directory."""
    place = chosen.data_dir / _FILE
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"{url}\n")
    try:
        yield
    finally:
        place.unlink(missing_ok=True)


def served_at(chosen: Settings) -> str:
    """Raises InvalidInput when `flowledger up` does not run here."""
    try:
        return (chosen.data_dir / _FILE).read_text().strip()
    except FileNotFoundError as missing:
        told = f"nothing is served from {chosen.data_dir}"
        raise InvalidInput("setting data_dir", told, "Start `flowledger up`, or name its --data.") from missing
