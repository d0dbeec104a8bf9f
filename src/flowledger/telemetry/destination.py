"""Where traces go: what the settings say, checked. Nothing of OpenTelemetry is loaded for it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from flowledger.errors import InvalidInput

_PATH = "/v1/traces"
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_UNPRINTABLE = re.compile(r"[^\t\x20-\x7e]")


@dataclass(frozen=True)
class Destination:
    """The address of an OTLP receiver over HTTP, with the headers that it wants. They are secrets."""

    url: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, endpoint: str, headers: str | None) -> Destination:
        """`endpoint` is the receiver's base URL, or the whole one that ends in `/v1/traces`. Raises InvalidInput."""
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput("setting otlp_endpoint", "is no URL", "Give one like http://127.0.0.1:4318.")
        if parts.username or parts.password:
            raise InvalidInput("setting otlp_endpoint", "holds a password", "Give it in otlp_headers.")
        base = endpoint.rstrip("/")
        return cls(base if base.endswith(_PATH) else base + _PATH, header_values(headers))


def header_values(headers: str | None) -> dict[str, str]:
    """`name=value` pairs between commas, values percent-encoded where need be, as OpenTelemetry's own variables have
    them. Raises InvalidInput.
    """
    pairs = [pair.strip().partition("=") for pair in (headers or "").split(",") if pair.strip()]
    read = {name.strip(): unquote(value.strip()) for name, _, value in pairs}
    for name, value in read.items():
        if not _HEADER.fullmatch(name) or not value or _UNPRINTABLE.search(value):
            raise InvalidInput(
                "setting otlp_headers",
                "cannot be read",
                "Give name=value pairs between commas, such as authorization=Bearer%20TOKEN.",
            )
    return read
