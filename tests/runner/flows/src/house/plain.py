# ruff: noqa: T201, PTH - flows print, and look at the system as users do
"""Flows that behave."""

import time

from crewai.flow import Flow, listen, start


class Steps(Flow):
    @start()
    def first(self):
        print("first", time.monotonic_ns(), flush=True)
        self.state["n"] = 1
        return "one"

    @listen(first)
    def second(self, value):
        self.state["n"] += 1
        return value + " two"

    @listen(second)
    def third(self, value):
        return {"said": value, "given": self.state.get("given")}


class Sleeps(Flow):
    @start()
    def first(self):
        print("first", time.monotonic_ns(), flush=True)
        time.sleep(self.state["seconds"])


class Costs(Flow):
    """Kicks off a flow of three steps, by turns with flowledger's tap on the event bus and without it."""

    @start()
    def measure(self):
        import statistics

        from crewai.events import crewai_event_bus

        tap = crewai_event_bus.__dict__["_prepare_event"]
        found = {"recorded": [], "bare": []}
        for _ in range(self.state["rounds"]):
            for how, times in found.items():
                if how == "bare":
                    del crewai_event_bus._prepare_event
                flow = Three()
                begun = time.perf_counter()
                flow.kickoff()
                times.append(time.perf_counter() - begun)
                crewai_event_bus._prepare_event = tap
        return {how: statistics.median(times) for how, times in found.items()}


class Three(Flow):
    @start()
    def one(self):
        return 1

    @listen(one)
    def two(self):
        return 2

    @listen(two)
    def three(self):
        return 3


class Looks(Flow):
    """Says what it sees in a directory."""

    @start()
    def look(self):
        from pathlib import Path

        return sorted(entry.name for entry in Path(self.state["directory"]).iterdir())
