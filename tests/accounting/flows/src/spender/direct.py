"""Flows that call an LLM themselves, in every way there is."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from crewai import LLM
from crewai.flow import Flow, listen, start
from pydantic import BaseModel

MODEL = "gpt-4o-mini"


class Verdict(BaseModel):
    word: str
    score: int


TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a topic up.",
        "parameters": {"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"]},
    },
}


def look_up(topic: str) -> str:
    return f"all about {topic}"


def broken(topic: str) -> str:
    raise LookupError(f"nothing about {topic}")


class Call(Flow):
    @start()
    def ask(self):
        return LLM(model=MODEL).call("What is a ledger?")


class CallTwice(Flow):
    """The same question from two methods, by one LLM object."""

    @start()
    def first(self):
        self.llm = LLM(model=MODEL)
        return self.llm.call("What is a ledger?")

    @listen(first)
    def second(self):
        return self.llm.call("What is a ledger?")


class Acall(Flow):
    @start()
    async def ask(self):
        return await LLM(model=MODEL).acall("What is a ledger?")


class Stream(Flow):
    @start()
    def ask(self):
        return LLM(model=MODEL, stream=True).call("What is a ledger?")


class StreamAsync(Flow):
    @start()
    async def ask(self):
        return await LLM(model=MODEL, stream=True).acall("What is a ledger?")


class StreamEvents(Flow):
    @start()
    def ask(self):
        with LLM(model=MODEL).stream_events("What is a ledger?") as session:
            for _ in session:
                pass
            return session.result


class TwoModels(Flow):
    @start()
    def ask(self):
        return LLM(model=MODEL).call("What is a ledger?")

    @listen(ask)
    def ask_the_dearer(self):
        return LLM(model="gpt-4o").call("What is a ledger?")


class Structured(Flow):
    """`response_format` belongs to the LLM."""

    @start()
    def ask(self):
        answer = LLM(model=MODEL, response_format=Verdict).call("Judge this ledger.")
        return answer.model_dump() if isinstance(answer, Verdict) else answer


class StructuredByCall(Flow):
    """`response_model` belongs to the call."""

    @start()
    def ask(self):
        return LLM(model=MODEL).call("Judge this ledger.", response_model=Verdict).model_dump()


class StructuredAsync(Flow):
    @start()
    async def ask(self):
        return (await LLM(model=MODEL).acall("Judge this ledger.", response_model=Verdict)).model_dump()


class StructuredStream(Flow):
    @start()
    def ask(self):
        answer = LLM(model=MODEL, stream=True).call("Judge this ledger.", response_model=Verdict)
        return answer.model_dump() if isinstance(answer, Verdict) else answer


class ToolInside(Flow):
    """The LLM object runs the tool and returns what it gave."""

    @start()
    def ask(self):
        return LLM(model=MODEL).call("Look it up.", tools=[TOOL], available_functions={"look_up": look_up})


class ToolInsideStream(Flow):
    @start()
    def ask(self):
        llm = LLM(model=MODEL, stream=True)
        return llm.call("Look it up.", tools=[TOOL], available_functions={"look_up": look_up})


class ToolInsideAsync(Flow):
    @start()
    async def ask(self):
        return await LLM(model=MODEL).acall("Look it up.", tools=[TOOL], available_functions={"look_up": look_up})


class ToolAskedFor(Flow):
    """Without functions at hand the call answers with the tool call, and the flow goes on by itself."""

    @start()
    def ask(self):
        llm = LLM(model=MODEL)
        llm.call("Look it up.", tools=[TOOL])
        return llm.call([{"role": "user", "content": "And now: what is it?"}])


class ToolThatRaises(Flow):
    """The answer is paid for, whatever the tool does."""

    @start()
    def ask(self):
        return LLM(model=MODEL).call("Look it up.", tools=[TOOL], available_functions={"look_up": broken})

    @listen(ask)
    def afterwards(self):
        return LLM(model=MODEL).call("What was it?")


class CutShort(Flow):
    @start()
    def ask(self):
        return LLM(model=MODEL, max_tokens=7).call("Tell me everything.")


# -- Side by side -----------------------------------------------------------------------------------------------------


class Branches(Flow):
    """Four listeners of one trigger, which CrewAI runs at the same time."""

    @start()
    def begin(self):
        self.llm = LLM(model=MODEL)

    @listen(begin)
    def north(self):
        return self.llm.call("What lies north?")

    @listen(begin)
    def east(self):
        return self.llm.call("What lies east?")

    @listen(begin)
    async def south(self):
        return await self.llm.acall("What lies south?")

    @listen(begin)
    async def west(self):
        return await self.llm.acall("What lies west?")


class Threads(Flow):
    """Threads of the flow's own know nothing of the method that started them."""

    @start()
    def ask(self):
        llm = LLM(model=MODEL)
        threads = [threading.Thread(target=llm.call, args=(f"What is {number}?",)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Pool(Flow):
    @start()
    def ask(self):
        llm = LLM(model=MODEL)
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(llm.call, [f"What is {number}?" for number in range(8)]))


class Gathered(Flow):
    @start()
    async def ask(self):
        llm = LLM(model=MODEL)
        return await asyncio.gather(*(llm.acall(f"What is {number}?") for number in range(6)))


class Inner(Flow):
    @start()
    def think(self):
        return LLM(model=MODEL).call("What is inside?")


class Nested(Flow):
    @start()
    def outer(self):
        return Inner().kickoff()

    @listen(outer)
    def after(self):
        return LLM(model=MODEL).call("What is outside?")


class NestedAsync(Flow):
    """Three flows inside one method at the same time."""

    @start()
    async def outer(self):
        return await asyncio.gather(*(Inner().kickoff_async() for _ in range(3)))


class Deep(Flow):
    """A flow in a flow in a flow."""

    @start()
    def outermost(self):
        return Nested().kickoff()


class Inputs(Flow):
    """Does what its inputs say: `calls` questions to `model`."""

    @start()
    def ask(self) -> Any:
        llm = LLM(model=self.state["model"], **self.state.get("options", {}))
        return [llm.call(f"What is {number}?") for number in range(self.state["calls"])][-1:]
