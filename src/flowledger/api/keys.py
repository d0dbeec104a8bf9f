"""The keys that JWTs are checked with: one shared secret, or a published set (RFC 7517) that its issuer rotates.

A published set is fetched when it is first needed, when it is old, and when a token names a key that it does not have;
the last at most every 30 seconds, so that nobody can make us ask its publisher at will.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx
import structlog
from jwt import PyJWK, PyJWTError

from flowledger.api.hosts import is_loopback
from flowledger.errors import InvalidInput, KeysUnavailable, NotAuthenticated
from flowledger.settings import Settings

SHORTEST_SECRET = 32
"""Bytes; RFC 7518, 3.2: as long as the hash."""
SHORTEST_RSA_BITS = 2048
MOST_SET_BYTES = 262_144
MOST_KEYS = 64

_FETCH_SECONDS = 5.0
_BETWEEN_FETCHES_SECONDS = 30.0
_FRESH_SECONDS = 600.0
_USABLE_SECONDS = 3600.0
_KEY_TYPES = {"RS256": "RSA", "ES256": "EC"}

_log = structlog.get_logger("flowledger.keys")


class Keys(Protocol):
    """What a verifier asks. `algorithm` is the only one that its keys are used with."""

    @property
    def algorithm(self) -> str: ...

    async def key(self, kid: str | None) -> PyJWK | bytes:
        """The key of this name; None: the only one. Raises NotAuthenticated, KeysUnavailable."""
        ...


def keys(settings: Settings) -> Keys | None:
    """As configured; None: JWTs are not taken. Raises InvalidInput for what is unsafe or contradicts itself."""
    given = [name for name in ("jwt_secret", "jwks_url", "jwks_file") if getattr(settings, name) is not None]
    if len(given) > 1:
        raise InvalidInput(f"setting {given[1]}", f"contradicts {given[0]}", "Set one of them.")
    if settings.jwt_secret is not None:
        return Shared(settings.jwt_secret.get_secret_value().encode(), settings.jwt_algorithm or "HS256")
    algorithm = settings.jwt_algorithm or "RS256"
    if given and algorithm not in _KEY_TYPES:
        raise InvalidInput("setting jwt_algorithm", f"{algorithm} needs jwt_secret", "Use RS256 or ES256.")
    if settings.jwks_url is not None:
        url = _checked_url(settings.jwks_url)
        return Published(url, algorithm, lambda: _fetched(url))
    if settings.jwks_file is not None:
        return _of_file(settings.jwks_file, algorithm)
    return None


class Shared:
    """One secret that issuer and we know. Raises InvalidInput if it is too short to keep one."""

    def __init__(self, secret: bytes, algorithm: str) -> None:
        if algorithm != "HS256":
            raise InvalidInput("setting jwt_algorithm", f"{algorithm} needs published keys", "Use HS256 or jwks_url.")
        if len(secret) < SHORTEST_SECRET:
            raise InvalidInput(
                "setting jwt_secret",
                f"has {len(secret)} bytes, fewer than {SHORTEST_SECRET}",
                "Make one with `openssl rand -base64 48`.",
            )
        if secret.lstrip().startswith(b"-----BEGIN"):
            raise InvalidInput("setting jwt_secret", "is a key in PEM form, not a shared secret", "Use jwks_file.")
        self.algorithm = algorithm
        self._secret = secret

    async def key(self, kid: str | None) -> bytes:  # noqa: ARG002 - there is one only
        return self._secret


class Published:
    """A set of public keys. `fetch` answers with its text, and raises KeysUnavailable."""

    def __init__(
        self,
        place: str,
        algorithm: str,
        fetch: Callable[[], Awaitable[bytes]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.algorithm = algorithm
        self._place = place
        self._fetch = fetch
        self._clock = clock
        self._keys: dict[str | None, PyJWK] = {}
        self._fetched_at: float | None = None
        self._asked_at: float | None = None
        self._trouble: KeysUnavailable | None = None
        self._fetching = asyncio.Lock()

    async def key(self, kid: str | None) -> PyJWK:
        if self._is_due(kid):
            async with self._fetching:
                # Whoever waited finds what the one before fetched.
                if self._is_due(kid):
                    await self._refresh()
        if self._trouble is not None and self._age > _USABLE_SECONDS:
            raise self._trouble
        found = self._found(kid)
        if found is None:
            raise NotAuthenticated("the token's key (kid) is not among the published ones")
        return found

    def _found(self, kid: str | None) -> PyJWK | None:
        if kid is not None:
            return self._keys.get(kid)
        return next(iter(self._keys.values())) if len(self._keys) == 1 else None

    def _is_due(self, kid: str | None) -> bool:
        if self._asked_at is not None and self._clock() - self._asked_at < _BETWEEN_FETCHES_SECONDS:
            return False
        return self._age > _FRESH_SECONDS or self._found(kid) is None

    @property
    def _age(self) -> float:
        return float("inf") if self._fetched_at is None else self._clock() - self._fetched_at

    async def _refresh(self) -> None:
        """Keys that cannot be fetched again are good for an hour: their issuer being away must not lock all out."""
        self._asked_at = self._clock()
        try:
            self._keys = _usable(await self._fetch(), self.algorithm, self._place)
        except KeysUnavailable as trouble:
            self._trouble = trouble
            _log.warning("keys_unavailable", place=self._place, reason=trouble.reason)
        else:
            self._fetched_at, self._trouble = self._clock(), None


def _usable(text: bytes, algorithm: str, place: str) -> dict[str | None, PyJWK]:
    """The set's public keys for signatures by this algorithm. Raises KeysUnavailable."""
    try:
        given = json.loads(text)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError) as wrong:
        raise KeysUnavailable(place, "it is no JSON object with `keys`") from wrong
    if not isinstance(given, list) or len(given) > MOST_KEYS:
        raise KeysUnavailable(place, f"`keys` is no list of at most {MOST_KEYS}")
    found: dict[str | None, PyJWK] = {}
    for jwk in given:
        if isinstance(jwk, dict) and (key := _public(jwk, algorithm)) is not None:
            if key.key_id in found:
                raise KeysUnavailable(place, "two of its keys have one name (kid)")
            found[key.key_id] = key
    if not found:
        raise KeysUnavailable(place, f"it holds no public key for {algorithm}")
    return found


def _public(jwk: dict[str, Any], algorithm: str) -> PyJWK | None:
    """None for what is for something else, secret or too weak."""
    if jwk.get("kty") != _KEY_TYPES[algorithm] or "d" in jwk or not isinstance(jwk.get("kid"), str | None):
        return None
    if jwk.get("alg", algorithm) != algorithm or jwk.get("use", "sig") != "sig":
        return None
    if algorithm == "ES256" and jwk.get("crv") != "P-256":
        return None
    try:
        key = PyJWK(jwk, algorithm)
    except (PyJWTError, ValueError, TypeError):
        return None
    return None if algorithm == "RS256" and key.key.key_size < SHORTEST_RSA_BITS else key


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    if not safe or not parts.hostname:
        raise InvalidInput("setting jwks_url", "is no https URL", "Whoever can change what it answers can sign.")
    return url


async def _fetched(url: str) -> bytes:
    try:
        async with (
            asyncio.timeout(_FETCH_SECONDS),
            httpx.AsyncClient(timeout=_FETCH_SECONDS, follow_redirects=False, trust_env=False) as client,
            client.stream("GET", url, headers={"accept": "application/json"}) as answer,
        ):
            if answer.status_code != httpx.codes.OK:
                raise KeysUnavailable(url, f"it answers {answer.status_code}")
            return await _bounded(answer, url)
    except (httpx.HTTPError, TimeoutError) as trouble:
        reason = str(trouble) or f"no answer within {_FETCH_SECONDS:g} s"
        raise KeysUnavailable(url, reason) from trouble


async def _bounded(answer: httpx.Response, url: str) -> bytes:
    text = b""
    async for piece in answer.aiter_bytes():
        text += piece
        if len(text) > MOST_SET_BYTES:
            raise KeysUnavailable(url, f"it is larger than {MOST_SET_BYTES:,} bytes")
    return text


def _of_file(path: Path, algorithm: str) -> Published:
    place = str(path)

    async def read() -> bytes:
        try:
            with path.open("rb") as file:
                text = file.read(MOST_SET_BYTES + 1)
        except OSError as trouble:
            raise KeysUnavailable(place, trouble.strerror or "it cannot be read") from trouble
        if len(text) > MOST_SET_BYTES:
            raise KeysUnavailable(place, f"it is larger than {MOST_SET_BYTES:,} bytes")
        return text

    try:
        _usable(path.read_bytes(), algorithm, place)
    except (OSError, KeysUnavailable) as trouble:
        reason = trouble.reason if isinstance(trouble, KeysUnavailable) else trouble.strerror
        raise InvalidInput("setting jwks_file", f"cannot be used: {reason}") from trouble
    return Published(place, algorithm, read)
