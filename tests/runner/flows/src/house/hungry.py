# ruff: noqa: T201, PTH123, SIM115 - flows print, and take what they can get
"""Flows that take more and more of something, and flows that are killed halfway."""

import os
import subprocess
import sys
import time

from crewai.events import crewai_event_bus
from crewai.events.types.llm_events import LLMCallCompletedEvent, LLMCallType
from crewai.flow import Flow, listen, start

_HOG = "import sys, time; hog = b'x' * (int(sys.argv[1]) << 20); time.sleep(60)"


class Memory(Flow):
    """Takes `mb` in pieces of 10 MB, or (`where` = child) in processes of 100; then stays for a moment."""

    @start()
    def only(self):
        taken = []
        if self.state.get("where") == "child":
            taken = [subprocess.Popen([sys.executable, "-c", _HOG, "100"]) for _ in range(self.state["mb"] // 100)]
        else:
            for _ in range(self.state["mb"] // 10):
                taken.append(b"x" * (10 << 20))
                time.sleep(self.state.get("pause", 0))
        time.sleep(self.state.get("seconds", 1))
        return len(taken)


class Forks(Flow):
    """`how`: doubling (each process forks for ever), or `count` processes that sleep."""

    @start()
    def only(self):
        print("begun", flush=True)
        if self.state.get("how") == "doubling":
            while True:
                try:
                    os.fork()
                except OSError:
                    time.sleep(0.01)
        for _ in range(self.state["count"]):
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
        time.sleep(1)
        return "done"


class Files(Flow):
    @start()
    def only(self):
        files = [open(os.devnull) for _ in range(self.state["count"])]
        return len(files)


class Halfway(Flow):
    """One step that ends with a call's tokens and a line in the log, and one that never does."""

    @start()
    def first(self):
        self.state["found"] = ["a", float("nan")]
        self.state["text"] = "x" * self.state.get("characters", 0)
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        event = LLMCallCompletedEvent(
            model="stub", response="", call_type=LLMCallType.LLM_CALL, call_id="one", usage=usage
        )
        crewai_event_bus.emit(self, event)
        print("first is done", flush=True)

    @listen(first)
    def second(self):
        self.state["unfinished"] = True
        print("halfway", flush=True)
        time.sleep(self.state.get("seconds", 50))


class Steps(Flow):
    """Many steps, each of which changes a large state."""

    @start()
    def only(self):
        self.state["items"] = list(range(self.state["count"]))

    @listen(only)
    def second(self):
        self.state["items"].append(0)

    @listen(second)
    def third(self):
        self.state["items"].append(1)
