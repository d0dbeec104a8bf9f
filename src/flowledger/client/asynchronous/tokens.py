"""`client.tokens`: the caller's own personal tokens."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from flowledger.client.answers import MadeToken
from flowledger.client.asynchronous.wire import AsyncWire
from flowledger.client.wanted import as_body
from flowledger.domain.token import Scope, Token


class AsyncTokens:
    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire

    async def list(self) -> tuple[Token, ...]:
        """Those that may be used, newest first."""
        return await self._wire.ask(tuple[Token, ...], "GET", "tokens")

    async def create(
        self, name: str, scopes: Sequence[Scope] = (Scope.RUN,), *, expires_in_days: int | None = None
    ) -> MadeToken:
        """A new one. Its secret is shown now and never again; None: it lasts until it is revoked."""
        body = as_body({"name": name, "scopes": [str(scope) for scope in scopes], "expires_in_days": expires_in_days})
        return await self._wire.ask(MadeToken, "POST", "tokens", body=body)

    async def revoke(self, token: UUID) -> None:
        """Ends one at once. Raises TokenNotFound."""
        await self._wire.send("DELETE", "tokens", str(token))
