"""Reads a file of prices, CSV or JSON, whole: the first mistake is told with its line and field, and nothing is set.

CSV has a heading of the names in `domain.price.PARTS`; JSON is a list of objects with these names.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

from flowledger.domain.price import PARTS, TeamPrice, written
from flowledger.errors import InvalidInput

MOST_BYTES = 1_000_000

_Line = tuple[int, Mapping[str, Any]]
"""Where an entry begins, from 1, and what it says."""


def read(path: Path) -> list[TeamPrice]:
    """Every price of the file. Raises InvalidInput."""
    text = _text(path)
    entries = _of_json(path, text) if text.lstrip()[:1] in ("[", "{") else _of_csv(path, text)
    prices: dict[Any, tuple[int, TeamPrice]] = {}
    for line, entry in entries:
        price = written(entry, lambda part, line=line: f"{path}:{line} {part}")  # type: ignore[misc]
        if price.key in prices:
            earlier = prices[price.key][0]
            told = f"{price.model} is priced in line {earlier} already"
            raise InvalidInput(f"{path}:{line} model", told, "Keep one of them, or give each its provider or since.")
        prices[price.key] = line, price
    if not prices:
        raise InvalidInput(str(path), "holds no prices", _SHAPE)
    return [price for _, price in prices.values()]


_SHAPE = f"Give CSV with a heading, or a JSON list of objects, of {', '.join(PARTS)}."


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise InvalidInput(str(path), f"is larger than {MOST_BYTES:,} bytes", "Split it.")
        # Spreadsheets put a mark in front of UTF-8.
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as unreadable:
        reason = unreadable.strerror if isinstance(unreadable, OSError) else "it is not UTF-8"
        raise InvalidInput(str(path), f"cannot be read: {reason}") from unreadable


def _of_csv(path: Path, text: str) -> Iterator[_Line]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        heading = [name.strip().lower() for name in next(rows, [])]
        _check_names(path, 1, heading)
        if len(set(heading)) < len(heading):
            raise InvalidInput(f"{path}:1", "names a column twice")
        before = rows.line_num
        for cells in rows:
            line, before = before + 1, rows.line_num
            if len(cells) > len(heading):
                raise InvalidInput(f"{path}:{line}", f"has {len(cells)} cells for {len(heading)} columns")
            if any(cell.strip() for cell in cells):
                yield line, {name: cell.strip() for name, cell in zip(heading, cells, strict=False)}
    except csv.Error as wrong:
        raise InvalidInput(f"{path}:{rows.line_num}", f"is no CSV: {wrong}") from wrong


def _of_json(path: Path, text: str) -> Iterator[_Line]:
    for at, element in _elements(path, text):
        line = _line(text, at)
        if not isinstance(element, dict):
            raise InvalidInput(f"{path}:{line}", "is no JSON object", _SHAPE)
        _check_names(path, line, element)
        yield line, element


def _elements(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON list and where each begins: read whole, the list would not tell."""
    decoder = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_constant)
    at = _past_space(text, 0)
    if text[at] != "[":
        raise InvalidInput(f"{path}:{_line(text, at)}", "is no JSON list", _SHAPE)
    at = _past_space(text, at + 1)
    sign = text[at : at + 1]
    while sign != "]":
        try:
            element, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as wrong:
            raise InvalidInput(f"{path}:{_line(text, at)}", f"is no JSON: {wrong}") from wrong
        yield at, element
        at = _past_space(text, end)
        sign = text[at : at + 1]
        if sign not in ("]", ","):
            raise InvalidInput(f"{path}:{_line(text, at)}", "is no JSON: a comma or the end of the list is missing")
        if sign == ",":
            at = _past_space(text, at + 1)
    if text[at + 1 :].strip():
        raise InvalidInput(f"{path}:{_line(text, at)}", "is no JSON: something follows the list")


_SPACE = re.compile(r"[ \t\r\n]*")


def _past_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _check_names(path: Path, line: int, names: Mapping[str, Any] | list[str]) -> None:
    if unknown := [name for name in names if name not in PARTS]:
        raise InvalidInput(f"{path}:{line} {unknown[0]}", "is not known", f"Known are {', '.join(PARTS)}.")
