"""Three lives: one that is over at once, one that takes its time, and one that talks to a model."""

import time

from crewai import LLM
from crewai.flow import Flow, listen, start

from chaos_flows.effects import note


class Brief(Flow):
    @start()
    def begin(self):
        note("started")

    @listen(begin)
    def work(self):
        note("step")

    @listen(work)
    def end(self):
        note("ended")
        return "done"


class Long(Flow):
    """Lasts `seconds`, in steps that a log shows."""

    @start()
    def begin(self):
        note("started")

    @listen(begin)
    def work(self):
        until = time.monotonic() + self.state["seconds"]
        while time.monotonic() < until:
            note("step")
            time.sleep(0.05)

    @listen(work)
    def end(self):
        note("ended")
        return "done"


class Talk(Flow):
    @start()
    def begin(self):
        note("started")

    @listen(begin)
    def ask(self):
        self.state["answer"] = str(LLM(model="gpt-4o-mini").call("What is a ledger?"))
        note("step")

    @listen(ask)
    def end(self):
        note("ended")
        return self.state["answer"]
