"""Flows that meet a budget, and what they make of it."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from crewai import LLM, Agent, Crew, Task
from crewai.flow import Flow, listen, start

SLOW = "gpt-4o-mini-stub-slow-0.3s"
QUESTIONS = [f"What is {number}?" for number in range(8)]


def _llm(model: str = SLOW) -> LLM:
    return LLM(model=model, max_tokens=20)


def _crew(name: str) -> Crew:
    writer = Agent(role="Writer", goal="write", backstory="writes", llm=_llm())
    draft = Task(name="draft", description="Write.", expected_output="A line.", agent=writer)
    return Crew(name=name, agents=[writer], tasks=[draft])


class EightThreads(Flow):
    @start()
    def ask(self):
        with ThreadPoolExecutor(8) as pool:
            return len(list(pool.map(_llm().call, QUESTIONS)))


class EightAwaited(Flow):
    @start()
    async def ask(self):
        llm = _llm()
        return len(await asyncio.gather(*(llm.acall(question) for question in QUESTIONS)))


class EightStreamed(Flow):
    @start()
    async def ask(self):
        llm = LLM(model=SLOW, max_tokens=20, stream=True)
        return len(await asyncio.gather(*(llm.acall(question) for question in QUESTIONS)))


class EightCrews(Flow):
    @start()
    async def publish(self):
        crews = [_crew(f"press {number}") for number in range(8)]
        return len(await asyncio.gather(*(crew.kickoff_async() for crew in crews)))


class EightNativeCrews(Flow):
    @start()
    async def publish(self):
        crews = [_crew(f"press {number}") for number in range(8)]
        return len(await asyncio.gather(*(crew.akickoff() for crew in crews)))


class Nested(Flow):
    """A flow in each of eight threads, and its call two methods deep."""

    @start()
    async def ask(self):
        return len(await asyncio.gather(*(_Inner().kickoff_async() for _ in QUESTIONS)))


class _Inner(Flow):
    @start()
    def begin(self):
        pass

    @listen(begin)
    def think(self):
        return _llm().call("What is inside?")


class AgentOver(Flow):
    @start()
    def write(self):
        return Agent(role="Writer", goal="write", backstory="writes", llm=_llm("gpt-4o-mini")).kickoff("Write.").raw


class CrewOver(Flow):
    @start()
    def publish(self):
        return _crew("press").kickoff().raw

    @listen(publish)
    def never(self):
        return "published"


class Swallows(Flow):
    """Takes the refusal for an answer and goes on as if nothing had happened."""

    @start()
    def ask(self):
        llm = _llm("gpt-4o-mini")
        try:
            return [llm.call(question) for question in QUESTIONS]
        except BaseException as refusal:
            return f"swallowed {type(refusal).__name__}"


class Insists(Flow):
    """Asks again and again, whatever it is told."""

    @start()
    def ask(self):
        llm = _llm("gpt-4o-mini")
        while True:
            try:
                llm.call("What is it?")
            except BaseException:
                time.sleep(0.01)


class InsistsAwaited(Flow):
    @start()
    async def ask(self):
        llm = _llm("gpt-4o-mini")
        while True:
            try:
                await llm.acall("What is it?")
            except BaseException:
                await asyncio.sleep(0.01)


class BlocksTheLoop(Flow):
    """A sync call in an async method: were it to wait, the call that it waits for would never end."""

    @start()
    async def ask(self):
        other = asyncio.ensure_future(_llm().acall("What is one?"))
        await asyncio.sleep(0.1)
        _llm().call("What is two?")
        return await other


class CallsFromATool(Flow):
    """The tool that one call runs makes another, which the first waits for."""

    @start()
    def ask(self):
        def look_up(topic: str) -> str:
            return _llm("gpt-4o-mini").call(f"What is {topic}?")

        described = {"name": "look_up", "description": "Looks up.", "parameters": _TOPIC}
        tools = [{"type": "function", "function": described}]
        return LLM(model="gpt-4o-mini", max_tokens=20).call(
            "Look it up.", tools=tools, available_functions={"look_up": look_up}
        )


_TOPIC = {"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"]}


class GivesUp(Flow):
    """Has no patience with a slow call, and asks another one."""

    @start()
    async def ask(self):
        try:
            async with asyncio.timeout(0.3):
                await _llm("gpt-4o-mini-stub-slow-20s").acall("Take your time.")
        except TimeoutError:
            pass
        return await _llm("gpt-4o-mini").acall("And in short?")
