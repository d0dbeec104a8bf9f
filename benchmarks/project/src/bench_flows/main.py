"""Flows that measure themselves. The monotonic clock is one for the whole machine, in every PID namespace."""

from __future__ import annotations

import ctypes
import signal
import time
from typing import Any

from crewai import LLM
from crewai.flow import Flow, listen, or_, persist, router, start


def _now() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


class FirstLine(Flow):
    """Notes when its first step's first line ran."""

    @start()
    def begin(self) -> int:
        now = _now()
        self.state["first_line_ns"] = now
        return now


class ThreeSteps(Flow):
    """Three steps that do nothing; the result is how long kickoff() took, in nanoseconds."""

    @start()
    def first(self) -> None:
        self.state["first_line_ns"] = _now()

    @listen(first)
    def second(self) -> None:
        pass

    @listen(second)
    def third(self) -> None:
        pass

    def kickoff(self, *arguments: Any, **options: Any) -> Any:
        begun = _now()
        super().kickoff(*arguments, **options)
        return _now() - begun


def _twenty_steps() -> dict[str, Any]:
    """A chain of methods, each of which asks an LLM and keeps its answer."""

    def step(number: int) -> Any:
        def ask(self: Any) -> None:
            if number == 0:
                self.llm = LLM(model="gpt-4o-mini")
                self.state["first_line_ns"] = _now()
            self.state["answer"] = self.llm.call(f"What is the use of ledger {number}?")

        ask.__name__ = f"step_{number}"
        return ask

    methods: dict[str, Any] = {"step_0": start()(step(0))}
    for number in range(1, 20):
        methods[f"step_{number}"] = listen(f"step_{number - 1}")(step(number))
    return methods


class _Timed(Flow):
    """The result is how long kickoff() took and how much of a processor, in nanoseconds."""

    def kickoff(self, *arguments: Any, **options: Any) -> Any:
        begun, used = _now(), time.process_time_ns()
        super().kickoff(*arguments, **options)
        return {"ns": _now() - begun, "cpu_ns": time.process_time_ns() - used}


TwentySteps = type("TwentySteps", (_Timed,), {"__module__": __name__, **_twenty_steps()})


@persist()
class TwentyStepsPersisted(_Timed):
    """With CrewAI's own way to keep what happened: the state after each method, in SQLite."""

    locals().update(_twenty_steps())


class TwentyStepsTraced(_Timed):
    """With OpenInference's instrumentation, and spans that go nowhere but into memory."""

    locals().update(_twenty_steps())

    def kickoff(self, *arguments: Any, **options: Any) -> Any:
        from openinference.instrumentation.crewai import CrewAIInstrumentor
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        CrewAIInstrumentor().instrument(tracer_provider=provider, skip_dep_check=True)
        took = super().kickoff(*arguments, **options)
        self.state["spans"] = len(exporter.get_finished_spans())
        return took


class Endless(Flow):
    """Does not end by itself. `how`: steps (one short step after another), sleep, native (blocks in C), stubborn."""

    @start()
    def begin(self) -> None:
        how = self.state["how"]
        if how == "stubborn":
            # Steps run in threads, where Python does not set handlers; the C library does. 1 is SIG_IGN.
            ctypes.CDLL(None).signal(signal.SIGTERM, ctypes.c_void_p(1))
        if how == "native":
            ctypes.CDLL(None).sleep(3600)
        if how != "steps":
            time.sleep(3600)

    @router(or_(begin, "again"))
    def step(self) -> str:
        time.sleep(0.1)
        return "again"


class Holding(Flow):
    """Calls an LLM over HTTP, then stays so that its memory can be weighed."""

    @start()
    def ask(self) -> str:
        return str(LLM(model="gpt-4o-mini").call("What is a ledger?"))

    @listen(ask)
    def stay(self) -> str:
        self.state["first_line_ns"] = _now()
        print("holding", flush=True)
        time.sleep(float(self.state.get("seconds", 4)))
        return "held"


def kickoff() -> None:
    FirstLine().kickoff()
