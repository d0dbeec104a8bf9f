"""The least that a run could be: a fork of warm CrewAI, in namespaces of its own, that calls kickoff().

Nothing is recorded, watched or limited here; it is what runs are compared with. Reads a flow's class name per line and
writes one JSON object per ended child.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys

from flowledger.runner import namespace, template

_MAIN = "bench_flows.main"


def main() -> None:
    namespace.enter()
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    namespace.mount_own_proc()
    _serve()


def _serve() -> None:
    template._import_crewai()  # noqa: SLF001 - as warm as the other side
    importlib.import_module(_MAIN)
    template._freeze()  # noqa: SLF001
    _say({"ready": True})
    home = os.open("/proc/self/ns/pid", os.O_RDONLY)
    for line in sys.stdin:
        namespace.give_next_child_its_own_pids()
        if os.fork() == 0:
            _become_init(line.strip())
        namespace.return_to(home)
        _reap()


def _become_init(flow: str) -> None:
    namespace.become_init()
    pid = os.fork()
    if pid == 0:
        _run(flow)
    os.waitpid(pid, 0)
    os._exit(0)


def _run(flow: str) -> None:
    from crewai.memory.storage import factory
    from crewai_core.printer import set_suppress_console_output

    gc.enable()
    set_suppress_console_output(True)
    factory.set_memory_storage_factory(lambda _spec: _NoMemory())
    running = getattr(importlib.import_module(_MAIN), flow)()
    result = running.kickoff()
    _say({"first_line_ns": running.state["first_line_ns"], "result": result})
    os._exit(0)


class _NoMemory:
    """Stands for the store that every Flow() opens."""

    def __getattr__(self, name: str) -> object:
        raise AttributeError(name)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _say(fact: dict[str, object]) -> None:
    os.write(1, json.dumps(fact).encode() + b"\n")


if __name__ == "__main__":
    main()
