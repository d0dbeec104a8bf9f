"""Flows that do what no flow should. `inputs["how"]` names the fault; `mark` is a file for the time of the end."""
# ruff: noqa: T201, PTH109 - flows print, as users do

import ctypes
import math
import os
import sys
import threading
import time
from pathlib import Path

from crewai.flow import Flow, start


class NoAnswer(Exception):
    pass


def _raise():
    raise NoAnswer("nobody knows")


def _recurse(n=0):
    return _recurse(n + 1) + 1


def _nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def _close_stdout():
    print("before", flush=True)
    sys.stdout.close()
    os.close(1)
    os.close(2)
    return "still here"


def _print_much():
    print("HEAD")
    for _ in range(100):
        sys.stdout.write(("y" * 99 + "\n") * 10_000)
    print("TAIL")
    return "printed"


def _wander():
    os.chdir("/")
    os.environ.clear()
    return os.getcwd()


FAULTS = {
    "raises": _raise,
    "sys.exit": lambda: sys.exit(3),
    "os._exit": lambda: os._exit(4),
    "os.abort": os.abort,
    "segfault": lambda: ctypes.string_at(0),
    "recursion": _recurse,
    "lock": threading.Lock,
    "bytes": lambda: b"\xff\x00",
    "nan": lambda: [math.nan, math.inf],
    "nul": lambda: "a\x00b",
    "surrogate": lambda: "a\ud800b",
    "50 MB": lambda: "x" * 50_000_000,
    "deep": lambda: _nested(20_000),
    "generator": lambda: (n for n in range(3)),
    "closes stdout": _close_stdout,
    "prints 100 MB": _print_much,
    "wanders": _wander,
    "nul in error": lambda: (_ for _ in ()).throw(ValueError("a\x00b \ud800")),
}


class Faulty(Flow):
    @start()
    def only(self):
        try:
            return FAULTS[self.state["how"]]()
        finally:
            _mark(self.state.get("mark"))


def _mark(file):
    if file:
        Path(file).write_text(str(time.time()))
