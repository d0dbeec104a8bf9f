"""Exit codes, and the one place where errors become words on a terminal.

0 done · 1 failed · 2 usage · 3 execution failed · 4 not permitted · 5 not found · 6 cancelled · 7 timeout ·
8 stopped waiting · 130 interrupted
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from enum import IntEnum

from rich.console import Console
from rich.text import Text

from flowledger.domain.status import Status
from flowledger.errors import (
    AmbiguousReference,
    BudgetNotFound,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionNotFound,
    ExecutionTimedOut,
    FlowledgerError,
    FlowNotFound,
    InvalidInput,
    NotAuthenticated,
    OriginRefused,
    PermissionRefused,
    PriceNotFound,
    ProjectNotFound,
    ScopeRefused,
    StoppedWaiting,
    TokenNotFound,
)


class Exit(IntEnum):
    DONE = 0
    ERROR = 1
    USAGE = 2
    FAILED = 3
    NOT_PERMITTED = 4
    NOT_FOUND = 5
    CANCELLED = 6
    TIMEOUT = 7
    STOPPED_WAITING = 8
    INTERRUPTED = 130


OUTCOMES = {
    Status.COMPLETED: Exit.DONE,
    Status.FAILED: Exit.FAILED,
    Status.CANCELLED: Exit.CANCELLED,
    Status.TIMEOUT: Exit.TIMEOUT,
}

_ERRORS: tuple[tuple[tuple[type[FlowledgerError], ...], Exit], ...] = (
    (
        (
            FlowNotFound,
            ExecutionNotFound,
            AmbiguousReference,
            BudgetNotFound,
            PriceNotFound,
            ProjectNotFound,
            TokenNotFound,
        ),
        Exit.NOT_FOUND,
    ),
    ((PermissionRefused, NotAuthenticated, ScopeRefused, OriginRefused), Exit.NOT_PERMITTED),
    ((InvalidInput,), Exit.USAGE),
    ((ExecutionFailed,), Exit.FAILED),
    ((ExecutionCancelled,), Exit.CANCELLED),
    ((ExecutionTimedOut,), Exit.TIMEOUT),
    ((StoppedWaiting,), Exit.STOPPED_WAITING),
)


def report(error: Exception) -> int:
    """Writes the error to stderr and gives its exit code. FLOWLEDGER_DEBUG=1 adds the traceback."""
    if os.environ.get("FLOWLEDGER_DEBUG"):
        traceback.print_exception(error)
    if "--json" in sys.argv:
        _write_json(error)
    else:
        _write(error)
    for kinds, code in _ERRORS:
        if isinstance(error, kinds):
            return code
    return Exit.ERROR


def _write(error: Exception) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if isinstance(error, FlowledgerError):
        console.print(Text.assemble(("error  ", "bold red"), error.title))
        if error.hint:
            console.print(Text.assemble(("       ", ""), (error.hint, "dim")))
        return
    console.print(Text.assemble(("error  ", "bold red"), f"{type(error).__name__}: {error}"))
    console.print(Text("       This is a fault of flowledger's. FLOWLEDGER_DEBUG=1 shows where it happened.", "dim"))


def _write_json(error: Exception) -> None:
    told = isinstance(error, FlowledgerError)
    body = {
        "code": error.code if told else "internal",  # type: ignore[attr-defined]
        "message": error.title if told else f"{type(error).__name__}: {error}",  # type: ignore[attr-defined]
        "hint": error.hint if told else "",  # type: ignore[attr-defined]
    }
    sys.stderr.write(json.dumps({"error": body}) + "\n")
