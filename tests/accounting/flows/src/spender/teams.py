"""Flows whose calls are made by agents and crews."""

import asyncio
from typing import Any

from crewai import LLM, Agent, Crew, LLMGuardrail, Process, Task
from crewai.flow import Flow, listen, start
from crewai.tools import tool
from pydantic import BaseModel

MODEL = "gpt-4o-mini"


class Verdict(BaseModel):
    word: str
    score: int


@tool("look_up")
def look_up(topic: str) -> str:
    """Looks a topic up."""
    return f"all about {topic}"


@tool("broken_look_up")
def broken_look_up(topic: str) -> str:
    """Looks a topic up and fails."""
    raise LookupError(f"nothing about {topic}")


def writer(llm: Any = None, **options: Any) -> Agent:
    return Agent(role="Writer", goal="write", backstory="writes", llm=llm or LLM(model=MODEL), **options)


def critic(llm: Any = None, **options: Any) -> Agent:
    return Agent(role="Critic", goal="judge", backstory="judges", llm=llm or LLM(model=MODEL), **options)


def task(agent: Agent, name: str = "draft", **options: Any) -> Task:
    return Task(name=name, description="Write about {topic}.", expected_output="A line.", agent=agent, **options)


def crew(name: str = "press", llm: Any = None, **options: Any) -> Crew:
    writing, judging = writer(llm), critic(llm)
    tasks = [task(writing), task(judging, "review")]
    return Crew(name=name, agents=[writing, judging], tasks=tasks, process=Process.sequential, **options)


TOPIC = {"topic": "ledgers"}


class AgentAlone(Flow):
    @start()
    def write(self):
        return writer().kickoff("Write a line.").raw


class AgentAloneAsync(Flow):
    @start()
    async def write(self):
        return (await writer().kickoff_async("Write a line.")).raw


class AgentWithTool(Flow):
    @start()
    def write(self):
        return writer(tools=[look_up]).kickoff("Look up ledgers, then write a line.").raw


class AgentStructured(Flow):
    @start()
    def write(self):
        return writer().kickoff("Judge ledgers.", response_format=Verdict).raw


class OneCrew(Flow):
    @start()
    def publish(self):
        return crew().kickoff(TOPIC).raw


class CrewAsync(Flow):
    @start()
    async def publish(self):
        return (await crew().kickoff_async(TOPIC)).raw


class CrewNative(Flow):
    """`akickoff` awaits the LLM itself, without a thread."""

    @start()
    async def publish(self):
        return (await crew().akickoff(TOPIC)).raw


class CrewWithTool(Flow):
    @start()
    def publish(self):
        writing = writer(tools=[look_up])
        return Crew(name="press", agents=[writing], tasks=[task(writing)]).kickoff(TOPIC).raw


class CrewWithBrokenTool(Flow):
    @start()
    def publish(self):
        writing = writer(tools=[broken_look_up])
        return Crew(name="press", agents=[writing], tasks=[task(writing)]).kickoff(TOPIC).raw


class CrewStructured(Flow):
    @start()
    def publish(self):
        writing = writer()
        return Crew(name="press", agents=[writing], tasks=[task(writing, output_pydantic=Verdict)]).kickoff(TOPIC).raw


class CrewStreaming(Flow):
    @start()
    def publish(self):
        return crew(llm=LLM(model=MODEL, stream=True)).kickoff(TOPIC).raw


class ForEach(Flow):
    @start()
    def publish(self):
        return [done.raw for done in crew().kickoff_for_each([{"topic": f"topic {n}"} for n in range(3)])]


class SharedLlm(Flow):
    """Two crews, one LLM object: CrewAI's own sums of the second hold those of the first."""

    @start()
    def publish(self):
        llm = LLM(model=MODEL)
        crew("morning", llm).kickoff(TOPIC)
        return crew("evening", llm).kickoff(TOPIC).raw


class ThreeAtOnce(Flow):
    @start()
    async def publish(self):
        crews = [crew(name) for name in ("one", "two", "three")]
        return [done.raw for done in await asyncio.gather(*(each.kickoff_async(TOPIC) for each in crews))]


class CrewsInBranches(Flow):
    @start()
    def begin(self):
        pass

    @listen(begin)
    def left(self):
        return crew("left").kickoff(TOPIC).raw

    @listen(begin)
    def right(self):
        return crew("right").kickoff(TOPIC).raw


class AsyncTasks(Flow):
    """Two tasks of one crew at the same time, and a third that waits for them."""

    @start()
    def publish(self):
        first, second = writer(), critic()
        tasks = [
            task(first, "one", async_execution=True),
            task(second, "two", async_execution=True),
            task(first, "three"),
        ]
        return Crew(name="press", agents=[first, second], tasks=tasks).kickoff(TOPIC).raw


class Hierarchical(Flow):
    @start()
    def publish(self):
        writing = writer()
        done = Crew(
            name="press",
            agents=[writing],
            tasks=[Task(name="draft", description="Write about {topic}.", expected_output="A line.")],
            process=Process.hierarchical,
            manager_llm=LLM(model=MODEL),
        )
        return done.kickoff(TOPIC).raw


class Planned(Flow):
    @start()
    def publish(self):
        return crew(planning=True, planning_llm=LLM(model=MODEL)).kickoff(TOPIC).raw


class Guarded(Flow):
    """Another LLM call judges the output."""

    @start()
    def publish(self):
        writing = writer()
        guarded = task(
            writing, guardrail=LLMGuardrail(description="It is polite.", llm=LLM(model=MODEL)), guardrail_max_retries=1
        )
        return Crew(name="press", agents=[writing], tasks=[guarded]).kickoff(TOPIC).raw


class GuardedByFunction(Flow):
    """Refuses the first output, so that the task is done again."""

    @start()
    def publish(self):
        refused = []

        def once(output: Any) -> tuple[bool, Any]:
            refused.append(output)
            return (len(refused) > 1, output.raw if len(refused) > 1 else "again, please")

        writing = writer()
        return Crew(name="press", agents=[writing], tasks=[task(writing, guardrail=once)]).kickoff(TOPIC).raw


class Reasons(Flow):
    @start()
    def publish(self):
        writing = writer(reasoning=True, max_reasoning_attempts=1)
        return Crew(name="press", agents=[writing], tasks=[task(writing)]).kickoff(TOPIC).raw


class AllTogether(Flow):
    """A direct call, an agent, a crew, a stream and a nested flow."""

    @start()
    def ask(self):
        return LLM(model=MODEL).call("What is a ledger?")

    @listen(ask)
    def write(self):
        return writer().kickoff("Write a line.").raw

    @listen(ask)
    def publish(self):
        return crew().kickoff(TOPIC).raw

    @listen(ask)
    async def in_short(self):
        return await LLM(model="gpt-4o", stream=True).acall("And in short?")

    @listen(in_short)
    def nest(self):
        return AgentAlone().kickoff()
