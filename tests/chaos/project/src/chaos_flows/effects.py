"""The effects log: one line for each thing that a flow did, whatever became of its execution afterwards."""

import json
import os
import time


def note(what: str) -> None:
    """Appended in one write, so that lines of many processes do not mix and a killed process leaves whole ones."""
    line = json.dumps([os.environ["FLOWLEDGER_RUN"], what, time.clock_gettime(time.CLOCK_BOOTTIME)]) + "\n"
    descriptor = os.open(os.environ["CHAOS_EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(descriptor, line.encode())
    os.close(descriptor)
