"""What a provider says that a call used, in our classes of tokens. Runs inside the child: standard library only.

CrewAI hands on what each provider reports, in that provider's own words; a flow's own LLM class may hand on what an SDK
said. The shapes differ in names and in what they count twice:

    shape                     input                                       output
    OpenAI and compatible     prompt_tokens, cached part included         completion_tokens, reasoning included
    OpenAI's responses        input_tokens, cached part included          output_tokens, reasoning included
    Anthropic by CrewAI       input_tokens, cache read and write folded   output_tokens, thinking included
    Anthropic's own           input_tokens, cache read and write apart    output_tokens, thinking included
    Gemini                    prompt_token_count, cached part included    candidates apart from thoughts
    Bedrock's Converse        inputTokens, cache read and write apart     outputTokens

Ours: `input_tokens` includes cached input and cache writes, `output_tokens` includes reasoning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Counts = dict[str, int]
Given = Mapping[str, Any]

_LARGEST = 10**12
"""A report of more is none: the ledger holds no call of a trillion tokens."""


def normalise(usage: Any, provider: str | None = None) -> Counts | None:
    """One call's tokens; None when nobody reported any: missing, empty, without a split, or zero in all classes.

    The keys tell the shape; `provider` settles which one is meant where the keys of two are there.
    """
    if not isinstance(usage, Mapping):
        return None
    name = (provider or "").lower()
    for shape in sorted(_SHAPES, key=lambda shape: name not in shape.providers):
        if shape.fits(usage):
            return _whole(shape.read(usage))
    return None


def _bedrock(usage: Given) -> Counts:
    cached = _count(usage, "cacheReadInputTokens", "cacheReadInputTokenCount")
    written = _count(usage, "cacheWriteInputTokens", "cacheWriteInputTokenCount")
    given = _count(usage, "inputTokens") + cached + written
    return _counts(given, cached, written, _count(usage, "outputTokens"), 0)


def _gemini(usage: Given) -> Counts:
    thoughts = _count(usage, "reasoning_tokens", "thoughts_token_count")
    # CrewAI adds completion_tokens, which holds both.
    output = _count(usage, "completion_tokens") or _count(usage, "candidates_token_count") + thoughts
    given = _count(usage, "prompt_token_count")
    # Prompts of Gemini's own tools are input that only the total counts.
    given = max(given, _count(usage, "total_token_count") - output)
    cached = _count(usage, "cached_prompt_tokens", "cached_content_token_count")
    return _counts(given, cached, 0, output, thoughts)


def _anthropic(usage: Given) -> Counts:
    cached = _count(usage, "cache_read_input_tokens")
    written = _count(usage, "cache_creation_input_tokens") or _sum(usage.get("cache_creation"))
    given = _count(usage, "input_tokens") + cached + written
    return _counts(given, cached, written, _count(usage, "output_tokens"), 0)


def _openai(usage: Given) -> Counts:
    inside = _details(usage, "prompt_tokens_details", "input_tokens_details")
    outside = _details(usage, "completion_tokens_details", "output_tokens_details")
    cached = _count(
        usage, "cached_prompt_tokens", "cached_tokens", "cache_read_input_tokens", "prompt_cache_hit_tokens"
    ) or _count(inside, "cached_tokens")
    written = _count(usage, "cache_creation_tokens", "cache_creation_input_tokens") or _count(
        inside, "cache_write_tokens", "cache_creation_tokens"
    )
    reasoning = _count(usage, "reasoning_tokens") or _count(outside, "reasoning_tokens")
    given = _count(usage, "prompt_tokens", "input_tokens")
    output = _count(usage, "completion_tokens", "output_tokens")
    # xAI and Gemini's endpoint in OpenAI's shape leave reasoning out of the completion, and the total counts it.
    apart = _count(usage, "total_tokens") - given - output
    if given + output and apart > 0:
        if apart == cached + written:
            given += apart
        else:
            output += apart
            reasoning = reasoning or apart
    return _counts(given, cached, written, output, reasoning)


def _whole(counts: Counts) -> Counts | None:
    """A part is never larger than its whole: a report in which it is has left the part out."""
    parts = counts["cached_input_tokens"] + counts["cache_write_tokens"]
    if parts > counts["input_tokens"]:
        counts["input_tokens"] += parts
    if counts["reasoning_tokens"] > counts["output_tokens"]:
        counts["output_tokens"] += counts["reasoning_tokens"]
    return counts if counts["input_tokens"] + counts["output_tokens"] else None


def _counts(given: int, cached: int, written: int, output: int, reasoning: int) -> Counts:
    return {
        "input_tokens": given,
        "cached_input_tokens": cached,
        "cache_write_tokens": written,
        "output_tokens": output,
        "reasoning_tokens": reasoning,
    }


def _has(*keys: str) -> Callable[[Given], bool]:
    return lambda usage: any(usage.get(key) is not None for key in keys)


def _keeps_cache_apart(usage: Given) -> bool:
    apart = ("cache_read_input_tokens", "cache_creation_input_tokens", "cache_creation")
    return "input_tokens" in usage and "prompt_tokens" not in usage and _has(*apart)(usage)


class _Shape(NamedTuple):
    providers: tuple[str, ...]
    fits: Callable[[Given], bool]
    read: Callable[[Given], Counts]


_SHAPES = (
    _Shape(("bedrock", "aws"), _has("inputTokens", "outputTokens"), _bedrock),
    _Shape(("gemini", "google", "vertex_ai"), _has("prompt_token_count", "candidates_token_count"), _gemini),
    _Shape(("anthropic", "claude"), _keeps_cache_apart, _anthropic),
    _Shape((), _has("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"), _openai),
)
"""The narrower shapes come first.

OpenAI's has no name: CrewAI calls every LLM class that names no provider "openai".
"""


def _details(usage: Given, *names: str) -> Given:
    return next((value for name in names if isinstance(value := usage.get(name), Mapping)), {})


def _sum(details: Any) -> int:
    return sum(_count(details, name) for name in details) if isinstance(details, Mapping) else 0


def _count(usage: Given, *names: str) -> int:
    """The first of the names that holds a count above zero."""
    return next((count for name in names if (count := _whole_number(usage.get(name)))), 0)


def _whole_number(value: Any) -> int:
    if isinstance(value, str):
        value = int(value) if value.strip().isascii() and value.strip().isdigit() and len(value) < 20 else 0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return 0
    return int(value) if 0 < value < _LARGEST else 0
