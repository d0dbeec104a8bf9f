"""Which values of an environment are secrets, and in which clothes one may come back. Standard library only.

A variable tells by its name (OPENAI_API_KEY), by the shape of its value (ghp_...), or by a password inside it
(DATABASE_URL). Looking for them in texts is left to `redact.py`.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, quote_from_bytes, unquote, urlsplit

from flowledger.runner import token

SHORTEST = 6
"""Shorter values are no secrets, and would be found in any text."""

_LONGEST = 16_384
_SLICE = 4_096
_LEAST_TELLING_LINE = 16
_DEEPEST = 20

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET_WORDS = {
    "key", "keys", "token", "tokens", "secret", "secrets", "password", "passwords", "passwd", "pass",
    "passphrase", "passcode", "pwd", "credential", "credentials", "creds", "auth", "authorization", "private",
    "dsn", "cookie", "cookies", "session", "signature", "signing", "webhook", "webhooks", "jwt", "bearer",
    "pat", "pin", "otp", "sas", "salt", "mnemonic", "connstr",
}  # fmt: skip
_SECRET_ENDINGS = ("key", "token", "secret", "password", "passwd", "pwd", "credentials", "webhook", "dsn", "cookie")
_SECRET_ALL_THE_SAME = {
    "password", "passwd", "secret", "private", "credential", "credentials", "dsn", "webhook", "webhooks", "sas",
}  # fmt: skip
"""Whatever else the name says: AUTH_TYPE and AUTH_URL hold no secret, SECRET_TYPE and WEBHOOK_URL are not trusted."""

_SETTING_WORDS = {
    "algorithm", "alg", "audience", "backend", "count", "days", "disabled", "domain", "enabled", "engine",
    "host", "hours", "issuer", "length", "limit", "max", "method", "min", "minutes", "mode", "model", "name",
    "parallelism", "port", "prefix", "provider", "region", "scope", "scopes", "seconds", "size", "timeout",
    "ttl", "type", "version",
}  # fmt: skip
_PLACE_WORDS = {"file", "path", "dir", "directory", "folder", "home", "sock", "socket", "store"}
_COUNTED_WORDS = {"tokens", "keys", "cookies"}
_ADDRESS_WORDS = {"url", "uri", "endpoint", "base"}
_NO_SECRETS = re.compile(
    r"(OLD)?PWD|DESKTOP_SESSION|GDMSESSION|SESSION_MANAGER|SESSIONNAME|XAUTHORITY|SSH_AUTH_SOCK|"
    r"XDG_SESSION_.*|DBUS_SESSION_.*|TERM_SESSION_ID|FLOWLEDGER_RUN"
)
_COMMON_VALUES = {
    "true", "false", "none", "null", "undefined", "enabled", "disabled", "default", "required", "optional",
    "always", "never", "local", "localhost", "development", "production", "staging", "testing", "postgres",
    "postgresql", "password", "passwd", "secret", "secrets", "changeme", "change-me", "change_me", "example",
    "placeholder", "dummy-key", "dummykey", "dummy_key", "not-needed", "not_needed", "notneeded", "redacted",
    "[redacted]", "username", "anonymous", "public", "private", "session", "token", "basic", "bearer", "oauth",
    "oauth2", "openai", "anthropic", "flowledger",
}  # fmt: skip
_SCHEME = re.compile(r"(?:bearer|basic|token|apikey|digest)\s+(\S.*)", re.IGNORECASE)
_USERINFO = re.compile(r"://([^\s:/?#@]*)(?::(.+))?@")
_ASSIGNED = re.compile(r"([\w .-]{2,40}?)\s*=\s*('[^']*'|\"[^\"]*\"|[^;&\s]+)")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SAME_IN_JSON = re.compile(r"[ !#-\[\]-~]*")
_PERCENT = re.compile("%[0-9A-F]{2}")


def secrets_of(name: str, value: str) -> list[str]:
    """The secret texts that a variable holds, each once; none for most variables."""
    value = value.strip()
    if len(value) < SHORTEST or _NO_SECRETS.fullmatch(name):
        return []
    told = list(_inside(value, 0))
    if _is_secret(name, value) or token.is_token(value):
        told += _whole(value)
    told += [line for part in told for line in _lines(part)]
    return [secret for secret in dict.fromkeys(part.strip() for part in told) if _is_telling(name, secret)]


def variants(secret: str) -> list[str]:
    """The forms of a secret: as it is, escaped for JSON (also twice), Python, HTML and URLs, base64 and hexadecimal."""
    data = _bytes(secret)
    plain = {secret, data.decode("utf-8", "replace"), _SURROGATE.sub("\ufffd", secret)}
    plain |= {_without_nul(secret, encoding) for encoding in ("utf-16-le", "utf-16-be")}
    forms = {form for text in plain for form in _written(text)} | {repr(data)[2:-1], data.hex(), data.hex().upper()}
    forms |= _percent_encoded(data) | _base64(data)
    return sorted(form for form in forms if len(form) >= SHORTEST)


def in_json(text: str) -> set[str]:
    """How a JSON text spells it, with and without \\u escapes."""
    if _SAME_IN_JSON.fullmatch(text):
        return {text}
    return {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}


# -- Which values ------------------------------------------------------------------------------------------------------


def _is_secret(name: str, value: str) -> bool:
    words = [word.lower() for word in _WORD.findall(name)]
    if not any(_sounds_secret(word) for word in words) and "connectionstring" not in "".join(words):
        return False
    last = words[-1]
    if (last in _SETTING_WORDS and _SECRET_ALL_THE_SAME.isdisjoint(words)) or value.lower() in _COMMON_VALUES:
        return False
    if last in _COUNTED_WORDS and value.isdecimal():
        return False
    if value.startswith(("/", "~/", "./", "../")) and (last in _PLACE_WORDS or _exists(value)):
        return False
    # AUTH_URL is an address that may be read; what is secret inside of it is found by `_inside`.
    names_address = last in _ADDRESS_WORDS and _SECRET_ALL_THE_SAME.isdisjoint(words)
    return not (names_address and value.startswith(("http://", "https://")))


def _sounds_secret(word: str) -> bool:
    return word in _SECRET_WORDS or word.endswith(_SECRET_ENDINGS) or "secret" in word or "password" in word


def _exists(value: str) -> bool:
    try:
        return os.path.exists(os.path.expanduser(value))  # noqa: PTH110, PTH111 - never raises for a long name
    except ValueError:
        return False


def _is_telling(name: str, secret: str) -> bool:
    """False for what is found in any text, and for a word that the variable's own name holds."""
    if len(secret) < SHORTEST or len(set(secret)) < 3:
        return False
    return secret.lower() not in _COMMON_VALUES and secret.lower() not in f"[redacted {name}]".lower()


def _whole(value: str) -> Iterator[str]:
    """The value itself, in slices if it is very long, and what is left without its wrapping."""
    yield from [value] if len(value) <= _LONGEST else _slices(value)
    if value[0] == value[-1] and value[0] in "'\"":
        yield value[1:-1]
    if scheme := _SCHEME.fullmatch(value):
        yield scheme[1]
    if value.startswith(("http://", "https://")):
        # What urllib3's errors call the url: without scheme and host.
        _, _, rest = value.partition("://")[2].partition("/")
        if len(rest) > 2 * SHORTEST:
            yield rest


def _lines(secret: str) -> list[str]:
    """Of a secret with more than one: a log or a traceback may indent them. What frames a key is in every key."""
    lines = secret.splitlines()
    if len(lines) < 2 or _is_json(secret):
        return []
    return [line for line in map(str.strip, lines) if len(line) >= _LEAST_TELLING_LINE and "-----" not in line]


def _slices(text: str) -> Iterator[str]:
    return (text[at : at + _SLICE] for at in range(0, len(text), _SLICE))


def _inside(value: str, depth: int) -> Iterator[str]:
    """Passwords of URLs and connection strings, and what a JSON text calls a secret."""
    if "://" in value:
        yield from _of_url(value)
    if "=" in value:
        for name, assigned in _ASSIGNED.findall(value):
            if _is_secret(name.rpartition(" ")[2], assigned):
                yield assigned.strip("'\"")
    if value[:1] in "{[" and depth < _DEEPEST:
        with contextlib.suppress(ValueError, RecursionError):
            yield from _of_json(json.loads(value), depth)


def _of_url(value: str) -> Iterator[str]:
    for user, password in _USERINFO.findall(value):
        if password:
            # The last @ ends it where it is not escaped, the first where more than one URL is in here.
            ends = (password, password.partition("@")[0])
            yield from (form for end in ends for form in (end, unquote(end)))
        elif len(user) >= _LEAST_TELLING_LINE and any(letter.isdigit() for letter in user):
            yield user
    try:
        given = parse_qsl(urlsplit(value).query)
    except ValueError:
        given = []
    for name, part in given:
        if _is_secret(name, part):
            yield part


def _of_json(value: Any, depth: int, name: str = "") -> Iterator[str]:
    if isinstance(value, dict) and depth < _DEEPEST:
        for key, part in value.items():
            yield from _of_json(part, depth + 1, str(key))
    elif isinstance(value, list) and depth < _DEEPEST:
        for part in value:
            yield from _of_json(part, depth + 1, name)
    elif isinstance(value, str) and value.strip():
        text = value.strip()
        if _is_secret(name, text) or token.is_token(text):
            yield from _whole(text)
        yield from _inside(text, depth + 1)


def _is_json(value: str) -> bool:
    if value[:1] not in "{[":
        return False
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return False
    return True


# -- In which clothes --------------------------------------------------------------------------------------------------


def _bytes(secret: str) -> bytes:
    try:
        return secret.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return secret.encode("utf-8", "replace")


def _without_nul(secret: str, encoding: str) -> str:
    """UTF-16 as it is stored: Postgres takes no NUL, and what is left of most languages is a text that people read."""
    return secret.encode(encoding, "surrogatepass").replace(b"\x00", b"").decode("utf-8", "surrogateescape")


def _written(text: str) -> Iterator[str]:
    yield text
    yield repr(text)[1:-1]
    yield text.replace("\\", "\\\\").replace("'", "\\'")
    yield html.escape(text, quote=False)
    yield (escaped := html.escape(text))
    yield escaped.replace("&#x27;", "&#39;").replace("&quot;", "&#34;")
    for once in in_json(text):
        yield once
        yield once.replace("/", "\\/")
        yield from in_json(once)


def _percent_encoded(data: bytes) -> set[str]:
    """As `quote`, `quote_plus`, JavaScript and HTTP clients do, who differ in what they leave as it is."""
    forms = {quote_from_bytes(data, safe) for safe in ("", "/", "!'()*", "!$&'()*+,/:;=?@[]")}
    forms |= {form.replace("%20", "+") for form in forms}
    return forms | {_lower_case(form) for form in forms}


def _lower_case(form: str) -> str:
    return _PERCENT.sub(lambda found: found[0].lower(), form)


def _base64(data: bytes) -> set[str]:
    """Wherever it begins in what was encoded (`user:secret`): three ways to lie, without the ends that others share."""
    cores = set()
    for before in range(3):
        text = base64.b64encode(bytes(before) + data).decode()
        shared = (0, 2, 3)[before]
        cores.add(text[shared : (before + len(data)) * 8 // 6])
    cores |= {core.replace("+", "-").replace("/", "_") for core in cores}
    escaped = {quote_from_bytes(core.encode(), "") for core in cores}
    return cores | escaped | {_lower_case(form) for form in escaped}
