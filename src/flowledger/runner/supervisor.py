"""A run's supervisor: the first process of a run, parent of the flow's child, and the end of everything below it.

It holds no flow code and no connection. It reaps orphans, listens to the worker (a byte per wish), keeps a watchdog
that ends the run when the worker is silent for a lease or the run takes more than it may, and reports how it ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from flowledger.runner import namespace
from flowledger.runner.bounds import Bounds, Excess, Meter, processes_beside

TICK, TERMINATE, KILL = b".", b"T", b"K"
"""What the worker says: a lease was renewed; SIGTERM to all processes of the run; SIGKILL to them."""

CHILD_ENDED, LEASE_EXPIRED, NO_CHILD, MEMORY_EXCEEDED, PROCESSES_EXCEEDED = 1, 2, 3, 4, 5
REPORT = struct.Struct("<Biqq")
"""What the supervisor says: one of the above, the child's wait status, the run's peak memory in bytes, its number of
processes (0: not counted).
"""

_SIGNALS = {signal.SIGCHLD, signal.SIGTERM}
_LONGEST_SLEEP_SECONDS = 5.0
_SWEEP_SECONDS = 5.0


def supervise(
    worker: socket.socket, isolation: str, lease_seconds: float, bounds: Bounds, flow: Callable[[], NoReturn]
) -> NoReturn:
    """Runs `flow` in a child and stays until nothing of the run is left. Called in the run's first process."""
    code = 1
    try:
        _isolate(isolation, bounds)
        signals = namespace.signal_descriptor(_SIGNALS)
        child = os.fork()
        if child == 0:
            _become_child(worker, signals, isolation, bounds)
            flow()
        _close_all_but(worker.fileno(), signals)
        meter = Meter(bounds, lambda: processes_beside(os.getpid(), isolation))
        _Watch(worker, signals, child, lease_seconds, isolation, meter).until_ended()
        code = 0
    except BaseException:
        with contextlib.suppress(OSError):
            worker.send(REPORT.pack(NO_CHILD, 0, 0, 0), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    finally:
        if isolation == namespace.SUBREAPER:
            _sweep()
        os._exit(code)


def _isolate(isolation: str, bounds: Bounds) -> None:
    if isolation == namespace.NAMESPACE:
        namespace.die_with_parent(signal.SIGKILL)
        namespace.become_init()
        bounds.limit_pids()
    else:
        namespace.die_with_parent(signal.SIGTERM)
        namespace.become_subreaper()


def _become_child(worker: socket.socket, signals: int, isolation: str, bounds: Bounds) -> None:
    worker.close()
    os.close(signals)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    os.setsid()
    namespace.rename_process(os.path.basename(sys.executable))  # noqa: PTH119 - no other use of paths here
    namespace.offer_to_memory_killer()
    bounds.limit_files()
    if isolation == namespace.NAMESPACE:
        namespace.drop_namespace_capabilities()
    namespace.die_with_parent(signal.SIGKILL)


def _close_all_but(*kept: int) -> None:
    previous = 2
    for descriptor in sorted(kept):
        os.closerange(previous + 1, descriptor)
        previous = descriptor
    os.closerange(previous + 1, 1024)


class _Watch:
    def __init__(
        self,
        worker: socket.socket,
        signals: int,
        child: int,
        lease_seconds: float,
        isolation: str,
        meter: Meter,
    ) -> None:
        self._worker = worker
        self._signals = signals
        self._child = child
        self._lease_seconds = lease_seconds
        self._isolation = isolation
        self._meter = meter
        self._last_tick = _now()

    def until_ended(self) -> None:
        poll = select.poll()
        poll.register(self._worker, select.POLLIN)
        poll.register(self._signals, select.POLLIN)
        while True:
            silence = _now() - self._last_tick
            if silence >= self._lease_seconds:
                return self._report(LEASE_EXPIRED)
            if (excess := self._meter.look()) is not None:
                return self._report_excess(excess)
            sleep = min(self._lease_seconds - silence, self._meter.seconds_to_next_look, _LONGEST_SLEEP_SECONDS)
            ready = dict(poll.poll(sleep * 1000 + 1))
            if self._worker.fileno() in ready and not self._obey():
                return None
            if self._signals in ready and not self._reap():
                return None

    def _obey(self) -> bool:
        """False when the run is to end now: the worker says so, or is gone."""
        wishes = self._worker.recv(512)
        if not wishes or KILL in wishes:
            return False
        if TICK in wishes:
            self._last_tick = _now()
        if TERMINATE in wishes:
            self._terminate()
        return True

    def _terminate(self) -> None:
        if self._isolation == namespace.NAMESPACE:
            with contextlib.suppress(OSError):
                os.kill(-1, signal.SIGTERM)
            return
        _signal_all(signal.SIGTERM)

    def _reap(self) -> bool:
        """False when the run is to end now: the child ended, or our own parent did."""
        if _terminated(os.read(self._signals, 128 * 16)):
            return False
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._child:
                self._report(CHILD_ENDED, status, max(usage.ru_maxrss * 1024, self._meter.peak_memory_bytes))
                return False

    def _report_excess(self, excess: Excess) -> None:
        if excess.memory_bytes is not None:
            self._report(MEMORY_EXCEEDED, peak=excess.memory_bytes)
        else:
            self._report(PROCESSES_EXCEEDED, processes=excess.processes or 0)

    def _report(self, fact: int, status: int = 0, peak: int = 0, processes: int = 0) -> None:
        with contextlib.suppress(OSError):
            self._worker.send(REPORT.pack(fact, status, peak, processes), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _terminated(records: bytes) -> bool:
    """`struct signalfd_siginfo` is 128 bytes long and opens with the signal's number."""
    numbers = (int.from_bytes(records[at : at + 4], "little") for at in range(0, len(records), 128))
    return any(number == signal.SIGTERM for number in numbers)


def _now() -> float:
    # Counts while the machine is suspended, as the lease in the database does.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _sweep() -> None:
    """Without a PID namespace: kills every descendant, and those that they make meanwhile.

    At once, as the end of a PID namespace does; who may stop in peace was sent SIGTERM by the worker before. A look at
    /proc is no single moment and may miss one that is orphaned meanwhile; but to have no child is to have no
    descendant, as orphans become ours.
    """
    begun = _now()
    while _now() - begun < _SWEEP_SECONDS:
        _signal_all(signal.SIGKILL)
        if not _has_children():
            return
        time.sleep(0.01)


def _has_children() -> bool:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _signal_all(number: signal.Signals) -> None:
    for pid in namespace.descendants(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(pid, number)
