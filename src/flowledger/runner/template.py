"""The warm, credential-free processes that a run's child is forked from.

Three processes, each forked from the one before while it is still small:
the launcher enters the namespaces and waits; the base imports CrewAI once; a template imports the project's modules on
top of it and is forked for every run. A template that a module spoils (threads, a crash, an endless import) is thrown
away and the base makes another, so that CrewAI is imported once only. The base also forks the describers that say which
flows the project holds. No process here ever makes a Flow: CrewAI's threads would not survive the fork and every child
would hang.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import platform
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from flowledger.runner import child, describe, namespace, redact, supervisor, wire
from flowledger.runner.bounds import Bounds

_REAP_EVERY_MILLISECONDS = 5000

_WARM = (
    "crewai",
    "crewai.flow",
    "crewai.events.event_types",
    "crewai.hooks.dispatch",
    "crewai.hooks.contexts",
    "crewai.execution",
    "crewai.llm",
    "crewai.agent",
    "crewai.crew",
    "crewai.experimental.agent_executor",
    "crewai.events.stream_context",
    "crewai.memory.storage.factory",
    "crewai.llms.providers.openai.completion",
    "crewai.llms.providers.anthropic.completion",
    "openai.resources.chat.completions",
    "encodings.idna",
    "uuid",
    "dotenv",
)
"""What a run loads sooner or later. Each is optional: CrewAI's versions differ, and so do the installed providers."""


@dataclass(frozen=True)
class Boot:
    """How the launcher was started: `preload` False means that children import everything themselves; `hidden` are
    directories that nobody below the launcher may look into.
    """

    control: int
    parent: int
    isolation: str | None
    preload: bool
    hidden: tuple[str, ...]


def main() -> NoReturn:
    """Entry of the launcher, under the project's interpreter: `CONTROL PARENT ISOLATION PRELOAD HIDDEN` in argv."""
    control, parent, isolation, preload, hidden = sys.argv[1:6]
    boot = Boot(int(control), int(parent), isolation or None, preload == "1", tuple(json.loads(hidden)))
    namespace.die_with_parent(signal.SIGKILL)
    if os.getppid() != boot.parent:
        os._exit(1)
    if boot.isolation == namespace.SUBREAPER or not namespace.is_available():
        _Base(socket.socket(fileno=boot.control), namespace.SUBREAPER, boot.preload).serve()
    _launch(boot)


def _launch(boot: Boot) -> NoReturn:
    namespace.enter()
    for directory in boot.hidden:
        namespace.hide(directory)
    pid = os.fork()
    if pid == 0:
        namespace.die_with_parent(signal.SIGKILL)
        namespace.mount_own_proc()
        _Base(socket.socket(fileno=boot.control), namespace.NAMESPACE, boot.preload).serve()
    os.close(boot.control)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)


class _Base:
    """Holds CrewAI and nothing of the project; forks a template or a describer whenever the worker asks for one.

    A request carries a number and its process's channel; the answer carries the number and the process's pidfd.
    """

    def __init__(self, control: socket.socket, isolation: str, preload: bool) -> None:  # noqa: FBT001 - from argv
        self._control = control
        self._isolation = isolation
        self._preload = preload

    def serve(self) -> NoReturn:
        with contextlib.suppress(OSError, wire.BrokenFrame):
            wire.send(self._control, self._warm_up())
            poll = select.poll()
            poll.register(self._control, select.POLLIN)
            while True:
                if poll.poll(_REAP_EVERY_MILLISECONDS):
                    received = wire.receive(self._control)
                    if received is None:
                        break
                    self._answer(*received)
                _reap()
        self._end()

    def _warm_up(self) -> dict[str, Any]:
        facts = {"isolation": self._isolation, "python": platform.python_version(), "crewai": "", "threads": 1}
        try:
            facts["crewai"] = _crewai_version()
            facts["site_packages"] = _site_packages()
            if self._preload:
                _import_crewai()
                _freeze()
                facts["threads"] = _threads()
        except BaseException as error:
            facts["error"] = redact.own().text(f"{type(error).__name__}: {error}")
        return facts

    def _answer(self, request: dict[str, Any], descriptors: list[int]) -> None:
        number = request["number"]
        try:
            pid = self._fork(request, descriptors[0])
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            wire.send(self._control, {"number": number, "error": str(error)})
            return
        finally:
            os.close(descriptors[0])
        wire.send(self._control, {"number": number, "pid": pid}, (pidfd,))
        os.close(pidfd)

    def _fork(self, request: dict[str, Any], channel: int) -> int:
        if "describe" in request:
            return _fork_apart(self._isolation, lambda: self._become_describer(request["describe"], channel))
        return os.fork() or self._become_template(request["template"], channel)

    def _become_template(self, request: dict[str, Any], channel: int) -> NoReturn:
        namespace.die_with_parent(signal.SIGKILL)
        self._control.close()
        _Template(socket.socket(fileno=channel), request, self._isolation).serve()

    def _become_describer(self, order: dict[str, Any], channel: int) -> NoReturn:
        self._control.close()
        describe.become_describer(describe.Order(**order), socket.socket(fileno=channel), self._isolation)

    def _end(self) -> NoReturn:
        if self._isolation == namespace.SUBREAPER:
            _wait_for_children(seconds=4)
        os._exit(0)


def _fork_apart(isolation: str, become: Callable[[], NoReturn]) -> int:
    """Forks a process that, with namespaces, is the first of a PID namespace of its own."""
    if isolation == namespace.SUBREAPER:
        return os.fork() or become()
    home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    namespace.give_next_child_its_own_pids()
    try:
        pid = os.fork()
        if pid == 0:
            os.close(home)
            become()
        return pid
    finally:
        namespace.return_to(home)
        os.close(home)


def _crewai_version() -> str:
    from importlib.metadata import version

    return version("crewai")


def _site_packages() -> str | None:
    """Where CrewAI is installed; None when nobody can tell."""
    from importlib.metadata import distribution

    place = Path(str(distribution("crewai").locate_file("")))
    return str(place) if place.is_dir() else None


def _import_crewai() -> None:
    before = set(os.environ)
    importlib.import_module("crewai")
    for module in _WARM:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    _take_back_dotenv(before)


def _take_back_dotenv(before: set[str]) -> None:
    """CrewAI loads the project's .env when it is imported; whoever is forked loads it as it is by then."""
    with contextlib.suppress(Exception):
        from dotenv import dotenv_values

        for name in dotenv_values(Path.cwd() / ".env"):
            if name not in before:
                os.environ.pop(name, None)


def _freeze() -> None:
    """Takes everything loaded out of the collector's sight: its marks would copy every page that children share."""
    gc.collect()
    gc.disable()
    gc.freeze()


class _Template:
    """Holds the project's modules; forked once for every run."""

    def __init__(self, control: socket.socket, request: dict[str, Any], isolation: str) -> None:
        self._control = control
        self._root = Path(request["root"])
        self._import_paths: list[str] = request["import_paths"]
        self._modules: list[str] = request["modules"]
        self._others: list[str] = request["watch"]
        self._isolation = isolation
        self._marker = namespace.Marker()
        self._redactor = redact.Redactor()
        self._runs: dict[int, int] = {}

    def serve(self) -> NoReturn:
        with contextlib.suppress(OSError, wire.BrokenFrame):
            self._enter_project()
            raised = self._import_modules()
            self._settle(raised)
            self._fork_runs()
        if self._isolation == namespace.SUBREAPER:
            self._end_runs()
        os._exit(0)

    # -- Loading ------------------------------------------------------------------------------------------------------

    def _enter_project(self) -> None:
        with contextlib.suppress(OSError):
            os.chdir(self._root)
        sys.path[:0] = [path for path in self._import_paths if path not in sys.path]
        _load_dotenv(self._root / ".env")
        # Only the worker knows its secrets, so it is the one to name the variables that must go.
        wire.send(self._control, {"environment": dict(os.environ)})
        answer = wire.receive(self._control)
        for name in answer[0]["drop"] if answer else ():
            os.environ.pop(name, None)
        # Before the project's code: it may take what it needs out of the environment. Every run inherits what is known.
        self._redactor.learn_all(os.environ)
        redact.watch(self._redactor.learn)

    def _import_modules(self) -> dict[str, str]:
        raised = {}
        for module in self._modules:
            wire.send(self._control, {"loading": module})
            try:
                importlib.import_module(module)
            except BaseException as error:
                raised[module] = self._redactor.cut(f"{type(error).__name__}: {error}", 1000)
            if _threads() > 1:
                names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
                wire.send(self._control, {"unsafe": module, "threads": names})
                os._exit(0)
        return raised

    def _settle(self, raised: dict[str, str]) -> None:
        if _threads() > 1:
            wire.send(self._control, {"unsafe": "crewai", "threads": []})
            os._exit(0)
        files = _stamps(self._files())
        _freeze()
        wire.send(self._control, {"ready": {"raised": raised, "files": files}})

    def _files(self) -> Iterable[str]:
        """The project's own files that are loaded; libraries installed inside the project are not the project's."""
        yield from self._others
        roots = tuple(f"{path}/" for path in {str(self._root), *self._import_paths})
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None)
            if isinstance(file, str) and file.startswith(roots) and "/site-packages/" not in file:
                yield file

    # -- Forking ------------------------------------------------------------------------------------------------------

    def _fork_runs(self) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor in self._runs:
                    poll.unregister(descriptor)
                    self._reap(descriptor)
                    continue
                request = wire.receive(self._control)
                if request is None:
                    return
                self._fork_run(request[0], request[1], poll)

    def _fork_run(self, request: dict[str, Any], descriptors: list[int], poll: select.poll) -> None:
        try:
            pid = _fork_apart(self._isolation, lambda: self._become_run(request, descriptors))
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            wire.send(self._control, {"error": str(error)})
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._runs[pidfd] = pid
        poll.register(pidfd, select.POLLIN)
        wire.send(self._control, {"pid": pid}, (pidfd,))

    def _become_run(self, request: dict[str, Any], descriptors: list[int]) -> NoReturn:
        self._control.close()
        # Before the mark: whoever sweeps up leftovers must never see a marked run without its supervisor.
        namespace.rename_process(namespace.SUPERVISOR_NAME)
        self._marker.write(request["execution_id"])
        os.environ[namespace.MARKER] = request["execution_id"]
        channels = child.Channels(*descriptors[1:])
        supervisor.supervise(
            socket.socket(fileno=descriptors[0]),
            self._isolation,
            request["lease_seconds"],
            Bounds(**request["bounds"]),
            lambda: child.main(channels, self._redactor),
        )

    def _reap(self, pidfd: int) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._runs.pop(pidfd), 0)
        os.close(pidfd)

    def _end_runs(self) -> None:
        for pid in self._runs.values():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGTERM)
        _wait_for_children(seconds=3)


def _load_dotenv(path: Path) -> None:
    with contextlib.suppress(Exception):
        from dotenv import load_dotenv

        load_dotenv(path)


def _threads() -> int:
    return max(threading.active_count(), len(os.listdir("/proc/self/task")))  # noqa: PTH208


def _stamps(files: Iterable[str]) -> dict[str, list[int]]:
    stamps = {}
    for file in files:
        with contextlib.suppress(OSError):
            facts = os.stat(file)  # noqa: PTH116 - a path from sys.modules, used once
            stamps[file] = [facts.st_mtime_ns, facts.st_size]
    return stamps


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _wait_for_children(seconds: float) -> None:
    signal.alarm(int(seconds))
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
