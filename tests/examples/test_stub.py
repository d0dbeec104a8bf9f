"""The stub answers as the real chat API does, counts what it served, and fails when asked to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest

if TYPE_CHECKING:
    from stub_llm import StubServer

EXAMPLES = Path(__file__).parents[2] / "examples"
ASKED: list[Any] = [{"role": "user", "content": "Tell me about rivers, please."}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks up.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}}},
    },
}


@pytest.fixture
def client(stub: StubServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=stub.url, api_key="any", max_retries=0, timeout=10)


def test_the_same_question_gets_the_same_answer_and_another_one_another(client: openai.OpenAI) -> None:
    first, again = (client.chat.completions.create(model="gpt-4o-mini", messages=ASKED) for _ in range(2))
    other = client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "And lakes?"}])
    text = first.choices[0].message.content
    assert text is not None
    assert "Tell me about rivers" in text
    assert text == again.choices[0].message.content != other.choices[0].message.content


def test_usage_has_all_classes_and_agrees_with_the_servers_own_count(client: openai.OpenAI, stub: StubServer) -> None:
    usage = client.chat.completions.create(model="gpt-4o-mini", messages=ASKED).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.completion_tokens_details is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    told = {
        "calls": 1,
        "failed": 0,
        "untold": 0,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.prompt_tokens_details.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "reasoning_tokens": usage.completion_tokens_details.reasoning_tokens,
    }
    assert all(told[name] for name in told if name not in ("failed", "untold"))
    with urlopen(stub.url.removesuffix("/v1") + "/stats") as answered:
        assert json.load(answered) == {**told, "by_model": {"gpt-4o-mini": told}}


def test_a_stream_says_the_same_word_by_word(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="gpt-4o-mini", messages=ASKED)
    chunks = list(
        client.chat.completions.create(
            model="gpt-4o-mini", messages=ASKED, stream=True, stream_options={"include_usage": True}
        )
    )
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert len(said) > 10
    assert "".join(said) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_a_stream_tells_its_usage_only_when_asked(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(model="gpt-4o-mini", messages=ASKED, stream=True)
    assert not [chunk for chunk in chunks if chunk.usage]


@pytest.mark.parametrize("stream", [False, True])
def test_an_offered_tool_is_called_once(client: openai.OpenAI, *, stream: bool) -> None:
    answered: Any = client.chat.completions.create(model="gpt-4o-mini", messages=ASKED, tools=[TOOL], stream=stream)
    if stream:
        calls = [call for chunk in answered for call in chunk.choices[0].delta.tool_calls or []]
    else:
        calls = answered.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["look_up"]
    assert set(json.loads(calls[0].function.arguments)) == {"query", "limit"}
    after: Any = [
        *ASKED,
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "x", "arguments": ""}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ]
    last = client.chat.completions.create(model="gpt-4o-mini", messages=after, tools=[TOOL])
    assert last.choices[0].message.tool_calls is None
    assert last.choices[0].message.content


def test_json_follows_the_schema(client: openai.OpenAI) -> None:
    schema = {
        "$defs": {"Part": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}}},
        "type": "object",
        "properties": {
            "kind": {"enum": ["a", "b"]},
            "parts": {"type": "array", "items": {"$ref": "#/$defs/Part"}},
            "size": {"type": ["integer", "null"]},
        },
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answered = client.chat.completions.create(model="gpt-4o-mini", messages=ASKED, response_format=wanted)
    assert json.loads(answered.choices[0].message.content or "") == {"kind": "a", "parts": [{"n": 3}], "size": 1}


def test_an_answer_ends_after_max_tokens_and_says_so(client: openai.OpenAI) -> None:
    answered = client.chat.completions.create(model="gpt-4o-mini", messages=ASKED, max_tokens=5)
    assert answered.usage is not None
    assert (answered.usage.completion_tokens, answered.choices[0].finish_reason) == (5, "length")


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert "gpt-4o-mini" in [model.id for model in client.models.list()]


# -- Faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("400", openai.BadRequestError),
        ("401", openai.AuthenticationError),
        ("429", openai.RateLimitError),
        ("500", openai.InternalServerError),
    ],
)
def test_a_status_on_request_by_model_or_header(
    client: openai.OpenAI, stub: StubServer, fault: str, error: type[openai.APIStatusError]
) -> None:
    with pytest.raises(error):
        client.chat.completions.create(model=f"gpt-4o-mini-stub-{fault}", messages=ASKED)
    with pytest.raises(error):
        client.chat.completions.create(model="gpt-4o-mini", messages=ASKED, extra_headers={"X-Stub-Fault": fault})
    told = stub.stats()
    assert (told["calls"], told["failed"], told["prompt_tokens"]) == (2, 2, 0)


def test_a_fault_once_is_over_after_the_first_call(client: openai.OpenAI) -> None:
    model = "gpt-4o-mini-stub-500-once"
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model=model, messages=ASKED)
    assert client.chat.completions.create(model=model, messages=ASKED).choices


def test_slow_is_slow_and_others_need_not_wait(client: openai.OpenAI) -> None:
    began = time.monotonic()
    client.chat.completions.create(model="gpt-4o-mini-stub-slow-0.5s", messages=ASKED)
    assert 0.5 <= time.monotonic() - began < 5


def test_an_answer_without_usage(client: openai.OpenAI, stub: StubServer) -> None:
    assert client.chat.completions.create(model="gpt-4o-mini-stub-no-usage", messages=ASKED).usage is None
    told = stub.stats()
    assert (told["calls"], told["failed"], told["untold"], told["prompt_tokens"]) == (1, 0, 1, 0)


def test_who_hangs_up_on_a_stream_was_not_told_what_it_cost(client: openai.OpenAI, stub: StubServer) -> None:
    stream = client.chat.completions.create(
        model="gpt-4o-mini-stub-trickle-0.02s", messages=ASKED, stream=True, stream_options={"include_usage": True}
    )
    next(stream)
    stream.close()
    deadline = time.monotonic() + 10
    while not stub.stats()["calls"] and time.monotonic() < deadline:
        time.sleep(0.02)
    told = stub.stats()
    assert (told["calls"], told["failed"], told["untold"], told["prompt_tokens"]) == (1, 0, 1, 0)


def test_a_dropped_answer_is_a_lost_connection(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(model="gpt-4o-mini-stub-drop", messages=ASKED)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": "x"}'])
def test_a_request_that_is_none_is_refused(stub: StubServer, body: bytes) -> None:
    request = Request(f"{stub.url}/chat/completions", data=body, method="POST")
    with pytest.raises(HTTPError) as refused, urlopen(request):
        pass
    assert refused.value.code == 400
    refused.value.close()


# -- As a process ------------------------------------------------------------------------------------------------------


def test_as_a_process_it_says_when_it_is_ready_and_ends_on_sigterm(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    command = [sys.executable, "-m", "stub_llm", "--port", "0", "--ready-file", str(ready)]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 20
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        url = ready.read_text()
        with urlopen(f"{url}/models") as answered:
            assert answered.status == 200
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert f"export OPENAI_BASE_URL={url}" in said
