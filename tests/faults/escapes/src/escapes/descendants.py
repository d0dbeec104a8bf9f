# ruff: noqa: T201 - flows print
"""A flow that leaves processes behind, in each way there is. All carry `inputs["mark"]` or the run's own mark."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

from crewai.flow import Flow, start

_SLEEP = "import time; time.sleep(600)"
_BOMB = "import os, time\nfor _ in range(200):\n    if os.fork() == 0: break\ntime.sleep(600)"
_DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "


def _ignore_term():
    """Steps run in threads, where Python does not set handlers; the C library does."""
    ctypes.CDLL(None).signal(signal.SIGTERM, ctypes.c_void_p(1))


def _spawn(mark, code=_SLEEP, **options):
    return subprocess.Popen([sys.executable, "-S", "-c", code, mark], **options)


def _double_fork(mark):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-S", "-c", _SLEEP, mark])
        os._exit(0)


def _plain_fork(_mark):
    """Never execs: only the memory that it was born with tells whose it is."""
    if os.fork() == 0:
        os.setsid()
        _ignore_term()
        time.sleep(600)
        os._exit(0)


def _thread(_mark):
    """Not a daemon: the interpreter waits for it at its end, and a signal does not reach it."""
    _ignore_term()
    threading.Thread(target=time.sleep, args=(600,)).start()


KINDS = {
    "plain": _spawn,
    "setsid": lambda mark: _spawn(mark, start_new_session=True),
    "double fork": _double_fork,
    "ignores TERM": lambda mark: _spawn(mark, _DEAF + _SLEEP),
    "thread": _thread,
    "stopped": lambda mark: os.kill(_spawn(mark).pid, signal.SIGSTOP),
    "bomb of 200": lambda mark: _spawn(mark, _BOMB),
    "holds the pipe": lambda mark: _spawn(mark, close_fds=False, stdout=1, stderr=2),
    "never execs": _plain_fork,
}


class Leaves(Flow):
    @start()
    def only(self):
        KINDS[self.state["kind"]](self.state["mark"])
        time.sleep(0.5)
        print("left", flush=True)
        time.sleep(600)
