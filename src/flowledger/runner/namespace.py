"""The kernel calls that keep a run's processes together: namespaces, parents' death signals, subreapers, the marker.

Only system calls and the file system of /proc; who makes which process is decided in `template.py` and `supervisor.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path

NAMESPACE = "namespace"
SUBREAPER = "subreaper"

MARKER = "FLOWLEDGER_RUN"
"""Environment variable that every process of a run carries, its execution's id as the value."""
NO_RUN = "0" * 36
SUPERVISOR_NAME = "fl-supervisor"
"""Process name of a run's supervisor: by it a later worker tells living runs from leftovers."""

_NEW_MOUNTS, _NEW_USER, _NEW_PIDS = 0x20000, 0x10000000, 0x20000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 1, 2, 4, 8, 0x4000, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(with_signal: signal.Signals) -> None:
    """Sends this process `with_signal` when the thread that made it ends. Changes of credentials clear it."""
    _call("prctl", _PR_SET_PDEATHSIG, int(with_signal), 0, 0, 0)


def become_subreaper() -> None:
    """Orphaned descendants become children of this process, not of init."""
    _call("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def offer_to_memory_killer() -> None:
    """When the machine runs out of memory, a run goes before the worker, the database and the rest of the system."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("500")


def rename_process(name: str) -> None:
    _call("prctl", _PR_SET_NAME, ctypes.c_char_p(name.encode()), 0, 0, 0)


def is_available() -> bool:
    """True if this kernel and this user may nest PID and mount namespaces as a run needs them. Leaves no trace."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if _rehearse() else 1)
    return os.waitpid(pid, 0)[1] == 0


def _rehearse() -> bool:
    with contextlib.suppress(OSError):
        enter()
        return _succeeds_in_child(_rehearse_base)
    return False


def _rehearse_base() -> None:
    mount_own_proc()
    home = os.open("/proc/self/ns/pid", os.O_RDONLY)
    give_next_child_its_own_pids()
    if not _succeeds_in_child(become_init):
        raise OSError("a run's namespaces cannot be made")
    return_to(home)


def _succeeds_in_child(action: Callable[[], None]) -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def enter() -> None:
    """Enters a new mount namespace, without root a user namespace too; the next child is pid 1 of its own."""
    try:
        _call("unshare", _NEW_MOUNTS | _NEW_PIDS)
    except PermissionError:
        _enter_as_ordinary_user()
    _call("mount", b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)


def _enter_as_ordinary_user() -> None:
    user, group = os.geteuid(), os.getegid()
    _call("unshare", _NEW_USER | _NEW_MOUNTS | _NEW_PIDS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def give_next_child_its_own_pids() -> None:
    _call("unshare", _NEW_PIDS)


def return_to(pid_namespace: int) -> None:
    """Undoes `give_next_child_its_own_pids`: later children are born in the namespace behind this descriptor."""
    _call("setns", pid_namespace, _NEW_PIDS)


def become_init() -> None:
    """For pid 1 of a run: its own mounts, and a /proc that shows only the run."""
    _call("unshare", _NEW_MOUNTS)
    mount_own_proc()


def mount_own_proc() -> None:
    _call("mount", b"proc", b"/proc", b"proc", ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC), None)


def hide(directory: str) -> None:
    """Lays an empty file system over a directory, in this mount namespace only."""
    if os.path.isdir(directory):  # noqa: PTH112 - this process imports as little as it can
        flags = ctypes.c_ulong(_MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
        _call("mount", b"none", os.fsencode(directory), b"tmpfs", flags, b"size=4k")


def drop_namespace_capabilities() -> None:
    """Takes back what a user namespace granted, so that flow code has no more rights than its user."""
    if os.geteuid() == 0:
        return
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())


class Marker:
    """Writes an execution's id over the placeholder in this process's original environment.

    /proc/<pid>/environ shows the memory that exec filled, which setenv never touches; without this a process that was
    forked and never exec'd would carry no mark.
    """

    def __init__(self) -> None:
        content = Path("/proc/self/environ").read_bytes()
        placeholder = content.find(f"{MARKER}={NO_RUN}".encode())
        # Field 50 of stat: where the environment begins. The command name before it may hold spaces.
        start = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[47])
        self._address = start + placeholder + len(MARKER) + 1 if placeholder >= 0 and start else None

    def write(self, execution_id: str) -> None:
        if self._address is not None and len(execution_id) == len(NO_RUN):
            ctypes.memmove(self._address, execution_id.encode(), len(NO_RUN))


def signal_descriptor(signals: set[signal.Signals]) -> int:
    """Blocks `signals` and returns a descriptor that reads them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    mask = (ctypes.c_uint64 * 16)()
    for number in signals:
        mask[0] |= 1 << (number - 1)
    return int(_call("signalfd", -1, mask, os.O_CLOEXEC | os.O_NONBLOCK))


def descendants(ancestor: int) -> list[int]:
    """Every living process below `ancestor`, zombies left out."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names only, thousands of times
        if entry.isdigit() and (family := _family(entry)) is not None:
            children.setdefault(family, []).append(int(entry))
    found, queue = [], [ancestor]
    while queue:
        for pid in children.get(queue.pop(), ()):
            found.append(pid)
            queue.append(pid)
    return found


def children_of_children(ancestor: int) -> list[int]:
    """The same without looking at the whole machine; one that is born or orphaned meanwhile may be missed."""
    found, queue = [], [ancestor]
    while queue:
        for pid in _children(queue.pop()):
            found.append(pid)
            queue.append(pid)
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
            with (
                contextlib.suppress(OSError),
                open(f"/proc/{pid}/task/{thread}/children", "rb") as file,  # noqa: PTH123
            ):
                children += map(int, file.read().split())
    return children


def _family(pid: str) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123 - no Path objects in a hot loop
            state, parent = stat.read().rpartition(b")")[2].split()[:2]
    except OSError:
        return None
    return None if state in b"ZX" else int(parent)


def _call(name: str, *arguments: object) -> int:
    result = int(getattr(_libc, name)(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
