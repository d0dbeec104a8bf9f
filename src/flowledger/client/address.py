"""Where the server is and what it is asked with: given, or from FLOWLEDGER_URL and FLOWLEDGER_TOKEN."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from flowledger.domain.token import Secret
from flowledger.errors import InvalidInput

API = "/api/v1"

_VISIBLE = re.compile(r"[\x21-\x7e]+")
_LONGEST_KEY = 200


@dataclass(frozen=True)
class Address:
    """`url` is the server's, without `/api/v1`. `token` None: nobody is told who asks."""

    url: str
    token: Secret | None

    @classmethod
    def of(cls, url: str | None, token: str | None) -> Address:
        """Raises InvalidInput. It never repeats a token, nor a URL that holds a password."""
        url = url or os.environ.get("FLOWLEDGER_URL")
        token = token or os.environ.get("FLOWLEDGER_TOKEN")
        if not url:
            raise InvalidInput("url", "is not given", "Give url=..., or set FLOWLEDGER_URL; `flowledger up` prints it.")
        return cls(_checked_url(url.strip()), _checked_token(token))

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.token is None else {"Authorization": f"Bearer {self.token.text}"}

    @property
    def is_on_this_machine(self) -> bool:
        host = urlsplit(self.url).hostname or ""
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise InvalidInput("url", "is none that can be read", "Give one like https://flows.example.org.") from None
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("url", "holds a user or a password", "Leave them out and give a token.")
    if not is_sound or parts.query or parts.fragment or not _VISIBLE.fullmatch(url):
        raise InvalidInput("url", f"{url!r} is no server's", "Give one like https://flows.example.org.")
    return url.rstrip("/").removesuffix(API).rstrip("/")


def _checked_token(token: str | None) -> Secret | None:
    text = (token or "").strip()
    if not text:
        return None
    # What a header cannot hold would come back inside the HTTP library's error.
    if not _VISIBLE.fullmatch(text):
        raise InvalidInput("token", "holds characters that no token has", "Give it as it was shown, without quotes.")
    return Secret(text)


def checked_key(key: str) -> str:
    """An Idempotency-Key that the server takes. Raises InvalidInput."""
    if not _VISIBLE.fullmatch(key) or len(key) > _LONGEST_KEY:
        raise InvalidInput(
            "idempotency_key",
            f"must be 1 to {_LONGEST_KEY} letters, digits and signs of ASCII",
            "Use an id of your own, or leave it out.",
        )
    return key
