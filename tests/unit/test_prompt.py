"""A prompt is measured in every shape that providers take, and nothing in it fails the call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from flowledger.domain.budget import PromptSize, most_input_tokens
from flowledger.runner.prompt import measure

DATA = "iVBORw0KGgo" * 5_000
IMAGES: dict[str, dict[str, Any]] = {
    "openai chat": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}},
    "openai responses": {"type": "input_image", "image_url": f"data:image/png;base64,{DATA}"},
    "anthropic": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}},
    "bedrock": {"image": {"format": "png", "source": {"bytes": DATA.encode()}}},
    "gemini": {"inline_data": {"mime_type": "image/png", "data": DATA}},
}
FILES: dict[str, dict[str, Any]] = {
    "openai chat": {"type": "file", "file": {"filename": "a.pdf", "file_data": DATA}},
    "openai responses": {"type": "input_file", "filename": "a.pdf", "file_data": DATA},
    "audio": {"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}},
    "anthropic": {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": DATA}},
    "bedrock": {"document": {"format": "pdf", "name": "a", "source": {"bytes": DATA.encode()}}},
    "gemini": {"inline_data": {"mime_type": "application/pdf", "data": DATA}},
}


def test_names_of_counts_are_those_of_the_domain() -> None:
    assert PromptSize(**measure("hello")) == PromptSize(plain=5, messages=1)


@pytest.mark.parametrize("shape", IMAGES)
def test_image_counts_as_an_image_and_its_bytes_not_as_text(shape: str) -> None:
    size = measure([{"role": "user", "content": [{"type": "text", "text": "what is it"}, IMAGES[shape]]}])
    assert (size["images"], size["files"], size["messages"]) == (1, 0, 1)
    assert size["dense"] < 100


@pytest.mark.parametrize("shape", FILES)
def test_file_counts_with_its_bytes(shape: str) -> None:
    size = measure([{"role": "user", "content": [FILES[shape]]}])
    assert (size["files"], size["images"]) == (1, 0)
    assert size["file_bytes"] >= len(DATA)


def test_files_that_crewai_keeps_beside_the_content_count() -> None:
    files = {
        "a": SimpleNamespace(content=b"x" * 900, content_type="application/pdf"),
        "b": SimpleNamespace(content=b"x", content_type="image/png"),
    }
    size = measure([{"role": "user", "content": "read", "files": files}])
    assert (size["files"], size["file_bytes"], size["images"]) == (1, 900, 1)


def test_other_scripts_digits_and_keys_count_by_the_byte_and_words_do_not() -> None:
    assert measure("plain words\n") == {**measure(""), "plain": 12}
    assert measure("日本")["dense"] == 6
    assert measure("2026-11")["dense"] == 7
    assert measure("sk" + "A" * 40)["dense"] == 42


class Weather(BaseModel):
    """Where and when."""

    city: str
    days: int = 3


def test_tools_count_with_their_schema_however_they_are_given() -> None:
    as_json = measure(
        "hi", [{"type": "function", "function": {"name": "w", "parameters": Weather.model_json_schema()}}]
    )
    as_object = measure("hi", [SimpleNamespace(name="w", description="tells", args_schema=Weather)])
    for size in (as_json, as_object):
        assert size["tools"] == 1
        assert size["plain"] > measure("Where and when. city days integer string title")["plain"]


def test_schema_of_the_response_counts() -> None:
    assert measure("hi", None, Weather)["plain"] > measure("hi")["plain"] + 30


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no words")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_nothing_in_a_prompt_can_raise() -> None:
    loop: list[Any] = []
    loop.append(loop)
    measure([Hostile(), loop, "\ud800", float("nan"), object()], [Hostile(), loop, None], Hostile())


@given(st.text())
def test_every_character_is_measured(text: str) -> None:
    size = measure(text)
    assert size["plain"] + size["dense"] == len(text.encode("utf-8", "surrogatepass"))
    assert most_input_tokens(PromptSize(**size), "m") * 3 >= len(text)
