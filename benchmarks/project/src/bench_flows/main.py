"""Flows that measure themselves. The monotonic clock is one for the whole machine, in every PID namespace."""

from __future__ import annotations

import ctypes
import signal
import time
from typing import Any

from crewai import LLM
from crewai.flow import Flow, listen, or_, router, start


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
