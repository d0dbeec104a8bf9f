"""Flows of whose calls not all end well, or are seen at all."""

import asyncio
import contextlib
import json
import os
import urllib.request
from typing import Any

from crewai import LLM, BaseLLM
from crewai.events.types.llm_events import LLMCallType
from crewai.flow import Flow, listen, or_, start
from crewai.llms.base_llm import llm_call_context

MODEL = "gpt-4o-mini"


class Tries(Flow):
    """Asks `model` and goes on whatever comes of it, then asks one that answers."""

    @start()
    def attempt(self):
        llm = LLM(model=self.state["model"], max_retries=0, **self.state.get("options", {}))
        try:
            return llm.call("Will this work?")
        except Exception as error:
            return type(error).__name__

    @listen(attempt)
    def afterwards(self):
        return LLM(model=MODEL).call("Does this?")


class TriesAsync(Flow):
    @start()
    async def attempt(self):
        try:
            return await LLM(model=self.state["model"], max_retries=0).acall("Will this work?")
        except Exception as error:
            return type(error).__name__

    @listen(attempt)
    def afterwards(self):
        return LLM(model=MODEL).call("Does this?")


class Fails(Flow):
    @start()
    def first(self):
        return LLM(model=MODEL).call("Does this work?")

    @listen(first)
    def second(self):
        return LLM(model="gpt-4o-mini-stub-400", max_retries=0).call("Will this?")


class SdkRetries(Flow):
    """The provider's own client tries again inside one call, and tells nobody."""

    @start()
    def ask(self):
        return LLM(model="gpt-4o-mini-stub-500-once", max_retries=1).call("Does this work?")


class Unheard(Flow):
    """Hangs up on a stream: the process of the call is cancelled while pieces come."""

    @start()
    async def hang_up(self):
        llm = LLM(model="gpt-4o-mini-stub-trickle-0.05s", stream=True)
        call = asyncio.ensure_future(llm.acall("Tell me everything."))
        await asyncio.sleep(0.4)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        return "enough"

    @listen(hang_up)
    def afterwards(self):
        return LLM(model=MODEL).call("What was it?")


class Swallowed(Flow):
    """Two branches race for one listener, and the failure of the one that loses is not told by CrewAI."""

    @start()
    def begin(self):
        return "go"

    @listen(begin)
    def dies(self):
        LLM(model="gpt-4o-mini-stub-400", max_retries=0).call("Will this work?")

    @listen(begin)
    def lives(self):
        return LLM(model="gpt-4o-mini-stub-slow-0.5s").call("Does this work?")

    @listen(or_(dies, lives))
    def last(self):
        return "done"


def _asked(question: Any) -> dict[str, Any]:
    """A chat completion without any SDK."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": str(question)}]}).encode()
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + "/chat/completions", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answered:
        return json.load(answered)


class Telling(BaseLLM):
    """A team's own LLM class that tells CrewAI of its calls."""

    def call(self, messages: Any, *_: Any, **__: Any) -> str:
        with llm_call_context():
            self._emit_call_started_event(messages=messages)
            answer = _asked(messages)
            self._track_token_usage_internal(answer["usage"])
            text = answer["choices"][0]["message"]["content"]
            self._emit_call_completed_event(
                response=text, call_type=LLMCallType.LLM_CALL, messages=messages, usage=answer["usage"]
            )
            return text


class Silent(BaseLLM):
    """One that does not."""

    def call(self, messages: Any, *_: Any, **__: Any) -> str:
        return _asked(messages)["choices"][0]["message"]["content"]


class OwnClass(Flow):
    @start()
    def ask(self):
        return Telling(model=MODEL).call("What is a ledger?")


class Invisible(Flow):
    @start()
    def ask(self):
        return Silent(model=MODEL).call("What is a ledger?")
