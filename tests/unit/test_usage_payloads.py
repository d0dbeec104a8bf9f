"""Each provider's report of one call is read into our classes, each token once, and silence stays unknown.

`payloads/PROVIDER/NAME.json` holds a report, what it means, and where its shape is from. Where CrewAI makes the shape,
`made_by` names the function: it is taken out of the installed CrewAI and run on what the SDK reported, so a changed
CrewAI is noticed.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flowledger.runner.usage import normalise

PAYLOADS = Path(__file__).parent / "payloads"
NAMES = sorted(str(path.relative_to(PAYLOADS)) for path in PAYLOADS.glob("*/*.json"))


def payload(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((PAYLOADS / name).read_text())
    return read


@pytest.mark.parametrize("name", NAMES)
def test_report_is_read_into_our_classes(name: str) -> None:
    case = payload(name)
    assert normalise(case["usage"], case["provider"]) == case["expected"], case["from"]


@pytest.mark.parametrize("name", NAMES)
def test_parts_never_exceed_their_whole(name: str) -> None:
    case = payload(name)
    counts = normalise(case["usage"], case["provider"])
    if counts is not None:
        assert counts["cached_input_tokens"] + counts["cache_write_tokens"] <= counts["input_tokens"]
        assert counts["reasoning_tokens"] <= counts["output_tokens"]


@pytest.mark.parametrize("name", [name for name in NAMES if "made_by" in payload(name)])
def test_installed_crewai_makes_this_shape(name: str) -> None:
    case = payload(name)
    made_by = case["made_by"]
    assert crewais_function(**made_by)(reported(made_by["function"], case["reported"])) == case["usage"]


@pytest.mark.parametrize(
    "usage", [None, {}, "words", 7, [], {"total_tokens": 0}, {"prompt_tokens": None}, {"prompt_tokens": float("nan")}]
)
def test_silence_is_unknown_and_never_zero(usage: Any) -> None:
    assert normalise(usage) is None


def test_name_of_the_provider_settles_which_of_two_shapes_is_meant() -> None:
    both = {"inputTokens": 40, "outputTokens": 10, "prompt_token_count": 7, "candidates_token_count": 3}
    assert (normalise(both, "bedrock") or {})["input_tokens"] == 40
    assert (normalise(both, "gemini") or {})["input_tokens"] == 7


def crewais_function(file: str, function: str) -> Any:
    """One function of CrewAI without the rest: its module wants the provider's SDK, which is not installed."""
    spec = importlib.util.find_spec("crewai")
    if spec is None or spec.origin is None:
        pytest.skip("CrewAI is not in this environment")
    tree = ast.parse((Path(spec.origin).parent / file).read_text())
    found = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function)
    takes_self = found.args.args[0].arg == "self"
    found.decorator_list = []
    module = ast.Module([ast.ImportFrom("__future__", [ast.alias("annotations")], 0), found], [])
    names: dict[str, Any] = {"_coerce_int": lambda value: int(value or 0), "BaseModel": type("BaseModel", (), {})}
    exec(compile(ast.fix_missing_locations(module), file, "exec"), names)
    return (lambda response: names[function](None, response)) if takes_self else names[function]


def reported(function: str, usage: Any) -> Any:
    """The SDK's response object, as far as CrewAI looks at it."""
    if function == "_usage_to_dict":
        return usage
    if usage is not None and "usage_metadata" in usage:
        return SimpleNamespace(usage_metadata=as_object(usage["usage_metadata"]))
    return SimpleNamespace(usage=as_object(usage))


def as_object(value: Any) -> Any:
    if isinstance(value, dict):
        return SimpleNamespace(**{name: as_object(part) for name, part in value.items()})
    return value
