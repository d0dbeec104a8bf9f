"""The worker's hold on its template: starting it, knowing when it is stale, asking it for a run, closing it.

What happens inside those processes is told in `template.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from flowledger.domain.project import Project
from flowledger.errors import ProjectUnusable
from flowledger.runner import description, interpreter, namespace, redact, wire
from flowledger.runner.bounds import Bounds
from flowledger.runner.description import Report

Isolation = Literal["namespace", "subreaper"]

_CLOSE_SECONDS = 6.0
_FORK_SECONDS = 30.0
_KEPT_OUTPUT = 16_384
_READ_BYTES = 65_536
_CREWAI_STARTS_THREADS = (
    "crewai itself starts threads when it is imported: every flow starts in a fresh interpreter, which takes seconds. "
    "Look for a library in the project's environment that instruments CrewAI."
)


class NotForked(Exception):
    """The template could not make a process for a run."""


class NotDescribed(Exception):
    """The base could not make a process that looks at the project."""


@dataclass(frozen=True)
class _Sources:
    """What a template is made from."""

    project: Project
    secrets: frozenset[str]
    storage: Path
    import_seconds: float
    isolation: Isolation | None
    hidden: tuple[Path, ...]


class Template:
    """One generation of warm processes. Made by `start`, replaced by `renewed` when `is_stale`."""

    def __init__(self, base: _Base, sources: _Sources) -> None:
        self._base = base
        self._sources = sources
        self._control: _Channel | None = None
        self._pidfd = -1
        self._files: dict[str, list[int]] = {}
        self._unsafe: set[str] = set()
        self._warnings: list[str] = list(base.warnings)
        self._fork_lock = asyncio.Lock()
        self._bare: Template | None = None
        self._bare_lock = asyncio.Lock()
        self._runs = 0
        self._no_runs = asyncio.Event()
        self._no_runs.set()
        self._closed = False
        self.pid = 0

    @classmethod
    async def start(
        cls,
        project: Project,
        *,
        secrets: Collection[str],
        storage: Path,
        import_seconds: float,
        isolation: Isolation | None = None,
        hidden: Collection[Path] = (),
    ) -> Template:
        """A template that has loaded the project: `begin` and `load` in one."""
        template = await cls.begin(
            project, secrets=secrets, storage=storage, import_seconds=import_seconds, isolation=isolation, hidden=hidden
        )
        return await template.loaded()

    @classmethod
    async def begin(
        cls,
        project: Project,
        *,
        secrets: Collection[str],
        storage: Path,
        import_seconds: float,
        isolation: Isolation | None = None,
        hidden: Collection[Path] = (),
    ) -> Template:
        """Starts the project's interpreter and imports CrewAI; the project is left to `load` and `describe`.

        `isolation` None takes namespaces where the kernel allows them; there, the directories `hidden` are empty for
        flow code. Raises ProjectUnusable when the interpreter does not start or holds no CrewAI.
        """
        sources = _Sources(project, frozenset(secrets), storage, import_seconds, isolation, tuple(hidden))
        return cls(await _Base.start(sources, preload=True), sources)

    async def load(self) -> None:
        """Imports the project's modules. One that cannot be loaded is no error, see `warnings`.

        Raises ProjectUnusable.
        """
        await self._load(self._sources.project.modules)

    async def loaded(self) -> Template:
        """The same; one that cannot be loaded is closed."""
        try:
            await self.load()
        except BaseException:
            await self.close()
            raise
        return self

    @property
    def isolation(self) -> str:
        return self._base.isolation

    @property
    def crewai_version(self) -> str:
        return self._base.crewai_version

    @property
    def python_version(self) -> str:
        return self._base.python_version

    @property
    def site_packages(self) -> Path | None:
        """Where the project's CrewAI is installed; None when nobody could tell."""
        return self._base.site_packages

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for the worker's log: which modules run slower than they could, and what to do about it."""
        return tuple(self._warnings)

    @property
    def project(self) -> Project:
        return self._sources.project

    def is_stale(self) -> bool:
        """True once a file of the project that was loaded has changed on disk, or the template's processes are gone."""
        return self.is_gone or any(_stamp(file) != tuple(stamp) for file, stamp in self._files.items())

    @property
    def is_gone(self) -> bool:
        """True once its processes have ended: it can fork no more."""
        if self._base.is_gone or self._pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    async def renewed(self) -> Template:
        """A fresh generation with the project as it is now, on top of the CrewAI that is loaded already.

        The old one stays usable; `retire` it.
        """
        return await (await self.begun_anew()).loaded()

    async def begun_anew(self) -> Template:
        """The same, but the project is left to `load` and `describe`."""
        gone = self._base.is_gone
        return Template(await _Base.start(self._sources, preload=True) if gone else self._base.shared(), self._sources)

    async def retire(self) -> None:
        """Waits for the runs in flight, then closes."""
        await self._no_runs.wait()
        await self.close()

    async def close(self) -> None:
        """Ends every process of this generation, runs in flight included, and waits until they are gone."""
        if self._closed:
            return
        self._closed = True
        if self._bare is not None:
            await self._bare.close()
        if self._control is not None:
            self._control.close()
            await _gone_or_killed(self._pidfd)
            os.close(self._pidfd)
        await self._base.release()

    # -- Running ------------------------------------------------------------------------------------------------------

    async def fork(
        self, entry_point: str, execution_id: str, lease_seconds: float, bounds: Bounds, descriptors: tuple[int, ...]
    ) -> tuple[int, str]:
        """Makes a run's processes. Returns the supervisor's pidfd and how it started: `fork`, `fresh interpreter`.

        Raises NotForked; then no code of the flow has run.
        """
        request = {"execution_id": execution_id, "lease_seconds": lease_seconds, "bounds": asdict(bounds)}
        if self._unsafe and (self._base.is_unsafe or entry_point.partition(":")[0] in self._unsafe):
            bare = await self._bare_template()
            return await bare._ask_for_run(request, descriptors), "fresh interpreter"  # noqa: SLF001 - a template too
        return await self._ask_for_run(request, descriptors), "fork"

    def run_began(self) -> None:
        self._runs += 1
        self._no_runs.clear()

    def run_ended(self) -> None:
        self._runs -= 1
        if self._runs == 0:
            self._no_runs.set()

    async def _ask_for_run(self, request: dict[str, Any], descriptors: tuple[int, ...]) -> int:
        if self._closed or self._control is None:
            raise NotForked("the template is closed")
        try:
            async with self._fork_lock, asyncio.timeout(_FORK_SECONDS):
                await self._control.send(request, descriptors)
                reply = await self._control.receive()
        except (OSError, TimeoutError, wire.BrokenFrame) as error:
            raise NotForked(f"the template does not answer: {error or 'it is gone'}") from error
        if "error" in reply:
            raise NotForked(str(reply["error"]))
        return self._control.take_descriptor()

    async def _bare_template(self) -> Template:
        async with self._bare_lock:
            if self._bare is None:
                try:
                    self._bare = await self._begin_bare()
                except ProjectUnusable as error:
                    raise NotForked(str(error)) from error
            return self._bare

    async def _begin_bare(self) -> Template:
        bare = Template(await _Base.start(self._sources, preload=False), self._sources)
        try:
            await bare._load(())
        except BaseException:
            await bare.close()
            raise
        return bare

    # -- Describing ---------------------------------------------------------------------------------------------------

    async def describe(self) -> list[dict[str, Any]]:
        """What a look at the project's modules finds, as `registry` reads it; made in a fork of the base.

        When it returns, nothing is left that a module started; without namespaces, nothing that the sweep can find.
        Raises NotDescribed; then somebody else has to look.
        """
        if self._base.is_unsafe:
            raise NotDescribed("crewai starts threads when it is imported")
        sources = self._sources
        report = Report(sources.secrets, sources.storage)
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                order = description.order(sources.project, sources.import_seconds)
                pidfd = await self._base.fork_describer(order, theirs.fileno())
            try:
                # What was told before the time was over, or the describer was gone, counts.
                with contextlib.suppress(TimeoutError, ConnectionError):
                    async with asyncio.timeout(sources.import_seconds + description.SLACK_SECONDS):
                        await _read(ours, report)
            except ValueError as error:
                raise NotDescribed(f"what the describer says makes no sense: {error}") from error
            finally:
                await self._end_describer(pidfd, at_once=not report.is_whole)
        if not report.is_begun:
            raise NotDescribed("the describer ended without a word")
        return report.lines

    async def _end_describer(self, pidfd: int, *, at_once: bool) -> None:
        if at_once:
            # A namespace ends with its first process; a subreaper must live to sweep.
            number = signal.SIGKILL if self.isolation == namespace.NAMESPACE else signal.SIGTERM
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)
        await _gone_or_killed(pidfd)
        os.close(pidfd)

    # -- Loading ------------------------------------------------------------------------------------------------------

    async def _load(self, modules: Collection[str]) -> None:
        """Makes template after template until one has loaded all modules that leave it fit to be forked."""
        if self._base.is_unsafe:
            self._unsafe.update(modules)
        while True:
            wanted = [module for module in modules if module not in self._unsafe]
            spoilt, reason = await self._try_to_load(wanted)
            if spoilt is None:
                return
            self._unsafe.add(spoilt)
            self._warnings.append(
                f"module {spoilt} {reason}: its flows start in a fresh interpreter, which takes seconds. "
                "Move what it does at import into a function that the flow calls."
            )

    async def _try_to_load(self, modules: list[str]) -> tuple[str | None, str]:
        """None once the template is ready; else the module that spoilt it and what it did."""
        ours, theirs = socket.socketpair()
        control = _Channel(ours)
        with theirs:
            self.pid, self._pidfd = await self._base.fork_template(self._request(modules), theirs.fileno())
        current: str | None = None
        try:
            async with asyncio.timeout(self._sources.import_seconds):
                while True:
                    message = await control.receive()
                    if "environment" in message:
                        await control.send({"drop": self._forbidden(message["environment"])})
                    elif "loading" in message:
                        current = message["loading"]
                    elif "unsafe" in message:
                        reason = (
                            f"starts threads when it is imported ({', '.join(message['threads']) or 'native ones'})"
                        )
                        break
                    elif "ready" in message:
                        self._become_ready(control, message["ready"])
                        return None, ""
        except TimeoutError:
            reason = f"takes longer than {self._sources.import_seconds:g} s to import"
        except (OSError, wire.BrokenFrame):
            reason = "ends the interpreter when it is imported"
        control.close()
        await _gone_or_killed(self._pidfd, at_once=True)
        os.close(self._pidfd)
        if current is None:
            raise self._base.unusable(reason)
        return current, reason

    def _request(self, modules: list[str]) -> dict[str, Any]:
        project = self._sources.project
        return {
            "root": str(project.root),
            "import_paths": [str(path) for path in project.import_paths],
            "modules": modules,
            "watch": [str(path) for path in (*project.declarations, project.root / ".env")],
        }

    def _forbidden(self, environment: dict[str, str]) -> list[str]:
        # What the worker itself tells of the project shall not hold them either.
        redact.own().learn_all(environment)
        return interpreter.forbidden(environment, self._sources.secrets, self._sources.storage)

    def _become_ready(self, control: _Channel, facts: dict[str, Any]) -> None:
        self._control = control
        self._files = facts["files"]
        for module, error in facts["raised"].items():
            self._warnings.append(f"module {module} cannot be imported: {error}")


def _stamp(file: str) -> tuple[int, int] | None:
    try:
        facts = os.stat(file)  # noqa: PTH116 - every file of a project, several times a second
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size


class _Base:
    """The launcher and the base process, shared by the generations of a template."""

    def __init__(self, process: subprocess.Popen[bytes], control: _Channel, sources: _Sources) -> None:
        self._process = process
        self._control = control
        self._sources = sources
        self._users = 1
        self._lock = asyncio.Lock()
        self._asked = 0
        self._output: deque[bytes] = deque()
        self.isolation = ""
        self.crewai_version = ""
        self.python_version = ""
        self.site_packages: Path | None = None
        self.is_unsafe = False
        self.warnings: tuple[str, ...] = ()
        self._drain_output()

    @classmethod
    async def start(cls, sources: _Sources, *, preload: bool) -> _Base:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = _launch(sources, theirs.fileno(), preload=preload)
            except OSError as error:
                ours.close()
                raise _unusable(sources, f"{sources.project.python} does not start: {error}") from error
        base = cls(process, _Channel(ours), sources)
        try:
            async with asyncio.timeout(sources.import_seconds):
                base._introduce(await base._control.receive())
        except (TimeoutError, OSError, wire.BrokenFrame) as error:
            reason = "CrewAI takes too long to import" if isinstance(error, TimeoutError) else "the interpreter ended"
            await base.release()
            raise base.unusable(reason) from error
        except BaseException:
            await base.release()
            raise
        return base

    @property
    def is_gone(self) -> bool:
        return self._users == 0 or self._process.poll() is not None

    def shared(self) -> _Base:
        self._users += 1
        return self

    async def fork_template(self, request: dict[str, Any], channel: int) -> tuple[int, int]:
        """Returns the template's pid, as the base sees it, and its pidfd."""
        try:
            reply, pidfd = await self._ask({"template": request}, channel)
        except (OSError, TimeoutError, wire.BrokenFrame) as error:
            raise self.unusable("the base process does not answer") from error
        return int(reply["pid"]), pidfd

    async def fork_describer(self, order: dict[str, Any], channel: int) -> int:
        """Returns its pidfd. Raises NotDescribed."""
        try:
            return (await self._ask({"describe": order}, channel))[1]
        except (OSError, TimeoutError, wire.BrokenFrame) as error:
            raise NotDescribed(f"the base process does not answer: {error or 'it is gone'}") from error

    async def _ask(self, request: dict[str, Any], channel: int) -> tuple[dict[str, Any], int]:
        async with self._lock, asyncio.timeout(_FORK_SECONDS):
            self._asked += 1
            number = self._asked
            await self._control.send({**request, "number": number}, (channel,))
            while True:
                reply = await self._control.receive()
                pidfd = self._control.take_descriptor() if "pid" in reply else -1
                if reply["number"] == number:
                    break
                # Who asked for that one has stopped waiting; the process finds its channel closed, and ends.
                if pidfd >= 0:
                    os.close(pidfd)
        if "error" in reply:
            raise OSError(reply["error"])
        return reply, pidfd

    async def release(self) -> None:
        """The last user ends the processes."""
        self._users -= 1
        if self._users > 0:
            return
        self._control.close()
        # Once it was waited for, its number may be somebody else's.
        if self._process.poll() is None:
            pidfd = os.pidfd_open(self._process.pid)
            await _gone_or_killed(pidfd)
            os.close(pidfd)
        self._process.wait()
        assert self._process.stdout is not None
        asyncio.get_running_loop().remove_reader(self._process.stdout.fileno())
        self._keep_output()
        self._process.stdout.close()

    def unusable(self, reason: str) -> ProjectUnusable:
        said = b"".join(self._output).decode(errors="replace").strip()
        reason, said = map(redact.own().text, (reason, said))
        return _unusable(self._sources, reason + (f"\n{said[-2000:]}" if said else ""))

    def _introduce(self, facts: dict[str, Any]) -> None:
        if "error" in facts:
            raise self.unusable(f"CrewAI cannot be imported: {facts['error']}")
        self.isolation = facts["isolation"]
        self.crewai_version = facts["crewai"]
        self.python_version = facts["python"]
        self.site_packages = Path(facts["site_packages"]) if facts.get("site_packages") else None
        self.is_unsafe = facts["threads"] > 1
        if self.is_unsafe:
            self.warnings = (_CREWAI_STARTS_THREADS,)

    def _drain_output(self) -> None:
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        asyncio.get_running_loop().add_reader(self._process.stdout.fileno(), self._keep_output)

    def _keep_output(self) -> None:
        """What is printed at import: read so that nobody blocks, kept in part for the error message."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        with contextlib.suppress(OSError):
            data = os.read(descriptor, 65_536)
            if not data:
                asyncio.get_running_loop().remove_reader(descriptor)
            self._output.append(data[-_KEPT_OUTPUT:])
            while sum(map(len, self._output)) > 2 * _KEPT_OUTPUT:
                self._output.popleft()


def _unusable(sources: _Sources, reason: str) -> ProjectUnusable:
    return ProjectUnusable(
        str(sources.project.root), reason, "Is CrewAI installed for this interpreter? `--python` names another one."
    )


def _launch(sources: _Sources, control: int, *, preload: bool) -> subprocess.Popen[bytes]:
    hidden = json.dumps([str(path.absolute()) for path in sources.hidden])
    arguments = (str(control), str(os.getpid()), sources.isolation or "", "1" if preload else "0", hidden)
    environment = interpreter.environment(os.environ, sources.secrets, sources.storage)
    return subprocess.Popen(
        interpreter.command(sources.project.python, "template", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=sources.project.root,
        env={**environment, namespace.MARKER: namespace.NO_RUN},
        pass_fds=(control,),
        # Ctrl-C in a terminal is for the worker alone; it decides what becomes of its runs.
        start_new_session=True,
    )


@dataclass
class _Channel:
    """Frames and descriptors over a stream socket, without blocking the event loop."""

    socket: socket.socket
    _decoder: wire.Decoder = field(default_factory=wire.Decoder)
    _messages: deque[dict[str, Any]] = field(default_factory=deque)
    _descriptors: deque[int] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.socket.setblocking(False)  # noqa: FBT003 - the signature is the library's

    async def send(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        data = wire.pack(message)
        sent = socket.send_fds(self.socket, [data], list(descriptors)) if descriptors else 0
        await asyncio.get_running_loop().sock_sendall(self.socket, data[sent:])

    async def receive(self) -> dict[str, Any]:
        """The next message. Raises ConnectionResetError when the other side left."""
        while not self._messages:
            await readable(self.socket.fileno())
            data, descriptors, _, _ = socket.recv_fds(self.socket, 65_536, 8)
            self._descriptors.extend(descriptors)
            if not data:
                raise ConnectionResetError("it is gone")
            self._messages.extend(self._decoder.feed(data))
        return self._messages.popleft()

    def take_descriptor(self) -> int:
        return self._descriptors.popleft()

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popleft())
        self.socket.close()


async def readable(descriptor: int) -> None:
    """Waits until there is something to read, or for a pidfd: until the process ended."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


async def _read(channel: socket.socket, report: Report) -> None:
    """Until the report is whole or the other side left."""
    loop = asyncio.get_running_loop()
    channel.setblocking(False)  # noqa: FBT003 - the signature is the library's
    while not report.is_whole and (data := await loop.sock_recv(channel, _READ_BYTES)):
        if answer := report.feed(data):
            await loop.sock_sendall(channel, answer)


async def _gone_or_killed(pidfd: int, *, at_once: bool = False) -> None:
    """Waits for a process that was told to end, and makes it when it does not."""
    for patience in (0.0 if at_once else _CLOSE_SECONDS, _CLOSE_SECONDS):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                return await readable(pidfd)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    return None
