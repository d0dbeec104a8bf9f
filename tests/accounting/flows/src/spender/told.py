"""Flows whose timeline is looked at, and flows that end badly with a call in flight."""

import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
from typing import Any

from crewai import LLM, Crew, Memory
from crewai.flow import Flow, listen, or_, start
from pydantic import BaseModel

from spender.direct import MODEL, Inner
from spender.teams import TOPIC, task, writer

FAILS = "gpt-4o-mini-stub-400"


def _fails() -> None:
    with contextlib.suppress(Exception):
        LLM(model=FAILS, max_retries=0).call("Will this work?")


class FailsInside(Flow):
    """Calls that fail, each of which CrewAI tells twice, and what comes after them at every depth."""

    @start()
    def first(self):
        _fails()
        _fails()
        return LLM(model=MODEL).call("Does this work?")

    @listen(first)
    def second(self):
        _fails()
        return Inner().kickoff()

    @listen(second)
    def third(self):
        writing = writer(llm=LLM(model=FAILS, max_retries=0), max_retry_limit=0)
        with contextlib.suppress(Exception):
            Crew(name="press", agents=[writing], tasks=[task(writing)]).kickoff(TOPIC)
        return LLM(model=MODEL).call("And now?")

    @listen(third)
    async def fourth(self):
        with contextlib.suppress(Exception):
            await LLM(model=FAILS, max_retries=0).acall("Will this work?")
        return await LLM(model=MODEL).acall("And at last?")


class Board(BaseModel):
    topic: str = "ledgers"
    notes: list[str] = []
    score: int = 0


class Changes(Flow[Board]):
    @start()
    def read(self):
        self.state.notes.append("one")
        self.state.score = 7

    @listen(read)
    def leave(self):
        pass

    @listen(leave)
    def write(self):
        self.state.topic = "money"
        self.state.notes.append("two")


class Logs(Flow):
    """Sets logging up as any program does."""

    @start()
    def speak(self):
        logging.basicConfig(level=logging.INFO, format="%(name)s said: %(message)s")
        logger = logging.getLogger("team.press")
        logger.info("for the log alone")
        logger.warning("look at %s", "this")
        try:
            {}["nothing there"]
        except LookupError:
            logger.exception("could not look")


class TenThreads(Flow):
    @start()
    def ask(self):
        llm = LLM(model=MODEL)

        def work() -> None:
            for number in range(5):
                llm.call(f"What is {number}?")

        threads = [threading.Thread(target=work) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Manager:
    """Answers at once."""

    def request_input(self, message: str, flow: Any, metadata: Any = None) -> str:
        return "by all means"


class Asks(Flow):
    input_provider = Manager()

    @start()
    def publish(self):
        return self.ask("Shall we publish?")


class Remembers(Flow):
    @start()
    def learn(self):
        directory = tempfile.mkdtemp()
        memory = Memory(
            llm=LLM(model=MODEL), embedder=lambda texts: [[float(len(text)), 1.0] for text in texts], storage=directory
        )
        memory.remember("Ledgers are kept.", scope="/facts", categories=["facts"], importance=0.5)
        return len(memory.recall("Which are kept?", depth="shallow"))


class Swallowed(Flow):
    """Two branches race for one listener. CrewAI takes the first that ends and does not tell that the other failed."""

    @start()
    def begin(self):
        return "go"

    @listen(begin)
    def dies(self):
        raise LookupError("nothing there")

    @listen(begin)
    def lives(self):
        time.sleep(0.3)
        return "alive"

    @listen(or_(dies, lives))
    def last(self):
        return "done"


# -- Ends with a call in flight ---------------------------------------------------------------------------------------


class Ends(Flow):
    """One call that ends, then one that does not, in the midst of which something happens: see `how`."""

    @start()
    def ask(self):
        return LLM(model=MODEL).call("What is a ledger?")

    @listen(ask)
    def wait(self):
        how = self.state["how"]
        if how != "nothing":
            threading.Thread(target=getattr(self, f"_{how}"), daemon=True).start()
        return LLM(model="gpt-4o-mini-stub-slow-20s", stream=self.state.get("stream", False)).call("Take your time.")

    def _killed(self):
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    def _leaves(self):
        time.sleep(0.5)
        os._exit(3)

    def _eats(self):
        time.sleep(0.5)
        eaten = []
        while True:
            eaten.append(bytearray(os.urandom(1 << 20) * 8))
            time.sleep(0.01)
