"""What commands ask for, wherever the ledger is: in a database that is reached from here, or behind a server.

Both answer with the same, so that an action is written once. `opening.desk` chooses.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol
from uuid import UUID

from flowledger.domain.dimension import Dimension
from flowledger.domain.execution import Execution, NewExecution, Rerun, Transition
from flowledger.domain.mode import Mode
from flowledger.domain.status import Status
from flowledger.domain.timeline import Event, LogLine
from flowledger.domain.usage import PricedCall, Repricing
from flowledger.ledger.failures import Failures
from flowledger.ledger.flows import FlowStatus, KnownFlow
from flowledger.ledger.spending import Days, Estimate, Spent


@dataclass(frozen=True)
class Wanted:
    """Which executions; None takes all. `by` is a user's id, or `me`."""

    statuses: tuple[Status, ...] | None = None
    flow_key: str | None = None
    mode: Mode | None = None
    since: datetime | None = None
    until: datetime | None = None
    meeting: UUID | None = None
    by: UUID | Literal["me"] | None = None


@dataclass(frozen=True)
class Page:
    """`next` is the `after` of the page that follows; None: there is none."""

    executions: Sequence[Execution]
    next: str | None


@dataclass(frozen=True)
class Inside:
    """An execution and what belongs to it, as far as it was asked for."""

    execution: Execution
    transitions: Sequence[Transition]
    links: Sequence[Rerun]
    events: Sequence[Event]
    calls: Sequence[PricedCall]
    repricings: Sequence[Repricing]

    @property
    def repeats(self) -> Rerun | None:
        return next((link for link in self.links if link.execution_id == self.execution.id), None)

    @property
    def repeated_by(self) -> list[Rerun]:
        return [link for link in self.links if link.of_execution == self.execution.id]


@dataclass(frozen=True)
class Look:
    """How an execution is now, and what is new of it. `calls` are all of them, or none if nothing is new."""

    execution: Execution
    events: Sequence[Event]
    calls: Sequence[PricedCall]


class Desk(Protocol):
    """Where to ask. What is not there, or not the caller's to see, raises ExecutionNotFound or FlowNotFound."""

    async def find(self, reference: str) -> Execution:
        """By id, unique prefix, or key. Raises AmbiguousReference."""
        ...

    async def page(self, wanted: Wanted, *, limit: int, after: str | None = None) -> Page:
        """Executions, newest first."""
        ...

    async def inside(self, execution: UUID, *, transitions: bool, events: bool, calls: bool) -> Inside: ...

    async def logs(self, execution: UUID, *, after: int) -> Sequence[LogLine]: ...

    async def look(self, execution: UUID, *, after: int) -> Look:
        """The execution, and its events with a sequence number above `after`."""
        ...

    def nudges(self, execution: UUID, patience: float | None) -> AsyncGenerator[object]:
        """When to look: at once, whenever there may be something new, and for the last time after `patience` seconds;
        None: for ever.
        """
        ...

    async def cancel(self, execution: UUID, reason: str | None) -> str:
        """`cancelled`, `wished` or `ended`."""
        ...

    async def flow(self, name: str) -> KnownFlow:
        """An active flow by key, class name, display name or entry point. Raises FlowNotFound."""
        ...

    async def estimate(self, flow: KnownFlow) -> Estimate:
        """What a run is likely to take; of no runs where that is not told."""
        ...

    async def record(self, new: NewExecution) -> Execution:
        """Starts an execution as whoever calls."""
        ...

    async def statuses(self) -> Sequence[FlowStatus]:
        """What each active flow does now, by key, as far as whoever calls is told."""
        ...

    async def pause(self, flow_key: str, reason: str | None) -> bool:
        """True if that changed anything."""
        ...

    async def resume(self, flow_key: str) -> bool:
        """The same."""
        ...

    async def costs(self, by: Dimension, days: Days, flow_key: str | None) -> Sequence[Spent]:
        """Sums along a dimension, the dearest first; days in their order."""
        ...

    async def failures(self, since: datetime | None, flow_key: str | None) -> Sequence[Failures]:
        """What failed, in groups, the latest first."""
        ...
