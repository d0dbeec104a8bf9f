# Made of client/asynchronous by scripts/synchronous.py: change it there, and `make docs` writes it again.
"""`client.tokens`: the caller's own personal tokens."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from flowledger.client.answers import MadeToken
from flowledger.client.synchronous.wire import Wire
from flowledger.client.wanted import as_body
from flowledger.domain.token import Scope, Token


class Tokens:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def list(self) -> tuple[Token, ...]:
        """Those that may be used, newest first."""
        return self._wire.ask(tuple[Token, ...], "GET", "tokens")

    def create(
        self, name: str, scopes: Sequence[Scope] = (Scope.RUN,), *, expires_in_days: int | None = None
    ) -> MadeToken:
        """A new one. Its secret is shown now and never again; None: it lasts until it is revoked."""
        body = as_body({"name": name, "scopes": [str(scope) for scope in scopes], "expires_in_days": expires_in_days})
        return self._wire.ask(MadeToken, "POST", "tokens", body=body)

    def revoke(self, token: UUID) -> None:
        """Ends one at once. Raises TokenNotFound."""
        self._wire.send("DELETE", "tokens", str(token))
