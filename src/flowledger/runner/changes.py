"""What a method changed in its flow's state: a short list in the shape of a JSON Patch (RFC 6902) with old values.

Inside the child: standard library only. Both states are plain data, as `encode` makes it. Bounded in number, in depth
and in the size of each value; what is left out is counted.
"""

from __future__ import annotations

import json
from typing import Any

_MOST_CHANGES = 50
_LONGEST_VALUE = 200
_DEEPEST = 8
_ABSENT = object()


def between(before: Any, after: Any) -> tuple[list[dict[str, Any]], int]:
    """The changes that lead from one to the other, the first of them, and how many more there are."""
    found: list[dict[str, Any]] = []
    number = _compare(before, after, "", 0, found)
    return found, number - len(found)


def _compare(before: Any, after: Any, path: str, depth: int, found: list[dict[str, Any]]) -> int:
    if before is after or (before == after and type(before) is type(after)):
        return 0
    if depth < _DEEPEST and isinstance(before, dict) and isinstance(after, dict):
        names = [*before, *(name for name in after if name not in before)]
        pairs = [(name, before.get(name, _ABSENT), after.get(name, _ABSENT)) for name in names]
    elif depth < _DEEPEST and isinstance(before, list) and isinstance(after, list):
        longest = range(max(len(before), len(after)))
        pairs = [
            (str(at), before[at] if at < len(before) else _ABSENT, after[at] if at < len(after) else _ABSENT)
            for at in longest
        ]
    else:
        _note(before, after, path, found)
        return 1
    return sum(_compare(old, new, f"{path}/{_escaped(name)}", depth + 1, found) for name, old, new in pairs)


def _note(before: Any, after: Any, path: str, found: list[dict[str, Any]]) -> None:
    if len(found) >= _MOST_CHANGES:
        return
    if before is _ABSENT:
        found.append({"op": "add", "path": path, "value": _short(after)})
    elif after is _ABSENT:
        found.append({"op": "remove", "path": path, "was": _short(before)})
    else:
        found.append({"op": "replace", "path": path, "value": _short(after), "was": _short(before)})


def _escaped(name: str) -> str:
    """As a JSON Pointer writes it (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def _short(value: Any) -> Any:
    """Small values as they are, of others the beginning of their JSON."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) <= _LONGEST_VALUE:
        return value
    return text[:_LONGEST_VALUE] + "…"
