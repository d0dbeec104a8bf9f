"""Requests that carry an idempotency key: asked again, they are answered with what they started."""

from __future__ import annotations

from uuid import UUID

from flowledger.database.session import Connection
from flowledger.errors import InvalidInput
from flowledger.sql import query


async def answered(connection: Connection, key: str, digest: bytes) -> UUID | None:
    """The execution that the caller's request with this key started. None: nothing yet, and until the transaction ends
    nobody else starts anything with it.

    Raises InvalidInput if the key came with another request, and DatabaseBusy if the same takes too long elsewhere.
    """
    row = await (await connection.execute(query("requests", "answered"), {"key": key, "digest": digest})).fetchone()
    if row is None:
        return None
    if not row["is_same"]:
        raise InvalidInput(
            "Idempotency-Key", "came before with another request", "Use a key of its own for each thing you start."
        )
    return UUID(str(row["execution_id"]))


async def remember(connection: Connection, key: str, digest: bytes, execution: UUID) -> None:
    """Remembers what the caller's request started."""
    values = {"key": key, "digest": digest, "execution": execution}
    await connection.execute(query("requests", "remember"), values)
