"""Under which names the API answers, and for whose pages a browser's login acts.

A page of anybody's can make a browser ask 127.0.0.1: under a name of its own that it lets point there, which Host
tells; or with the browser's cookies, which Origin and Sec-Fetch-Site tell.
"""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from flowledger.api.problems import problem
from flowledger.errors import InvalidInput, OriginRefused
from flowledger.settings import Settings

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def is_loopback(host: str) -> bool:
    if host in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def allowed_hosts(settings: Settings) -> frozenset[str] | None:
    """The names that the API answers to; None: any, for a public address that was given no names."""
    if settings.allowed_hosts is not None:
        names = frozenset(name.strip().lower() for name in settings.allowed_hosts.split(",") if name.strip())
        return names | LOOPBACK
    return LOOPBACK | {settings.server_host} if is_loopback(settings.server_host) else None


def require_safe_bind(settings: Settings) -> None:
    """Raises InvalidInput: an address that others reach needs a way to tell who they are."""
    configured = (settings.jwt_secret, settings.jwks_url, settings.jwks_file)
    if not is_loopback(settings.server_host) and all(one is None for one in configured):
        raise InvalidInput(
            "setting server_host",
            f"{settings.server_host} can be reached by others, and no key for JWTs is configured",
            "Set jwt_secret, jwks_url or jwks_file, or serve at 127.0.0.1 behind a proxy.",
        )


class Hosts:
    """Refuses requests for other names."""

    def __init__(self, app: ASGIApp, allowed: frozenset[str] | None) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._allowed is not None:
            given = Headers(scope=scope).getlist("host")
            if len(given) != 1 or _name(given[0]) not in self._allowed:
                title = "this name is not served here" if given else "the request names no host"
                refusal = problem(
                    421, "host_refused", title, remedy="Add it to FLOWLEDGER_ALLOWED_HOSTS.", field="Host"
                )
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()


def require_same_origin(request: Request) -> None:
    """A cookie counts only for requests that flowledger's own pages make, or the person at the address bar.

    SameSite alone would not do: to a browser all ports of this machine are one site. Raises OriginRefused.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    own = f"{request.url.scheme}://{request.headers.get('host', '')}"
    if origin is not None and origin != own:
        raise OriginRefused(origin)
    if request.method in SAFE_METHODS:
        if site in ("cross-site", "same-site") and request.headers.get("sec-fetch-mode") != "navigate":
            raise OriginRefused(site)
        return
    # Browsers tell the one or the other with everything that may change something.
    if site != "same-origin" and not (site is None and origin == own):
        raise OriginRefused(site or "")
