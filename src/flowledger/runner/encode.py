"""Turns whatever a flow leaves behind into JSON that Postgres stores, and says what it had to change.

Never raises, never recurses deeper than DEEPEST, never consumes an iterator. Ordinary JSON comes out as it went in.
What changes, each counted in `changes`:

    not a number     NaN, Infinity -> null              cycle       a container inside itself -> "<cycle>"
    text             NUL removed, lone surrogates -> ?  too deep    below 100 levels -> its repr
    bytes            {"__bytes__": base64}              too many    beyond 1,000,000 values -> "<cut>"
    huge integer     {"__int__": hexadecimal}           key         not a string -> str(key)
    object           anything unknown -> its repr

Dates become ISO 8601, Decimal, UUID and paths strings, sets lists, enums their value, dataclasses and pydantic models
objects: these keep their meaning and are not counted.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import decimal
import enum
import hashlib
import json
import math
import pathlib
import uuid
from collections import Counter, deque
from typing import Any

from flowledger.runner.redact import Redactor

DEEPEST = 100
_MOST_VALUES = 1_000_000
_LONGEST_REPR = 1000
_LONGEST_PREVIEW = 4096
_LARGEST_PLAIN_INT = 10**4299
"""Python itself refuses to read longer integers from JSON (sys.set_int_max_str_digits)."""

_AS_TEXT = (decimal.Decimal, uuid.UUID, pathlib.PurePath, datetime.timedelta)
_AS_ISO = (datetime.datetime, datetime.date, datetime.time)
_AS_LIST = (list, tuple, set, frozenset, deque)


def encode(value: Any, redactor: Redactor | None = None) -> tuple[Any, dict[str, int]]:
    """`value` as plain JSON data, and how many changes of each kind that took. What is shortened is redacted first."""
    encoder = _Encoder(redactor or Redactor())
    return encoder.encode(value, 0), dict(encoder.changes)


def dump(value: Any, most_bytes: int, redactor: Redactor | None = None) -> tuple[bytes, dict[str, Any]]:
    """JSON text of encoded data, redacted; larger than `most_bytes` it becomes a preview with true size and sha256.

    The second part is empty, or holds `bytes` and `sha256` of what was left out.
    """
    return bounded(_json(value) if redactor is None else redacted(value, redactor)[1], most_bytes)


def redacted(value: Any, redactor: Redactor) -> tuple[Any, str]:
    """Encoded data without secrets, and its JSON text."""
    text = _json(value)
    if not redactor.suspects(text):
        return value, text
    value = redactor.data(value, numbers=True)
    return value, _json(value)


def bounded(text: str, most_bytes: int) -> tuple[bytes, dict[str, Any]]:
    """The JSON text as it is, or a preview of it; see `dump`."""
    body = text.encode()
    if len(body) <= most_bytes:
        return body, {}
    true = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    preview = {"truncated": True, **true, "preview": text[:_LONGEST_PREVIEW]}
    return json.dumps(preview, ensure_ascii=False).encode(), true


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def clean(text: str) -> str:
    """The text without what Postgres refuses: no NUL, no lone surrogates."""
    if text.isascii():
        return text.replace("\x00", "")
    try:
        text.encode()
    except UnicodeEncodeError:
        # Two halves that belong together become the character that they stand for.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\x00", "")


class _Encoder:
    def __init__(self, redactor: Redactor) -> None:
        self.changes: Counter[str] = Counter()
        self._redactor = redactor
        self._values = 0
        self._open: set[int] = set()

    def encode(self, value: Any, depth: int) -> Any:
        try:
            return self._encode(value, depth)
        except Exception:
            return self._unknown(value)

    def _encode(self, value: Any, depth: int) -> Any:
        self._values += 1
        if value is None or value is True or value is False:
            return value
        if isinstance(value, enum.Enum):
            return self.encode(value.value, depth + 1) if depth < DEEPEST else self._too_deep(value)
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, (int, float)):
            return self._number(value)
        if isinstance(value, (bytes, bytearray, memoryview)):
            self.changes["bytes"] += 1
            return {"__bytes__": base64.b64encode(bytes(value)).decode()}
        if isinstance(value, _AS_ISO):
            return value.isoformat()
        if isinstance(value, _AS_TEXT):
            return self._text(str(value))
        return self._container(value, depth)

    def _container(self, value: Any, depth: int) -> Any:
        if self._values > _MOST_VALUES:
            self.changes["too many"] += 1
            return "<cut>"
        if depth >= DEEPEST:
            return self._too_deep(value)
        if id(value) in self._open:
            self.changes["cycle"] += 1
            return "<cycle>"
        self._open.add(id(value))
        try:
            return self._opened(value, depth + 1)
        finally:
            self._open.discard(id(value))

    def _opened(self, value: Any, depth: int) -> Any:
        if isinstance(value, dict):
            return self._object(value, depth)
        if isinstance(value, _AS_LIST):
            return [self.encode(item, depth) for item in value]
        if not isinstance(value, type):
            if (output := _crew_output(value)) is not None:
                return self._object(output, depth)
            if callable(getattr(value, "model_dump", None)):
                return self._object(_model(value), depth)
            if dataclasses.is_dataclass(value):
                fields = dataclasses.fields(value)
                return self._object({field.name: getattr(value, field.name, None) for field in fields}, depth)
        return self._unknown(value)

    def _object(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, item in value.items():
            name = self._key(key)
            while name in result:
                name += "'"
            result[name] = self.encode(item, depth)
        return result

    def _key(self, key: Any) -> str:
        if isinstance(key, enum.Enum):
            key = key.value
        if isinstance(key, str):
            return self._text(key)
        self.changes["key"] += 1
        return self._redactor.cut(self._text(_repr(key) if isinstance(key, bytes) else str(key)), _LONGEST_REPR)

    def _text(self, value: str) -> str:
        plain = str.__str__(value)
        text = clean(plain)
        if text != plain:
            self.changes["text"] += 1
        return text

    def _number(self, value: Any) -> Any:
        if isinstance(value, float):
            if math.isfinite(value):
                return float.__pos__(value)
            self.changes["not a number"] += 1
            return None
        number = int.__pos__(value)
        if -_LARGEST_PLAIN_INT < number < _LARGEST_PLAIN_INT:
            return number
        self.changes["huge integer"] += 1
        return {"__int__": hex(number)}

    def _too_deep(self, value: Any) -> str:
        self.changes["too deep"] += 1
        return self._in_words(value)

    def _unknown(self, value: Any) -> str:
        self.changes["object"] += 1
        return self._in_words(value)

    def _in_words(self, value: Any) -> str:
        return self._redactor.cut(clean(_repr(value)), _LONGEST_REPR)


def _repr(value: Any) -> str:
    """The repr; of containers only the kind and the size, since theirs walks everything below."""
    try:
        if isinstance(value, (dict, *_AS_LIST)):
            return f"<{type(value).__name__} of {len(value)}>"
        return repr(value)
    except BaseException:
        return f"<{type(value).__name__} without a repr>"


def _model(value: Any) -> dict[str, Any]:
    """A pydantic model's fields. What its own serializer refuses is taken as it stands."""
    try:
        fields = value.model_dump()
    except Exception:
        fields = None
    return fields if isinstance(fields, dict) else dict(vars(value))


def _crew_output(value: Any) -> dict[str, Any] | None:
    """What users ask of CrewAI's own outputs, without the message lists that these carry along."""
    names: tuple[str, ...]
    kind = type(value)
    if not kind.__module__.startswith("crewai."):
        return None
    if kind.__name__ == "CrewOutput":
        names = ("raw", "json_dict", "pydantic", "tasks_output", "token_usage")
    elif kind.__name__ == "TaskOutput":
        names = ("name", "agent", "description", "raw", "json_dict", "pydantic")
    elif kind.__name__ == "LiteAgentOutput":
        names = ("raw", "agent_role", "pydantic", "usage_metrics")
    else:
        return None
    return {name: item for name in names if (item := getattr(value, name, None)) is not None}
