# ruff: noqa: T201 - flows print
"""A flow that writes into a file that it lives, line after line, until it is ended."""

import os
import time

from crewai.flow import Flow, start


class Steady(Flow):
    @start()
    def only(self):
        file = os.open(self.state["effects"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        word = b"start"
        while True:
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            os.write(file, b"%s %d %.6f\n" % (word, os.getpid(), now))
            if word == b"start":
                print("begun", flush=True)
            word = b"beat"
            time.sleep(0.02)
