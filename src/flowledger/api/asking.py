"""What every handler is given: the ledger as the caller may see it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from flowledger.database.session import Claims, Connection, Database
from flowledger.errors import NotAuthenticated


@dataclass(frozen=True)
class Asking:
    """One request. `claims` are whose it is; `session` is the only way to the ledger."""

    claims: Claims
    database: Database

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Connection]:
        """One transaction under the caller's role and claims. Raises the ledger's errors."""
        async with self.database.session(self.claims) as connection:
            yield connection


async def asking(request: Request) -> Asking:
    """Raises NotAuthenticated."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise NotAuthenticated("it carries no bearer token")
    state = request.app.state
    return Asking(await state.verifier.claims(token.strip()), state.database)


Asked = Annotated[Asking, Depends(asking)]
