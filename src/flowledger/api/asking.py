"""What every handler is given: the ledger as the caller may see it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from flowledger.api.hosts import SAFE_METHODS, require_same_origin
from flowledger.api.login import session_of
from flowledger.database.session import Claims, Connection, Database
from flowledger.domain.token import PREFIX, Scope, Secret
from flowledger.errors import NotAuthenticated, ScopeRefused
from flowledger.ledger import logins, tokens


@dataclass(frozen=True)
class Asking:
    """One request. `claims` are whose it is; `session` is the only way to the ledger."""

    claims: Claims
    database: Database

    def session(self) -> AbstractAsyncContextManager[Connection]:
        """One transaction under the caller's role and claims. Raises the ledger's errors."""
        return self.database.session(self.claims)

    @property
    def as_user(self) -> Asking:
        """The same caller as a user like any other: operators see all, and start what they start as themselves."""
        return replace(self, claims=replace(self.claims, role="authenticated"))


_bearer = HTTPBearer(
    scheme_name="token",
    bearerFormat="JWT or fl_...",
    auto_error=False,
    description="A JWT, or a personal token (`fl_...`). Browsers that opened a one-time link have a cookie instead.",
)


async def asking(
    request: Request,
    _shown: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> Asking:
    """Raises NotAuthenticated, ScopeRefused, OriginRefused, RateLimited, KeysUnavailable, DatabaseUnreachable."""
    claims = await _claims(request)
    request.state.claims = claims
    await request.app.state.rates.count(claims)
    return Asking(claims, request.app.state.database)


Asked = Annotated[Asking, Depends(asking)]


async def _claims(request: Request) -> Claims:
    given = request.headers.getlist("authorization")
    if not given:
        return await _of_login(request)
    scheme, _, token = given[0].partition(" ")
    token = token.strip()
    if len(given) > 1 or scheme.lower() != "bearer" or not token:
        raise NotAuthenticated("its Authorization is not one `Bearer TOKEN`")
    if token.startswith(PREFIX):
        return await _of_token(request, token)
    claims: Claims = await request.app.state.verifier.claims(token)
    return claims


async def _of_token(request: Request, token: str) -> Claims:
    state = request.app.state
    await state.rates.admit(request)
    async with state.database.session(Claims.of_nobody()) as session:
        redeemed = await tokens.redeem(session, Secret(token))
    if redeemed is None:
        raise await state.rates.failed(request, NotAuthenticated("the token is unknown, has expired or was revoked"))
    claims, scopes = redeemed
    if claims.read_only and request.method not in SAFE_METHODS:
        # Postgres would refuse it as well; here it can be told what is missing.
        raise ScopeRefused(tuple(scopes), Scope.RUN)
    return claims


async def _of_login(request: Request) -> Claims:
    session_secret = session_of(request)
    if session_secret is None:
        raise NotAuthenticated("it carries no bearer token")
    require_same_origin(request)
    state = request.app.state
    await state.rates.admit(request)
    async with state.database.session(Claims.of_nobody()) as session:
        user = await logins.redeem_session(session, session_secret)
    if user is None:
        raise await state.rates.failed(request, NotAuthenticated("its login has ended"))
    # Whoever could read the link on this machine's terminal can read the data directory too.
    return Claims(user, "service_role")
