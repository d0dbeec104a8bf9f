"""One execution, from the order to its outcome: ask the template for a child, read what it says, end it, reap.

`run` is the only way in. It needs no database and raises for nothing that a flow does.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from flowledger.domain.execution import JsonObject, Outcome
from flowledger.domain.status import Status
from flowledger.domain.timeline import Event, EventKind
from flowledger.domain.usage import CallStatus
from flowledger.prices import Prices
from flowledger.runner import namespace, supervisor, wire
from flowledger.runner.account import Account
from flowledger.runner.bounds import Bounds
from flowledger.runner.kept import BoundedLog, BoundedTimeline, Recorder
from flowledger.runner.limits import Decision, ErrorType, Limits, Stop
from flowledger.runner.outcome import Evidence, conclude
from flowledger.runner.templates import NotForked, Template, readable

__all__ = ["Order", "Recorder", "Template", "run", "sweep_leftovers"]

_READ_BYTES = 1 << 18
_PIPE_BYTES = 1 << 18
_LEAVE_SECONDS = 4.0
"""A child that has reported gets this long to go; its own limit is half of it."""
_KILLED_SECONDS = 2.0
_LAST_READS = 64
_MOST_SWEEPS = 100
_EXCEEDED = {
    supervisor.MEMORY_EXCEEDED: ErrorType.MEMORY_LIMIT,
    supervisor.PROCESSES_EXCEEDED: ErrorType.PROCESS_LIMIT,
}


@dataclass(frozen=True)
class Order:
    """What is to be run. `entry_point` is `module:Class` or the path of a YAML file, relative to the project's root.

    `timeout_seconds` counts from the fork, `grace_seconds` is the time between asking a flow to stop and SIGKILL,
    `lease_seconds` how long the run's processes live without a tick from the worker. A run whose processes together
    take more than `memory_bytes`, or are more than `processes`, is killed; `open_files` is each process's own limit.
    None means: no limit. Of prompts, answers and outputs the first `preview_characters` are kept; 0: none of them.
    """

    execution_id: UUID
    flow_key: str
    entry_point: str
    inputs: JsonObject
    timeout_seconds: float
    max_output_bytes: int
    max_log_bytes: int
    max_events: int
    grace_seconds: float
    lease_seconds: float
    memory_bytes: int | None = None
    processes: int | None = None
    open_files: int | None = None
    preview_characters: int = 500

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.memory_bytes, self.processes, self.open_files)


async def run(
    template: Template, order: Order, limits: Limits, recorder: Recorder, account: Account | None = None
) -> Outcome:
    """Runs one flow to its end. When this returns, no process of the run is left.

    `account` None: no budget is kept and no price known.
    """
    evidence = Evidence(template.isolation, "fork", template.crewai_version, template.python_version, order.bounds)
    account = account or Account(Prices(), recorder.call, limits)
    if limits.decision is not None:
        return conclude(evidence, limits.decision, account)
    template.run_began()
    process = _Process(order, evidence, recorder, account)
    try:
        await process.start(template)
        if limits.may_start():
            await process.send_order(template)
        limits.feed(process.tick)
        process.watch()
        decision = await _wait_for_end_or_decision(process, order, limits)
        if decision is not None:
            await _stop(process, order, decision)
        process.collect()
        return conclude(evidence, decision, account)
    except NotForked as error:
        message = f"{error}. The flow's code did not run."
        return Outcome(Status.FAILED, error_type=ErrorType.PROCESS_NOT_STARTED, error_message=message)
    finally:
        limits.feed(None)
        process.close()
        template.run_ended()


async def _wait_for_end_or_decision(process: _Process, order: Order, limits: Limits) -> Decision | None:
    """None when the run ended by itself. A flow that has reported is only waited for, whatever is decided later.

    What was decided before is another thing: it may have reported because of that, and before anybody here woke up.
    """
    async with asyncio.TaskGroup() as group:
        waits = {group.create_task(wait) for wait in (process.gone(), process.reported(), limits.decided())}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(order.timeout_seconds):
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
    process.read_frames()
    if not process.has_reported and not process.is_gone:
        if limits.decision is None:
            limits.expire(order.timeout_seconds)
        return limits.decision
    if not await process.is_gone_within(0 if _is_lost(limits) else _LEAVE_SECONDS):
        await process.kill()
    # What the flow reported is how it ended. Whether it still counts when the lease is lost, its fence decides.
    return limits.decision if process.was_told_to_end else None


def _is_lost(limits: Limits) -> bool:
    return limits.decision is not None and limits.decision.stop is Stop.LOST


async def _stop(process: _Process, order: Order, decision: Decision) -> None:
    """Ask, SIGTERM, SIGKILL; each as soon as the one before had its time."""
    if decision.stop is not Stop.LOST:
        process.ask_to_stop(decision.reason)
        if await process.is_gone_within(order.grace_seconds / 2):
            return
        process.terminate()
        if await process.is_gone_within(order.grace_seconds / 2):
            return
    await process.kill()


class _Process:
    """The processes of one run, seen from the worker."""

    def __init__(self, order: Order, evidence: Evidence, recorder: Recorder, account: Account) -> None:
        self._order = order
        self._evidence = evidence
        self._recorder = recorder
        self._account = account
        self._answering: set[asyncio.Task[None]] = set()
        self._decoder = wire.Decoder()
        self._reported = asyncio.Event()
        self._readers: set[int] = set()
        self._handed_over_at = 0
        self._pidfd = -1
        self._frames = -1
        self._logs: dict[int, BoundedLog] = {}
        self._timeline = BoundedTimeline(order.max_events, recorder)
        self._descriptors: list[int] = []
        self._supervisor: socket.socket | None = None
        self._control: socket.socket | None = None

    # -- Start --------------------------------------------------------------------------------------------------------

    async def start(self, template: Template) -> None:
        order = self._order
        self._handed_over_at = time.monotonic_ns()
        supervisor_end, control_end = self._open_sockets()
        pipes = [self._open_pipe() for _ in range(3)]
        self._frames = pipes[0][0]
        for stream, (reading, _) in zip(("stdout", "stderr"), pipes[1:], strict=True):
            self._logs[reading] = BoundedLog(stream, order.max_log_bytes, self._recorder)
        theirs = (supervisor_end.fileno(), control_end.fileno(), *(writing for _, writing in pipes))
        try:
            self._pidfd, self._evidence.start = await template.fork(
                order.entry_point, str(order.execution_id), order.lease_seconds, order.bounds, theirs
            )
        finally:
            supervisor_end.close()
            control_end.close()
            for _, writing in pipes:
                os.close(writing)

    def _open_sockets(self) -> tuple[socket.socket, socket.socket]:
        self._supervisor, supervisor_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control, control_end = socket.socketpair()
        self._supervisor.setblocking(False)  # noqa: FBT003 - the signature is the library's
        self._control.setblocking(False)  # noqa: FBT003
        return supervisor_end, control_end

    def _open_pipe(self) -> tuple[int, int]:
        reading, writing = os.pipe()
        self._descriptors.append(reading)
        os.set_blocking(reading, False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return reading, writing

    async def send_order(self, template: Template) -> None:
        order, project = self._order, template.project
        entry = order.entry_point
        message = {
            "execution_id": str(order.execution_id),
            "entry_point": str(project.root / entry) if entry.endswith((".yaml", ".yml")) else entry,
            "inputs": order.inputs,
            "max_output_bytes": order.max_output_bytes,
            "max_events": order.max_events,
            "preview_characters": order.preview_characters,
            "asks": self._account.asks,
            "roots": [f"{path}/" for path in {project.root, *project.import_paths}],
        }
        assert self._control is not None
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(self._control, wire.pack(message))

    # -- Watch --------------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        self._read_with(self._frames, self.read_frames)
        for descriptor, log in self._logs.items():
            self._read_with(descriptor, partial(self._read_log, descriptor, log))

    def _read_with(self, descriptor: int, callback: Callable[[], object]) -> None:
        asyncio.get_running_loop().add_reader(descriptor, callback)
        self._readers.add(descriptor)

    def read_frames(self) -> bool:
        """True if there was something to read."""
        data = self._read(self._frames)
        if not data or self._evidence.frames_broken:
            return bool(data)
        try:
            for message in self._decoder.feed(data):
                self._take(message)
        except (wire.BrokenFrame, KeyError, TypeError, ValueError):
            self._evidence.frames_broken = True
        return True

    def _read_log(self, descriptor: int, log: BoundedLog) -> bool:
        data = self._read(descriptor)
        if data:
            log.take(data)
        return bool(data)

    def _read(self, descriptor: int) -> bytes:
        try:
            data = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            self._stop_reading(descriptor)
        return data

    def _stop_reading(self, descriptor: int) -> None:
        if descriptor in self._readers:
            self._readers.discard(descriptor)
            asyncio.get_running_loop().remove_reader(descriptor)

    def _take(self, message: dict[str, Any]) -> None:
        match message["kind"]:
            case "event":
                self._take_event(message)
            case "ask":
                self._answer(message)
            case "counted":
                self._timeline.count_to(message["n"])
            case "began" if self._evidence.began_after_ms is None:
                self._evidence.began_after_ms = max(0, message["at"] - self._handed_over_at) // 1_000_000
            case "state":
                self._evidence.state_so_far = message
            case "result" | "error" if self._evidence.report is None:
                self._evidence.report = message
                self._evidence.refused_before = self._account.refusal
                self._timeline.count_to(message.get("events", 0))
                self._reported.set()

    def _take_event(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(ValueError):
            event = Event(
                message["n"],
                datetime.fromtimestamp(message["at"], UTC),
                EventKind(message["event"]),
                message["name"],
                message["fields"],
                message.get("parent"),
                message.get("began"),
            )
            kept = self._timeline.take(event)
            match event.kind:
                case EventKind.LLM_STARTED:
                    self._account.begun(event, kept=kept)
                case EventKind.LLM_COMPLETED:
                    self._account.ended(event, CallStatus.COMPLETED)
                case EventKind.LLM_FAILED:
                    # What the flow gave up may have been billed all the same.
                    gave_up = event.fields.get("abandoned") is True
                    self._account.ended(event, CallStatus.UNKNOWN if gave_up else CallStatus.FAILED)
                case EventKind.METHOD_FAILED:
                    self._evidence.failed_steps[event.name] += 1

    def _answer(self, question: dict[str, Any]) -> None:
        task = asyncio.create_task(self._ask_account(question))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _ask_account(self, question: dict[str, Any]) -> None:
        """A question that nobody can answer is answered with no: the flow must not wait for ever."""
        try:
            answer = await self._account.ask(question)
        except Exception as fault:
            reason = f"whether there is room for this call cannot be found out: {type(fault).__name__}: {fault}"
            answer = {"answer": question["call"], "verdict": "stop", "reason": reason}
        self._tell_child(answer)

    # -- Decide and stop ----------------------------------------------------------------------------------------------

    @property
    def has_reported(self) -> bool:
        return self._reported.is_set()

    @property
    def was_told_to_end(self) -> bool:
        """The flow's report is an answer to our wish: it says so itself, or a call of its was refused before."""
        evidence = self._evidence
        return evidence.refused_before is not None or bool(evidence.report and evidence.report.get("stopped"))

    @property
    def is_gone(self) -> bool:
        # Not select(): a worker with many slots has descriptors beyond its 1,024.
        ended = select.poll()
        ended.register(self._pidfd, select.POLLIN)
        return bool(ended.poll(0))

    async def gone(self) -> None:
        await readable(self._pidfd)

    async def reported(self) -> None:
        await self._reported.wait()

    async def is_gone_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.gone()
        return self.is_gone

    def tick(self) -> None:
        self._tell(supervisor.TICK)

    def ask_to_stop(self, reason: str) -> None:
        self._tell_child({"stop": reason[:1000]})

    def _tell_child(self, message: dict[str, Any]) -> None:
        assert self._control is not None
        with contextlib.suppress(OSError):
            self._control.send(wire.pack(message), socket.MSG_NOSIGNAL)

    def terminate(self) -> None:
        self._tell(supervisor.TERMINATE)

    async def kill(self) -> None:
        """In a namespace the supervisor's death is everybody's; without one it has to sweep first."""
        if self._evidence.isolation == namespace.SUBREAPER:
            self._tell(supervisor.KILL)
            if await self.is_gone_within(_KILLED_SECONDS):
                return
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._evidence.unkillable = not await self.is_gone_within(_KILLED_SECONDS)
        if self._evidence.isolation == namespace.SUBREAPER:
            await _sweep_until_none_is_left()

    def _tell(self, wish: bytes) -> None:
        assert self._supervisor is not None
        with contextlib.suppress(OSError):
            self._supervisor.send(wish, socket.MSG_NOSIGNAL)

    # -- Reap ---------------------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Everything the run left in its channels; who may still hold the other end is not waited for."""
        self._drain(self.read_frames)
        for descriptor, log in self._logs.items():
            self._drain(partial(self._read_log, descriptor, log))
            self._evidence.dropped_log_bytes += log.finish()
        self._evidence.dropped_events = self._timeline.finish()
        self._account.close()
        self._read_report()

    def _drain(self, read: Callable[[], bool]) -> None:
        for _ in range(_LAST_READS):
            if not read():
                return

    def _read_report(self) -> None:
        assert self._supervisor is not None
        # Who leaves with a tick unread is told as a reset connection, once, before its report can be read.
        for _ in range(2):
            with contextlib.suppress(OSError):
                report = self._supervisor.recv(supervisor.REPORT.size)
                if len(report) == supervisor.REPORT.size:
                    self._believe(*supervisor.REPORT.unpack(report))
                return

    def _believe(self, fact: int, status: int, peak: int, processes: int) -> None:
        evidence = self._evidence
        evidence.lease_expired = fact == supervisor.LEASE_EXPIRED
        evidence.exceeded = _EXCEEDED.get(fact)
        evidence.peak_memory_bytes, evidence.peak_processes = peak or None, processes or None
        if fact == supervisor.CHILD_ENDED:
            evidence.wait_status = status

    def close(self) -> None:
        """Lets go of everything; a run that is still alive dies of it."""
        for task in self._answering:
            task.cancel()
        if self._pidfd >= 0:
            with contextlib.suppress(OSError):
                if self._evidence.isolation == namespace.NAMESPACE:
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        for descriptor in list(self._readers):
            self._stop_reading(descriptor)
        for end in (self._supervisor, self._control):
            if end is not None:
                end.close()
        for descriptor in (*self._descriptors, self._pidfd):
            if descriptor >= 0:
                os.close(descriptor)


async def _sweep_until_none_is_left() -> None:
    """One look is not enough for those that go on forking meanwhile."""
    for _ in range(_MOST_SWEEPS):
        if not sweep_leftovers():
            return
        await asyncio.sleep(0.02)


def sweep_leftovers() -> int:
    """Kills processes of runs whose supervisor is gone; returns how many. For a worker's start without namespaces.

    Runs of other workers on this machine are left alone: their supervisors live.
    """
    runs: dict[str, list[int]] = {}
    supervised: set[str] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (run_id := _run_of(entry)):
            runs.setdefault(run_id, []).append(int(entry.name))
            if _name_of(entry) == namespace.SUPERVISOR_NAME:
                supervised.add(run_id)
    leftovers = [pid for run_id, pids in runs.items() if run_id not in supervised for pid in pids]
    for pid in leftovers:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return len(leftovers)


def _name_of(process: Path) -> str | None:
    with contextlib.suppress(OSError):
        return (process / "comm").read_text().strip()
    return None


def _run_of(process: Path) -> str | None:
    prefix = f"{namespace.MARKER}=".encode()
    with contextlib.suppress(OSError):
        for variable in (process / "environ").read_bytes().split(b"\0"):
            if variable.startswith(prefix):
                run_id = variable[len(prefix) :].decode(errors="replace")
                return None if run_id == namespace.NO_RUN else run_id
    return None
