"""Flows that tell more than anybody reads."""

import time
from datetime import datetime

from crewai.events import crewai_event_bus
from crewai.events.types.llm_events import LLMCallCompletedEvent, LLMCallType
from crewai.events.types.tool_usage_events import ToolUsageErrorEvent, ToolUsageFinishedEvent, ToolUsageStartedEvent
from crewai.flow import Flow, start

USAGE = {"prompt_tokens": 3, "completion_tokens": 2}


class Floods(Flow):
    """Uses a tool `times` times, of which each is two events, then fails in every way that is told."""

    @start()
    def flood(self):
        if self.state.get("unbound"):
            _talk_the_listener_out_of_its_bound()
        for _ in range(self.state["times"]):
            _use_a_tool(self)
        crewai_event_bus.emit(
            self, LLMCallCompletedEvent(call_id="c", call_type=LLMCallType.LLM_CALL, response="", usage=USAGE)
        )
        crewai_event_bus.emit(self, ToolUsageStartedEvent(tool_name="last", tool_args={}))
        crewai_event_bus.emit(self, ToolUsageErrorEvent(tool_name="last", tool_args={}, error="no such tool"))
        raise RuntimeError("drowned")


class Calm(Flow):
    """Uses a tool now and then, and says so."""

    @start()
    def work(self):
        for n in range(self.state["times"]):
            _use_a_tool(self)
            print(f"used {n}")  # noqa: T201 - flows print, as users do
            time.sleep(0.02)


def _use_a_tool(source):
    now = datetime.now()  # noqa: DTZ005 - what CrewAI gives
    crewai_event_bus.emit(source, ToolUsageStartedEvent(tool_name="hose", tool_args={}))
    crewai_event_bus.emit(
        source, ToolUsageFinishedEvent(tool_name="hose", tool_args={}, started_at=now, finished_at=now, output="")
    )


def _talk_the_listener_out_of_its_bound():
    import gc
    import sys

    from flowledger.runner.listener import Listener, Terms

    (listener,) = [thing for thing in gc.get_objects() if isinstance(thing, Listener)]
    listener._terms = Terms(sys.maxsize)
