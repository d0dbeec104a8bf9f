"""How large a prompt is, measured where it is, so that it need not travel. Inside the child: standard library only.

The counts are those of `domain/budget.PromptSize`, which says what they are worth in tokens.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

_PLAIN = (string.ascii_letters + string.whitespace).encode()
_LONG_RUN = re.compile(rb"[A-Za-z0-9+/=_-]{25,}")
"""Keys, hashes, base64: no tokenizer knows them by the word."""

_DEEPEST = 40
_IMAGES = ("image", "image_url", "input_image")
_FILES = ("file", "input_file", "document", "audio", "input_audio", "video")
_INLINE = ("inline_data", "inlineData", "file_data", "fileData")
_BYTES_OF_STRUCTURE = 4
"""Quotes, colon and comma around each key."""


def measure(messages: Any, tools: Any = None, *others: Any) -> dict[str, int]:
    """Counts what a call sends: messages in any provider's shape, tools, and others such as a response's schema.

    Never raises, and opens no file: one that is named by path or address counts as a file without bytes.
    """
    counts = _Counts()
    counts.add(messages)
    counts.size["messages"] = len(messages) if isinstance(messages, (list, tuple)) else 1
    for tool in tools if isinstance(tools, (list, tuple)) else ():
        counts.size["tools"] += 1
        counts.add(_described(tool))
    for other in others:
        counts.add(_described(other))
    return counts.size


class _Counts:
    def __init__(self) -> None:
        names = ("plain", "dense", "messages", "tools", "images", "files", "file_bytes")
        self.size: dict[str, int] = dict.fromkeys(names, 0)

    def add(self, value: Any, depth: int = 0) -> None:
        if value is None or isinstance(value, bool):
            return
        if isinstance(value, str):
            self._text(value)
        elif isinstance(value, (bytes, bytearray)):
            self._file(value)
        elif isinstance(value, Mapping) and depth < _DEEPEST:
            self._mapping(value, depth)
        elif isinstance(value, (list, tuple, set, frozenset)) and depth < _DEEPEST:
            for part in value:
                self.add(part, depth + 1)
        else:
            self._text(_words_of(value))

    def _text(self, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        dense = len(data.translate(None, _PLAIN))
        for run in _LONG_RUN.findall(data):
            dense += len(run) - len(run.translate(None, _PLAIN))
        self.size["dense"] += dense
        self.size["plain"] += len(data) - dense

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> None:
        kind = value.get("type")
        inline = next((value[name] for name in _INLINE if isinstance(value.get(name), Mapping)), None)
        if kind in _IMAGES or _holds_media(value, _IMAGES):
            self.size["images"] += 1
        elif inline is not None:
            self._file(inline.get("data"), _mime(inline))
        elif kind in _FILES or _holds_media(value, _FILES):
            self._file(_longest(value))
        else:
            self._entries(value, depth)

    def _entries(self, value: Mapping[Any, Any], depth: int) -> None:
        for key, part in value.items():
            if key == "files" and isinstance(part, Mapping):
                for file in part.values():
                    self._file(getattr(file, "content", None), str(getattr(file, "content_type", "")))
            else:
                self._text(str(key))
                self.size["dense"] += _BYTES_OF_STRUCTURE
                self.add(part, depth + 1)

    def _file(self, content: Any, mime: str = "") -> None:
        if mime.startswith("image/"):
            self.size["images"] += 1
            return
        self.size["files"] += 1
        self.size["file_bytes"] += len(content) if isinstance(content, (str, bytes, bytearray)) else 0


def _holds_media(value: Mapping[Any, Any], names: tuple[str, ...]) -> bool:
    """Bedrock's parts: {"image": {"format": ..., "source": {...}}}."""
    return any(isinstance(part := value.get(name), Mapping) and ("source" in part or "url" in part) for name in names)


def _longest(value: Any, depth: int = 0) -> Any:
    """The content of a file part: the longest text or bytes in it."""
    if isinstance(value, Mapping) and depth < _DEEPEST:
        found = [_longest(part, depth + 1) for part in value.values()]
        return max((part for part in found if part is not None), key=len, default=None)
    return value if isinstance(value, (str, bytes, bytearray)) else None


def _mime(inline: Mapping[Any, Any]) -> str:
    return str(inline.get("mime_type") or inline.get("mimeType") or "")


def _described(tool: Any) -> Any:
    """A tool as its provider is told of it: JSON as it is, one of CrewAI's objects by name, description and schema."""
    if isinstance(tool, (Mapping, str, list, tuple)) or tool is None:
        return tool
    try:
        schema = getattr(tool, "args_schema", None) or tool
        described = schema.model_json_schema()
    except Exception:
        described = None
    return [_attribute(tool, "name"), _attribute(tool, "description"), described or _words_of(tool)]


def _attribute(value: Any, name: str) -> str | None:
    try:
        found = getattr(value, name, None)
    except Exception:
        return None
    return found if isinstance(found, str) else None


def _words_of(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return ""
