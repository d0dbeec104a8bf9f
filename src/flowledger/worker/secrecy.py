"""Keeps other processes of the same user, flow code among them, from reading this one's memory and environment."""

from __future__ import annotations

import ctypes
import sys

_PR_SET_DUMPABLE = 4


def keep_memory_private() -> None:
    """Makes /proc/<this process>/{environ,mem,fd,...} root's and refuses ptrace, for this process only; exec undoes it.

    The ledger's addresses and passwords are in here. Does nothing outside Linux.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
