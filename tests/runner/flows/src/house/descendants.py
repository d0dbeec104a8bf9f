# ruff: noqa: T201, PTH - flows print, and look at the system as users do
"""Flows that leave processes behind. Each descendant carries the word in `inputs["mark"]` in its command line."""

import os
import signal
import subprocess
import sys
import time

from crewai.flow import Flow, start

_SLEEP = "import sys, time; time.sleep(60)"


def _spawn(mark, code=_SLEEP, **options):
    subprocess.Popen([sys.executable, "-c", code, mark], **options)


def _double_fork(mark):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-c", _SLEEP, mark])
        os._exit(0)


def _plain_fork(mark):
    """Never execs: only the memory that it was born with tells whose it is."""
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)
        os._exit(0)


def _stopped(mark):
    process = subprocess.Popen([sys.executable, "-c", _SLEEP, mark])
    os.kill(process.pid, signal.SIGSTOP)


def _bomb(mark):
    for _ in range(200):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)


KINDS = {
    "plain": _spawn,
    "setsid": lambda mark: _spawn(mark, start_new_session=True),
    "double fork": _double_fork,
    "ignores TERM": lambda mark: _spawn(mark, "import signal; signal.signal(15, signal.SIG_IGN);" + _SLEEP),
    "plain fork": _plain_fork,
    "stopped": _stopped,
    "bomb": _bomb,
    "holds the pipe": lambda mark: _spawn(mark, close_fds=False, stdout=1, stderr=2),
}


class Leaves(Flow):
    @start()
    def only(self):
        KINDS[self.state["kind"]](self.state["mark"])
        time.sleep(0.3)
        print("left", flush=True)
        if self.state.get("stay"):
            time.sleep(60)
        return "gone"
