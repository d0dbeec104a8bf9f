"""Who asks: a JWT becomes Claims, under which everything else happens.

What the token says is believed only as far as it was checked: the algorithm is the configured one and never the
token's choice, the payload is parsed here so that a name which stands twice is refused, and nothing but user and role
goes on to Postgres, written anew.
"""

from __future__ import annotations

import base64
import json
import math
import re
import time
from collections.abc import Callable
from typing import Any, NoReturn
from uuid import UUID

from jwt import PyJWS, PyJWTError

from flowledger.api.keys import Keys, keys
from flowledger.database.session import Claims
from flowledger.errors import NotAuthenticated
from flowledger.settings import Settings

ROLES = ("authenticated", "service_role")
MOST_BYTES = 8192
LEEWAY_SECONDS = 10
"""How far the clocks of who signs and who checks may differ."""

_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_LONGEST_KID = 256
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class Verifier:
    """Checks JWTs by one algorithm and the keys of one issuer. Raises InvalidInput for settings that cannot be used."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self._keys: Keys | None = keys(settings)
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._role_claim = settings.jwt_role_claim
        self._clock = clock

    async def claims(self, token: str) -> Claims:
        """Whom the token speaks for. Raises NotAuthenticated, KeysUnavailable."""
        payload = await self._payload(token)
        self._check_times(payload)
        self._check_parties(payload)
        return Claims(_user(payload), self._role(payload))

    async def _payload(self, token: str) -> dict[str, Any]:
        if self._keys is None:
            raise NotAuthenticated("no key for JWTs is configured here")
        if len(token) > MOST_BYTES:
            raise NotAuthenticated(f"the token is larger than {MOST_BYTES:,} bytes")
        parts = _COMPACT.fullmatch(token)
        if parts is None:
            raise NotAuthenticated("the token is neither a JWT nor a personal token")
        header = _object(parts[1], "header")
        _check_header(header, self._keys.algorithm)
        key = await self._keys.key(header.get("kid"))
        try:
            PyJWS().decode(token, key, algorithms=[self._keys.algorithm])
        except PyJWTError as wrong:
            raise NotAuthenticated("the token's signature is not by a key known here") from wrong
        return _object(parts[2], "payload")

    def _check_times(self, payload: dict[str, Any]) -> None:
        now = self._clock()
        times = {name: _time(payload, name) for name in ("exp", "nbf", "iat")}
        if times["exp"] is None:
            raise NotAuthenticated("the token does not say when it expires (exp)")
        if times["exp"] <= now - LEEWAY_SECONDS:
            raise NotAuthenticated("the token has expired")
        for name in ("nbf", "iat"):
            if (begins := times[name]) is not None and begins > now + LEEWAY_SECONDS:
                raise NotAuthenticated(f"the token is not valid yet ({name})")

    def _check_parties(self, payload: dict[str, Any]) -> None:
        if self._issuer is not None and payload.get("iss") != self._issuer:
            raise NotAuthenticated("the token's issuer (iss) is not the configured one")
        given = payload.get("aud")
        audiences = given if isinstance(given, list) else [given]
        if self._audience is None:
            # RFC 7519, 4.1.3: whoever is not named in it must refuse.
            if given is not None:
                raise NotAuthenticated("the token is for an audience (aud), and jwt_audience is not configured here")
        elif self._audience not in audiences:
            raise NotAuthenticated("the token's audience (aud) is not the configured one")

    def _role(self, payload: dict[str, Any]) -> str:
        role = payload.get(self._role_claim, "authenticated")
        if not isinstance(role, str) or role not in ROLES:
            raise NotAuthenticated(f"the token's role ({self._role_claim}) is none of {', '.join(ROLES)}")
        return role


def _check_header(header: dict[str, Any], algorithm: str) -> None:
    if header.get("alg") != algorithm:
        raise NotAuthenticated(f"the token's algorithm (alg) is not {algorithm}")
    if "crit" in header or "b64" in header:
        raise NotAuthenticated("the token needs an extension (crit) that is not known here")
    kid = header.get("kid")
    if kid is not None and not (isinstance(kid, str) and len(kid) <= _LONGEST_KID):
        raise NotAuthenticated(f"the token's key id (kid) is no text of at most {_LONGEST_KID} characters")


def _user(payload: dict[str, Any]) -> UUID:
    sub = payload.get("sub")
    if not isinstance(sub, str) or not _UUID.fullmatch(sub):
        raise NotAuthenticated("the token's subject (sub) is no UUID")
    return UUID(sub)


def _time(payload: dict[str, Any], name: str) -> float | None:
    given = payload.get(name)
    if given is None:
        return None
    # True is an int to Python, and 1e400 a float.
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise NotAuthenticated(f"the token's {name} is no time")
    return given


def _object(part: str, name: str) -> dict[str, Any]:
    try:
        text = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode()
        value = json.loads(text, object_pairs_hook=_once_each, parse_constant=_no_constant)
    except (ValueError, RecursionError) as wrong:
        raise NotAuthenticated(f"the token's {name} cannot be read") from wrong
    if not isinstance(value, dict):
        raise NotAuthenticated(f"the token's {name} is no JSON object")
    return value


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers of `{"sub": "a", "sub": "b"}` may see two users."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise NotAuthenticated("the token says something twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
