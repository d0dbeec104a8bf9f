"""Logins of the local default: a one-time link becomes a browser's session. Both are known by their digests."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from flowledger.database.session import Connection
from flowledger.domain.token import Secret
from flowledger.sql import query

LINK_MINUTES = 10
SESSION_DAYS = 30
"""Both are kept by the functions of schema/80_identity.sql."""


async def open_(connection: Connection, user: UUID) -> Secret:
    """A link that lets a browser in as this user, once. For operators."""
    secret = Secret.fresh()
    await connection.execute(query("logins", "open"), {"user": user, "link": secret.sha256})
    return secret


async def redeem(connection: Connection, link: Secret) -> Secret | None:
    """The session that the link opens. None: it is unknown, too old or was opened before."""
    session = Secret.fresh()
    row = await _one(connection, "redeem", link=link.sha256, session=session.sha256)
    return None if row["user_id"] is None else session


async def redeem_session(connection: Connection, session: Secret) -> UUID | None:
    """Whose the session is. None: it is unknown, too old or was ended."""
    user: UUID | None = (await _one(connection, "redeem_session", session=session.sha256))["user_id"]
    return user


async def end_session(connection: Connection, session: Secret) -> bool:
    """False: there was none."""
    return bool((await _one(connection, "end_session", session=session.sha256))["ended"])


async def _one(connection: Connection, name: str, **values: Any) -> dict[str, Any]:
    row = await (await connection.execute(query("logins", name), values)).fetchone()
    assert row is not None
    return row
