"""Checks a flow's inputs before anything starts, and reads `key=value` pairs into them.

The schema is the flow's as discovered (`domain/flow.py`). CrewAI itself ignores inputs that the state does not know
and reports the rest only once the flow runs; here every problem is told by the name of its field, first.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time
from functools import lru_cache
from pathlib import Path
from typing import Any

import referencing
import referencing.exceptions
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError, ValidationError

from flowledger.database.session import UNREADABLE
from flowledger.domain.execution import Execution, JsonObject, NewExecution
from flowledger.errors import InvalidInput

Schema = Mapping[str, Any]
Step = str | int

TAKEN_OVER = ("timeout_seconds", "queue_seconds", "priority", "budget_usd", "budget_tokens", "on_budget", "title")
"""Of an earlier execution's metadata: what it was asked for. The rest tells how it ran."""

ALWAYS_ACCEPTED = ("id", "crewai_trigger_payload")
"""CrewAI's own inputs: the run's id, a string, and what a trigger sends to start methods that ask for it, any JSON."""

_DEEPEST = 100
_LONGEST_QUOTE = 60
_LARGEST_INTEGER_BITS = 13_000  # about 3,900 digits; Python's own JSON reader stops at 4,300
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


# -- Checking ----------------------------------------------------------------------------------------------------------


def check(flow_schema: Schema | None, inputs: Any) -> None:
    """Raises InvalidInput for the first problem: unknown input, wrong type, missing field, value out of bounds.

    `flow_schema` None takes any JSON object. Objects are closed unless their schema speaks of additional properties
    (pydantic's `extra="allow"` does), because CrewAI would drop what it does not know without a word.
    """
    if not isinstance(inputs, dict):
        raise InvalidInput("inputs", f"must be an object, not {_quoted(inputs)}", "Give names and values.")
    refuse_unstorable(inputs)
    if not isinstance(inputs.get("id", ""), str):
        raise InvalidInput("id", f"must be a string, not {_quoted(inputs['id'])}", "Leave it out to get a fresh one.")
    if flow_schema is None:
        return
    known = flow_schema.get("properties", {})
    own = {name: value for name, value in inputs.items() if name in known or name not in ALWAYS_ACCEPTED}
    error = _first_error(flow_schema, own)
    if error is not None:
        raise _told(error, flow_schema)


def _first_error(schema: Schema, inputs: Mapping[str, Any]) -> ValidationError | None:
    try:
        validator = _validator(json.dumps(schema))
        return max(validator.iter_errors(inputs), key=_relevance, default=None)
    except (SchemaError, referencing.exceptions.Unresolvable) as reason:
        said = getattr(reason, "message", str(reason))
        raise InvalidInput(
            "inputs", f"cannot be checked, the flow's own schema is wrong: {said}", "Correct the flow's state."
        ) from reason


@lru_cache(maxsize=256)
def _validator(schema_text: str) -> Draft202012Validator:
    """Of a schema as text: whether a schema is right takes longer to see than whether inputs are."""
    schema = json.loads(schema_text)
    Draft202012Validator.check_schema(schema)
    # The parts of an `allOf` describe a part of the object each; such a schema says by itself what is unknown.
    closed = schema if "allOf" in schema_text else _closed(schema)
    return Draft202012Validator(closed, format_checker=_FORMATS, registry=_NOTHING_REMOTE)


_NOTHING_REMOTE: referencing.Registry[Any] = referencing.Registry()
"""A `$ref` to a URL is an error, not a download."""


def _closed(schema: Any) -> Any:
    """The same schema with `additionalProperties: false` on every object that lists its properties and says no more."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed_keyword(key, part) for key, part in schema.items()}
    if isinstance(closed.get("properties"), dict) and not _SAYS_MORE & closed.keys():
        closed["additionalProperties"] = False
    return closed


_SAYS_MORE = {"additionalProperties", "unevaluatedProperties", "patternProperties", "anyOf", "oneOf", "$ref", "if"}


def _closed_keyword(key: str, part: Any) -> Any:
    if key in ("properties", "$defs", "definitions") and isinstance(part, dict):
        return {name: _closed(schema) for name, schema in part.items()}
    if key in ("items", "prefixItems", "additionalProperties", "anyOf", "oneOf"):
        return _closed(part)
    return part


def _relevance(error: ValidationError) -> tuple[bool, int]:
    """A misspelt name first, for it explains the missing one; then what is nearest to the top."""
    return (error.validator == "additionalProperties", -len(error.absolute_path))


def refuse_unstorable(inputs: Any, field: str | None = None) -> None:
    """What JSON or Postgres cannot hold is refused here, by name, and not by the database later. `field` names what is
    looked into, unless its parts are named by themselves. Raises InvalidInput.
    """
    start: tuple[Step, ...] = () if field is None else (field,)
    waiting: list[tuple[tuple[Step, ...], Any]] = [(start, inputs)]
    while waiting:
        path, value = waiting.pop()
        problem = _problem_with_storing(value, len(path))
        if problem:
            raise InvalidInput(_named(path) or "inputs", problem)
        if isinstance(value, dict):
            waiting += [((*path, key), part) for key, part in value.items()]
        elif isinstance(value, list):
            waiting += [((*path, index), part) for index, part in enumerate(value)]


def _problem_with_storing(value: Any, depth: int) -> str | None:
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, dict) else []
    if any(not isinstance(text, str) for text in texts):
        return "has a name that is not a string"
    if any(_UNSTORABLE.search(text) for text in texts):
        return "holds a NUL character or half a surrogate pair, which Postgres cannot store"
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}, which JSON does not know"
    if isinstance(value, int) and value.bit_length() > _LARGEST_INTEGER_BITS:
        return "is an integer of more than 3,900 digits"
    if depth > _DEEPEST:
        return f"is nested deeper than {_DEEPEST} levels"
    if not isinstance(value, str | float | int | dict | list | None):
        return f"is a {type(value).__name__}, which JSON does not know"
    return None


# -- Again ------------------------------------------------------------------------------------------------------------


def of_earlier(earlier: Execution) -> JsonObject:
    """The inputs that an execution had. Raises InvalidInput when they cannot be read."""
    given = earlier.input_state or {}
    if not isinstance(given, dict) or UNREADABLE in given:
        raise InvalidInput("inputs", f"those of {earlier.id} cannot be read", "Start the flow with inputs of its own.")
    return given


def again(earlier: Execution, inputs: JsonObject) -> NewExecution:
    """What to ask for to repeat an execution with these inputs."""
    metadata = earlier.metadata if isinstance(earlier.metadata, dict) else {}
    return NewExecution(
        flow_key=earlier.flow_key,
        inputs=inputs,
        board_meeting_id=earlier.board_meeting_id,
        rerun_of=earlier.id,
        metadata={name: metadata[name] for name in TAKEN_OVER if name in metadata},
    )


# -- Telling what is wrong ---------------------------------------------------------------------------------------------


def _told(error: ValidationError, root: Schema) -> InvalidInput:
    error = _innermost(error)
    path = tuple(error.absolute_path)
    schema: Any = error.schema
    limit: Any = error.validator_value
    value: Any = error.instance
    kind = str(error.validator)
    if kind == "additionalProperties":
        return _unknown(path, schema, value)
    if kind == "required":
        return _missing(path, schema, value, root)
    remedy = ""
    if kind in ("type", "anyOf", "oneOf"):
        problem = f"must be {_expected(schema, root)}, not {_quoted(value)}"
    elif kind == "enum":
        problem, remedy = f"must be one of {_listed(limit)}, not {_quoted(value)}", _did_you_mean(value, limit)
    elif kind in _BOUNDS:
        problem = _BOUNDS[kind].format(limit=limit, value=_quoted(value), count=_count(value))
    else:
        problem = _shortened(error.message)
    return InvalidInput(_named(path) or "inputs", problem, remedy or _sentence(schema.get("description", "")))


_BOUNDS = {
    "const": "must be {limit!r}, not {value}",
    "minimum": "must be at least {limit}, not {value}",
    "maximum": "must be at most {limit}, not {value}",
    "exclusiveMinimum": "must be more than {limit}, not {value}",
    "exclusiveMaximum": "must be less than {limit}, not {value}",
    "multipleOf": "must be a multiple of {limit}, not {value}",
    "minLength": "has {count} characters, it needs at least {limit}",
    "maxLength": "has {count} characters, the limit is {limit}",
    "minItems": "has {count} items, it needs at least {limit}",
    "maxItems": "has {count} items, the limit is {limit}",
    "minProperties": "has {count} entries, it needs at least {limit}",
    "maxProperties": "has {count} entries, the limit is {limit}",
    "uniqueItems": "holds an item twice",
    "pattern": "must match the pattern {limit}, not {value}",
    "format": "must be a valid {limit}, not {value}",
}


def _innermost(error: ValidationError) -> ValidationError:
    """Of several alternatives the one that was meant: its type fits and something else about it does not."""
    while error.context:
        meant = [inner for inner in error.context if inner.validator != "type" or inner.relative_path]
        if not meant:
            return error
        error = max(meant, key=_relevance)
    return error


def _unknown(path: tuple[Step, ...], schema: Schema, value: Mapping[str, Any]) -> InvalidInput:
    known = list(schema.get("properties", {}))
    unknown = next((name for name in value if name not in known), "")
    takes = f"It takes {_listed(known)}." if known else "It takes no inputs."
    return InvalidInput(_named((*path, unknown)), "there is no such input", _did_you_mean(unknown, known) or takes)


def _missing(path: tuple[Step, ...], schema: Schema, value: Mapping[str, Any], root: Schema) -> InvalidInput:
    missing = next(name for name in schema["required"] if name not in value)
    part = schema.get("properties", {}).get(missing, {})
    remedy = f"Give {_expected(part, root)}"
    described = part.get("description", "") if isinstance(part, dict) else ""
    return InvalidInput(
        _named((*path, missing)),
        "is required and was not given",
        _sentence(f"{remedy}: {described}" if described else remedy),
    )


def _expected(schema: Any, root: Schema) -> str:
    """The types a reader may give, in words."""
    return " or ".join(_TYPES.get(kind, kind) for kind in _types(schema, root)) or "a value"


_TYPES = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def _sentence(text: str) -> str:
    return f"{text.rstrip('.')}." if text else ""


def _did_you_mean(given: Any, known: Iterable[Any]) -> str:
    near = difflib.get_close_matches(str(given), [str(name) for name in known], n=1, cutoff=0.6)
    return f"Did you mean {near[0]}?" if near else ""


def _named(path: tuple[Step, ...]) -> str:
    """`lead.emails[0]`"""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(value if isinstance(value, str) else json.dumps(value) for value in values)


def _quoted(value: Any) -> str:
    return _shortened(json.dumps(value, ensure_ascii=False, default=repr))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}\N{HORIZONTAL ELLIPSIS}"


def _count(value: Any) -> str:
    return f"{len(value):,}" if isinstance(value, str | list | dict) else "0"


# -- Formats -----------------------------------------------------------------------------------------------------------

_FORMATS = FormatChecker(("email", "ipv4", "ipv6", "uuid", "regex"))


@_FORMATS.checks("date-time", raises=ValueError)
def _is_datetime(value: object) -> bool:
    return not isinstance(value, str) or bool(datetime.fromisoformat(value))


@_FORMATS.checks("date", raises=ValueError)
def _is_date(value: object) -> bool:
    return not isinstance(value, str) or bool(date.fromisoformat(value))


@_FORMATS.checks("time", raises=ValueError)
def _is_time(value: object) -> bool:
    return not isinstance(value, str) or time.fromisoformat(value) is not None


# -- Reading pairs -----------------------------------------------------------------------------------------------------


def parse(pairs: Iterable[str], schema: Schema | None) -> dict[str, Any]:
    """Inputs from `key=value`, `key=@file` and `key:=json`; dots in a key lead into nested objects.

    A value becomes what the schema wants of it: `quantity=3` is a number where a number is wanted and a string where a
    string is. One that does not fit stays a string, for `check` to name. Without a schema, JSON that is not a string
    is taken as JSON. Raises InvalidInput for a pair that cannot be read or contradicts another.
    """
    inputs: dict[str, Any] = {}
    for pair in pairs:
        key, text, is_json = _split(pair)
        path = _path(key, schema)
        value = _json(key, text) if is_json else _coerced(text, _types(_schema_at(schema, path), schema))
        _put(inputs, path, value)
    return inputs


def _split(pair: str) -> tuple[str, str, bool]:
    key, equals, text = pair.partition("=")
    is_json = key.endswith(":")
    key = key.removesuffix(":").strip()
    if not equals or not key or not all(key.split(".")):
        raise InvalidInput(_shortened(pair), "is not key=value", "Write -i key=value, key=@file or key:=json.")
    if text.startswith("@"):
        text = _file(key, Path(text[1:]).expanduser())
    return key, text, is_json


def _file(key: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        problem = f"the file {path} cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        problem = f"the file {path} is not UTF-8 text"
    raise InvalidInput(key, problem, 'To give text that begins with @, write key:="@text".')


def _json(key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(key, f"is not JSON: {error}", "Write key=value to give plain text.") from error


def _path(key: str, schema: Schema | None) -> list[str]:
    """An input whose own name holds a dot is taken by its name."""
    return [key] if key in (schema or {}).get("properties", {}) else key.split(".")


def _put(inputs: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    inside: Any = inputs
    for parent in parents:
        inside = inside.setdefault(parent, {})
        if not isinstance(inside, dict):
            raise InvalidInput(".".join(path), f"{parent} already has a value of its own", "Give one or the other.")
    if last in inside:
        raise InvalidInput(".".join(path), "is given twice", "Give it once.")
    inside[last] = value


def _coerced(text: str, types: list[str]) -> Any:
    """The first reading of the text that a wanted type allows; null only where plain text is not wanted."""
    try:
        value = json.loads(text.lower() if text in ("True", "False") else text)
    except (ValueError, RecursionError):
        return text
    kind = _type_of(value)
    if not types:
        return text if kind == "string" else value
    if kind == "null" and "string" in types:
        return text
    fits = kind in types or (kind == "integer" and "number" in types)
    return value if fits and kind != "string" else text


def _type_of(value: Any) -> str:
    for kind, python_type in _PYTHON_TYPES:
        if isinstance(value, python_type):
            return kind
    return "null"


# bool comes first: Python counts it among the integers.
_PYTHON_TYPES: tuple[tuple[str, type], ...] = (
    ("boolean", bool),
    ("integer", int),
    ("number", float),
    ("string", str),
    ("array", list),
    ("object", dict),
)


def _schema_at(schema: Schema | None, path: list[str]) -> Any:
    """The part of the schema that speaks of this path, with references resolved; empty where it says nothing."""
    root: Any = schema or {}
    part = root
    for name in path:
        part = next(
            (choice["properties"][name] for choice in _choices(part, root) if name in choice.get("properties", {})),
            next((choice["additionalProperties"] for choice in _choices(part, root) if _is_map(choice)), {}),
        )
    return part


def _is_map(choice: Schema) -> bool:
    return isinstance(choice.get("additionalProperties"), dict)


def _choices(part: Any, root: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The part itself and its alternatives. A reference that leads to itself ends at the depth limit."""
    if not isinstance(part, dict) or depth > _DEEPEST:
        return
    reference = part.get("$ref")
    if isinstance(reference, str):
        name = reference.rpartition("/")[2]
        yield from _choices({**root.get("$defs", {}), **root.get("definitions", {})}.get(name, {}), root, depth + 1)
    alternatives = [choice for key in ("anyOf", "oneOf", "allOf") for choice in part.get(key, [])]
    for alternative in alternatives:
        yield from _choices(alternative, root, depth + 1)
    if (reference is None and not alternatives) or "properties" in part or "type" in part:
        yield part


def _types(schema: Any, root: Schema | None) -> list[str]:
    """The JSON types that a schema allows, in its order; empty if it does not say."""
    kinds: list[str] = []
    for choice in _choices(schema, root or {}):
        named = choice.get("type", [])
        values = [*choice.get("enum", []), *([choice["const"]] if "const" in choice else [])]
        kinds += [named] if isinstance(named, str) else list(named) or [_type_of(value) for value in values]
    return list(dict.fromkeys(kinds))
