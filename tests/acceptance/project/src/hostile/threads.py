"""Starts a thread when it is imported, as some client libraries do."""

import threading
import time

from crewai.flow import Flow, start

threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()


class Restless(Flow):
    @start()
    def only(self):
        return "ran"
