"""Every problem that the API may answer with, for those who read about them: the OpenAPI document, /docs/problems and
the reference page.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any, Self

from flowledger.api.problems import OF_HTTP, STATUSES
from flowledger.errors import FlowledgerError


@dataclass(frozen=True)
class Told:
    """A kind of problem. `title` and `remedy` are examples; what differs each time stands in angle quotes."""

    code: str
    status: int
    meaning: str
    title: str
    remedy: str

    @classmethod
    def of(cls, kind: type[FlowledgerError], status: int) -> Self:
        one = example(kind)
        return cls(kind.code, status, inspect.cleandoc(kind.__doc__ or ""), one.title, one.hint)


def catalog() -> list[Told]:
    """By status, then as errors.py has them."""
    of_http = [Told(code, *told) for code, told in OF_HTTP.items()]
    return sorted([*of_http, *(Told.of(kind, status) for kind, status in STATUSES)], key=lambda told: told.status)


def example(kind: type[FlowledgerError]) -> FlowledgerError:
    """An error whose facts are their own names."""
    return kind(**{field.name: _placeholder(field.name, str(field.type)) for field in fields(kind)})  # type: ignore[arg-type]


class _Number(int):
    """A number that is printed as the name of what it counts."""

    name: str

    def __format__(self, _spec: str) -> str:
        return f"‹{self.name}›"


def _placeholder(name: str, kind: str) -> Any:
    if kind.startswith("tuple"):
        return (f"‹{name}›",)
    if name == "execution" and kind == "Any":
        told = ("flow_key", "execution_key", "error_type", "error_message", "id")
        return SimpleNamespace(**{fact: f"‹{fact}›" for fact in told})
    if kind in ("int", "float"):
        number = _Number(1)
        number.name = name
        return number
    return f"‹{name}›"
