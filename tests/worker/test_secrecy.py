"""Another process of the same user cannot read a worker's environment."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_AS_NOBODY = """
import ctypes, os, sys
from flowledger.worker.secrecy import keep_memory_private
os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""
_HOLD = """
# Becoming somebody else has made the process private already; as one that was started so, it is not.
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
if sys.argv[1] == "private":
    keep_memory_private()
print("ready", flush=True)
sys.stdin.read()
"""
_LOOK = "print(open(f'/proc/{sys.argv[1]}/environ').read())"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.mark.parametrize(("how", "seen"), [("private", False), ("open", True)])
def test_environment_is_read_by_nobody_else_of_the_same_user(how: str, seen: bool) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _AS_NOBODY + _HOLD, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "FLOWLEDGER_DATABASE_URL": "hunter22"},
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        look = subprocess.run(
            [sys.executable, "-c", _AS_NOBODY + _LOOK, str(holder.pid)], capture_output=True, text=True, timeout=20
        )
    finally:
        holder.communicate()
    assert ("hunter22" in look.stdout) is seen
    assert ("PermissionError" in look.stderr) is not seen
