# ruff: noqa: PTH109, PTH208, T201 - flows print, and look at the system as users do
"""Flows that do what no flow should. `inputs["how"]` names the fault."""

import contextlib
import ctypes
import math
import os
import sys
import threading
import time
from pathlib import Path

from crewai.flow import Flow, listen, start
from pydantic import BaseModel


class WithoutAnswer(Exception):
    pass


def _nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def _recurse(n):
    return _recurse(n + 1) + 1


def _raise():
    try:
        {}["missing"]
    except KeyError as error:
        raise WithoutAnswer("nobody knows") from error


FAULTS = {
    "raises": _raise,
    "sys.exit": lambda: sys.exit(3),
    "sys.exit in words": lambda: sys.exit("no more"),
    "os._exit": lambda: os._exit(4),
    "os._exit 0": lambda: os._exit(0),
    "abort": os.abort,
    "segfault": lambda: ctypes.string_at(0),
    "recursion": lambda: _recurse(0),
    "kill": lambda: os.kill(os.getpid(), 9),
    "interrupt": lambda: (_ for _ in ()).throw(KeyboardInterrupt()),
    "long type": lambda: (_ for _ in ()).throw(type("E" * 300, (Exception,), {})("x" * 50_000)),
    "close all": lambda: os.closerange(3, 256),
    "write frames": lambda: [_try_write(n) for n in range(3, 64)],
}


def _try_write(descriptor):
    with contextlib.suppress(OSError):
        os.write(descriptor, b"\x01garbage that is no frame" * 10)


class Faulty(Flow):
    @start()
    def first(self):
        self.state["reached"] = "first"
        return FAULTS[self.state["how"]]()


RESULTS = {
    "lock": threading.Lock,
    "bytes": lambda: b"\xff\x00",
    "nan": lambda: [math.nan, math.inf, -math.inf],
    "nul": lambda: "a\x00b",
    "surrogate": lambda: "a\ud800b",
    "50 MB": lambda: "x" * 50_000_000,
    "deep": lambda: _nested(20_000),
    "generator": lambda: (n for n in range(3)),
    "huge int": lambda: 10**200_000,
    "cycle": lambda: (lambda value: (value.append(value), value)[1])([]),
    "function": lambda: _recurse,
    "exception": lambda: ValueError("as a value"),
}


class Returning(Flow):
    @start()
    def only(self):
        return RESULTS[self.state["what"]]()


class ClosesStdout(Flow):
    @start()
    def only(self):
        print("before", flush=True)
        sys.stdout.close()
        os.close(1)
        os.close(2)
        return "still here"


class Prints(Flow):
    @start()
    def only(self):
        line = "y" * 99 + "\n"
        print("HEAD")
        for _ in range(100):
            sys.stdout.write(line * 10_000)
        print("TAIL é")
        return "printed"


class Wanders(Flow):
    @start()
    def only(self):
        os.chdir("/")
        os.environ["WANDERED"] = "yes"
        os.environ.pop("PATH", None)
        return os.getcwd()


class Order(BaseModel):
    customer: str
    amount: int = 1


class Required(Flow[Order]):
    @start()
    def only(self):
        return f"{self.state.customer} {self.state.amount}"


class Asks(Flow):
    @start()
    def question(self):
        return self.ask("What now?")


class Triggered(Flow):
    @start()
    def only(self, crewai_trigger_payload: dict | None = None):
        return crewai_trigger_payload


class Environment(Flow):
    @start()
    def only(self):
        stdin = sys.stdin.read()
        return {
            "environ": dict(os.environ),
            "exec": Path("/proc/self/environ").read_text(),
            "cwd": os.getcwd(),
            "stdin": stdin,
            "pid": os.getpid(),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "processes": [name for name in os.listdir("/proc") if name.isdigit()],
        }


class Slow(Flow):
    """Three steps; each says that it ran and then takes its time, in Python or in native code."""

    def _wait(self):
        print("step", flush=True)
        how, seconds = self.state.get("how", "sleep"), self.state["seconds"]
        if how == "native":
            ctypes.PyDLL(None).usleep(int(seconds * 1e6))  # holds the interpreter's lock
        elif how == "stubborn":
            # Only the kernel can end this one.
            ctypes.CDLL(None).signal(15, ctypes.c_void_p(1))
            time.sleep(seconds)
        else:
            time.sleep(seconds)

    @start()
    def one(self):
        self._wait()

    @listen(one)
    def two(self):
        self._wait()

    @listen(two)
    def three(self):
        self._wait()
        return "all three"


class Late(Flow):
    """Returns, but leaves a thread and an exit handler that do not want to end."""

    @start()
    def only(self):
        import atexit

        atexit.register(time.sleep, 60)
        threading.Thread(target=time.sleep, args=(60,)).start()
        return "returned"
