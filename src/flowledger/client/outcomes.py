"""How an execution ended, for whoever wants it completed."""

from __future__ import annotations

from typing import TypeVar

from flowledger.domain.execution import Execution
from flowledger.domain.status import Status
from flowledger.errors import ExecutionCancelled, ExecutionFailed, ExecutionTimedOut, NotCompleted

Ended = TypeVar("Ended", bound=Execution)

_OTHERWISE: dict[Status, type[NotCompleted]] = {
    Status.FAILED: ExecutionFailed,
    Status.CANCELLED: ExecutionCancelled,
    Status.TIMEOUT: ExecutionTimedOut,
}


def completed(execution: Ended) -> Ended:
    """The same execution. Raises ExecutionFailed, ExecutionCancelled, ExecutionTimedOut."""
    if execution.status in _OTHERWISE:
        raise _OTHERWISE[execution.status](execution)
    return execution
