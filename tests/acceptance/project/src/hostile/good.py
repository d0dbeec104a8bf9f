"""Flows that behave."""
# ruff: noqa: T201 - flows print, as users do

import os
import subprocess
import sys
import time
from pathlib import Path

from crewai.flow import Flow, listen, start
from pydantic import BaseModel


class Good(Flow):
    """Says what it was given."""

    # ruff: noqa: T201 - flows print, as users do

    @start()
    def first(self):
        print("first")
        self.state["seen"] = True
        return "one"

    @listen(first)
    def second(self, value):
        print("second", file=sys.stderr)
        return {"said": value, "given": self.state.get("given")}


class Slow(Flow):
    """Prints, then sleeps in short naps; leaves a process behind when `mark` is given."""

    @start()
    def nap(self):
        if mark := self.state.get("mark"):
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)", mark], start_new_session=True)
        print("asleep", flush=True)
        until = time.monotonic() + self.state.get("seconds", 60)
        while time.monotonic() < until:
            time.sleep(0.02)
        return "awake"


class Order(BaseModel):
    customer: str
    amount: int = 1
    express: bool = False


class Required(Flow[Order]):
    @start()
    def only(self):
        return f"{self.state.customer} {self.state.amount} {self.state.express}"


class Looks(Flow):
    """Reports what flow code can see of its surroundings."""

    @start()
    def only(self):
        return {"environ": dict(os.environ), "secrets_of": {pid: _look(pid) for pid in self.state.get("pids", [])}}


def _look(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError as error:
        return type(error).__name__
