"""Personal tokens: made, listed and revoked by whose they are; redeemed before anybody knows who asks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg

from flowledger.database.session import Claims, Connection
from flowledger.domain.token import PREFIX, Scope, Secret, Token
from flowledger.errors import InvalidInput
from flowledger.sql import query

LONGEST_NAME = 100
MOST_TOKENS = 100
"""Of one user. The number stands in schema/80_identity.sql, which keeps it."""


async def create(
    connection: Connection, name: str, scopes: Collection[Scope], lasts: timedelta | None
) -> tuple[Token, Secret]:
    """A new token of the caller's own and what it says, which is not known again. `lasts` None: until it is revoked.

    Raises InvalidInput, PermissionRefused.
    """
    _check(name, lasts)
    secret = Secret.fresh(PREFIX)
    values = {
        "name": name,
        "sha256": secret.sha256,
        "hint": secret.hint,
        "scopes": [str(scope) for scope in Scope if scope in scopes],
        "lasts": lasts,
    }
    try:
        row = await (await connection.execute(query("tokens", "create"), values)).fetchone()
    except psycopg.errors.UniqueViolation as taken:
        raise InvalidInput("name", f"you have a token {name!r} already", "Revoke it, or choose another.") from taken
    except psycopg.errors.DatetimeFieldOverflow as too_long:
        raise InvalidInput("expires", "is too far away", "Leave it out: the token then lasts.") from too_long
    if row is None:
        raise InvalidInput("name", f"you have {MOST_TOKENS} tokens already", "Revoke some.")
    return _token(row), secret


def _check(name: str, lasts: timedelta | None) -> None:
    if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable():
        raise InvalidInput("name", f"must have 1 to {LONGEST_NAME} printable characters")
    if lasts is not None and lasts <= timedelta(0):
        raise InvalidInput("expires", "is in the past", "Give a span like 90d.")


async def list_(connection: Connection, user: UUID | None) -> list[Token]:
    """The user's tokens that may be used, newest first. None: everybody's, for operators."""
    text = query("tokens", "list_of_all" if user is None else "list_of_user")
    return [_token(row) for row in await (await connection.execute(text, {"user": user})).fetchall()]


async def revoke(connection: Connection, token: UUID) -> bool:
    """Ends a token at once. False: there is none that the caller may end."""
    row = await (await connection.execute(query("tokens", "revoke"), {"token": token})).fetchone()
    return row is not None and bool(row["revoked"])


async def redeem(connection: Connection, secret: Secret) -> tuple[Claims, tuple[Scope, ...]] | None:
    """Under whose claims the token's bearer acts, and its scopes. None: it is unknown, has expired or was revoked."""
    row = await (await connection.execute(query("tokens", "redeem"), {"sha256": secret.sha256})).fetchone()
    if row is None:
        return None
    scopes = tuple(Scope(scope) for scope in row["scopes"])
    role = "service_role" if Scope.OPERATE in scopes else "authenticated"
    return Claims(row["user_id"], role, token=row["id"], read_only=set(scopes) == {Scope.READ}), scopes


def _token(row: Mapping[str, Any]) -> Token:
    return Token(**{**row, "scopes": tuple(Scope(scope) for scope in row["scopes"])})
