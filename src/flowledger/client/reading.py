"""Answers become what their types say: JSON in, frozen dataclasses out. What is not known here is passed over."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints
from uuid import UUID

from flowledger.client.answers import MadeToken
from flowledger.domain.timeline import Event, EventKind
from flowledger.domain.token import Secret, Token
from flowledger.domain.usage import LlmCall, Price, PricedCall

T = TypeVar("T")

UNFIT = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError)


def read(kind: type[T], value: Any) -> T:
    """The value as `kind` has it. Raises one of UNFIT for a value that does not fit."""
    told: T = _read(kind, value)
    return told


def _read(kind: Any, value: Any) -> Any:
    if kind is Any:
        return value
    if kind in _SPECIAL:
        return _SPECIAL[kind](value)
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else _read(next(part for part in parts if part is not type(None)), value)
    if origin is tuple:
        return _tuple(parts, value)
    if origin is dict:
        return {name: _read(parts[1], part) for name, part in _object(value).items()}
    return _made(kind, value)


def _made(kind: Any, value: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if not is_dataclass(kind):
        return _plain(kind, value)
    make: Any = kind
    return make(**_fields(kind, _object(value)))


def _tuple(parts: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise TypeError(f"a list was expected, not {type(value).__name__}")
    if parts[-1] is ...:
        return tuple(_read(parts[0], part) for part in value)
    return tuple(_read(kind, part) for kind, part in zip(parts, value, strict=True))


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"an object was expected, not {type(value).__name__}")
    return value


@cache
def _types(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


def _fields(kind: Any, value: Mapping[str, Any]) -> dict[str, Any]:
    """What is left out has a default, or is missed by the class itself."""
    return {name: _read(of, value[name]) for name, of in _types(kind).items() if name in value}


def _plain(kind: Any, value: Any) -> Any:
    # A whole number of JSON may stand for any number; True is an int to Python.
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"{kind.__name__} was expected, not {type(value).__name__}")
    return value


def _decimal(value: Any) -> Decimal:
    return Decimal(_plain(str, value))


def _event(value: Any) -> Event:
    """A server of a later version may tell of kinds that are not known here."""
    told = dict(_object(value))
    known = EventKind.__members__.values()
    facts = told["fields"] if isinstance(told["fields"], dict) else {"value": told["fields"]}
    if told["kind"] not in list(known):
        told["kind"], facts = EventKind.LOG, {**facts, "unknown_kind": told["kind"]}
    return Event(**_fields(Event, {**told, "fields": facts}))


def _call(value: Any) -> PricedCall:
    told = _object(value)
    price = told["price"]
    return PricedCall(
        read(LlmCall, told),
        None if price is None else Price.from_json(price),
        None if told["estimated_usd"] is None else _decimal(told["estimated_usd"]),
    )


def _made_token(value: Any) -> MadeToken:
    return MadeToken(read(Token, value), Secret(_plain(str, _object(value)["token"])))


_SPECIAL: dict[Any, Any] = {
    UUID: lambda value: UUID(_plain(str, value)),
    datetime: lambda value: datetime.fromisoformat(_plain(str, value)),
    date: lambda value: date.fromisoformat(_plain(str, value)),
    Decimal: _decimal,
    Event: _event,
    PricedCall: _call,
    MadeToken: _made_token,
}
