"""Who asks: a bearer token becomes Claims, under which everything else happens."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import jwt

from flowledger.database.session import Claims
from flowledger.errors import NotAuthenticated
from flowledger.settings import Settings

ROLES = ("authenticated", "service_role")


class Verifier:
    """Checks tokens by one key and one algorithm."""

    def __init__(self, settings: Settings) -> None:
        self._secret = settings.jwt_secret

    async def claims(self, token: str) -> Claims:
        """Whom the token speaks for. Raises NotAuthenticated."""
        if self._secret is None:
            raise NotAuthenticated("no key is configured")
        try:
            given: dict[str, Any] = jwt.decode(
                token, self._secret.get_secret_value(), algorithms=["HS256"], options={"require": ["exp", "sub"]}
            )
        except jwt.PyJWTError as wrong:
            raise NotAuthenticated(str(wrong)) from wrong
        role = given.get("role", "authenticated")
        if role not in ROLES:
            raise NotAuthenticated("its role is not known")
        try:
            return Claims(UUID(str(given["sub"])), role)
        except ValueError as wrong:
            raise NotAuthenticated("its sub is no UUID") from wrong
