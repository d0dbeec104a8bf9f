"""What the stub answers: the same text, tool call, JSON and token count for the same request, every time."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

JsonObject = dict[str, Any]

CHARACTERS_PER_TOKEN = 4
_TOPIC_WORDS = 8
_CREATED = 1_750_000_000
_SENTENCES = (
    "The first thing to see is how little of it is new.",
    "Three facts carry the rest, and all three can be checked.",
    "What looks like an exception turns out to be the rule.",
    "The costs are known; the benefits have to be earned.",
    "A small, steady habit does more here than one bold move.",
    "Readers ask for proof, and the proof is short.",
    "Nothing is lost by waiting a week, and much is learned.",
    "The open question is who decides, and by when.",
)


@dataclass(frozen=True)
class Usage:
    """As OpenAI counts: cached tokens are part of the prompt's, reasoning tokens part of the completion's."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int

    def told(self) -> JsonObject:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens, "audio_tokens": 0},
        }


@dataclass(frozen=True)
class Answer:
    """Either `text`, or a call of a tool (`tool_call` as OpenAI spells it, `text` empty)."""

    id: str
    model: str
    text: str
    tool_call: JsonObject | None
    usage: Usage
    was_cut: bool = False

    @property
    def finish_reason(self) -> str:
        if self.was_cut:
            return "length"
        return "tool_calls" if self.tool_call else "stop"

    def completion(self, *, with_usage: bool) -> JsonObject:
        message: JsonObject = {"role": "assistant", "content": self.text or None, "refusal": None}
        if self.tool_call:
            message["tool_calls"] = [self.tool_call]
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason, "logprobs": None}
        usage = {"usage": self.usage.told()} if with_usage else {}
        return {**self._head("chat.completion"), "choices": [choice], **usage}

    def chunks(self, *, with_usage: bool) -> Iterator[JsonObject]:
        """A role, the text word by word or the tool call whole, the reason of the end, and the usage if asked for."""
        deltas: list[JsonObject] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": word} for word in _words(self.text)]
        if self.tool_call:
            deltas.append({"tool_calls": [{"index": 0, **self.tool_call}]})
        head = self._head("chat.completion.chunk")
        for delta in deltas:
            yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        yield {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": self.finish_reason}]}
        if with_usage:
            yield {**head, "choices": [], "usage": self.usage.told()}

    def _head(self, kind: str) -> JsonObject:
        return {"id": self.id, "object": kind, "created": _CREATED, "model": self.model}


def answer(
    model: str,
    messages: list[JsonObject],
    tools: list[JsonObject],
    response_format: JsonObject | None,
    most_tokens: int | None = None,
) -> Answer:
    """Calls the first tool once; with its result at hand, or without tools, writes text or the JSON asked for.

    Text ends after `most_tokens`, in the middle of a word if need be, as it does at OpenAI.
    """
    prompt = json.dumps([messages, tools, response_format], sort_keys=True)
    digest = hashlib.sha256(f"{model}\n{prompt}".encode()).hexdigest()
    topic = _topic(messages)
    tool_call, text = None, ""
    if tools and not any(message.get("role") == "tool" for message in messages):
        function = tools[0]["function"]
        arguments = json.dumps(_instance(function.get("parameters") or {}, topic))
        called = {"name": function["name"], "arguments": arguments}
        tool_call = {"id": f"call_{digest[:24]}", "type": "function", "function": called}
    else:
        text = _text(topic, digest, response_format)
    whole = len(text)
    if most_tokens is not None:
        text = text[: most_tokens * CHARACTERS_PER_TOKEN]
    usage = _usage(prompt, text or json.dumps(tool_call))
    return Answer(f"chatcmpl-{digest[:29]}", model, text, tool_call, usage, was_cut=len(text) < whole)


def _usage(prompt: str, said: str) -> Usage:
    """A quarter of the prompt is cached and a quarter of the answer is thought, so that every class shows."""
    prompt_tokens = max(1, len(prompt) // CHARACTERS_PER_TOKEN)
    completion_tokens = max(1, len(said) // CHARACTERS_PER_TOKEN)
    return Usage(prompt_tokens, prompt_tokens // 4, completion_tokens, completion_tokens // 4)


def _topic(messages: list[JsonObject]) -> str:
    """The first words of the last thing that a person asked, without the label that CrewAI puts before a task."""
    asked = [_content(message) for message in messages if message.get("role") == "user"]
    first_line = asked[-1].strip().partition("\n")[0].removeprefix("Current Task:") if asked else ""
    return " ".join(first_line.split()[:_TOPIC_WORDS]).rstrip(".,:;?!") or "nothing in particular"


def _content(message: JsonObject) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(str(part.get("text", "")) for part in content)


def _text(topic: str, digest: str, response_format: JsonObject | None) -> str:
    kind = (response_format or {}).get("type")
    if kind == "json_schema":
        schema = (response_format or {}).get("json_schema", {}).get("schema", {})
        return json.dumps(_instance(schema, topic))
    if kind == "json_object":
        return json.dumps({"answer": topic})
    first = int(digest[:8], 16)
    chosen = [_SENTENCES[(first + step * 3) % len(_SENTENCES)] for step in range(3)]
    return f"On \N{LEFT DOUBLE QUOTATION MARK}{topic}\N{RIGHT DOUBLE QUOTATION MARK}: {' '.join(chosen)}"


def _words(text: str) -> list[str]:
    """Splits without losing a character: the pieces joined are the text."""
    if not text:
        return []
    first, *rest = text.split(" ")
    return [first, *(f" {word}" for word in rest)]


# -- JSON by schema ----------------------------------------------------------------------------------------------------


def _instance(schema: JsonObject, topic: str) -> Any:
    """The simplest value that the schema takes."""
    return _value(schema, topic, schema.get("$defs", {}))


def _value(schema: JsonObject, topic: str, definitions: JsonObject) -> Any:
    if "$ref" in schema:
        return _value(definitions[schema["$ref"].rpartition("/")[2]], topic, definitions)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for alternatives in ("anyOf", "oneOf", "allOf"):
        if alternatives in schema:
            return _value(schema[alternatives][0], topic, definitions)
    kind = schema.get("type", "object")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        return {name: _value(part, topic, definitions) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [_value(schema.get("items", {}), topic, definitions) for _ in range(max(1, schema.get("minItems", 1)))]
    if kind in ("integer", "number"):
        return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
    return {"boolean": True, "null": None}.get(kind, topic[: schema.get("maxLength", 200)])
