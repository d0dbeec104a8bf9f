"""The ledger in a database that is reached from here: as an operator, who starts flows as the local user."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from flowledger.cli.desk import Inside, Look, Page, Wanted
from flowledger.domain.dimension import Dimension
from flowledger.domain.execution import Execution, NewExecution
from flowledger.domain.timeline import LogLine
from flowledger.errors import FlowNotFound
from flowledger.ledger import executions, failures, flows, spending, timeline, usage
from flowledger.ledger.executions import Filters, Place
from flowledger.ledger.failures import Failures
from flowledger.ledger.flows import FlowStatus, KnownFlow
from flowledger.ledger.spending import Days, Estimate, Of, Spent

if TYPE_CHECKING:
    from flowledger.cli.opening import Ledger

_LOOK_SECONDS = 0.1


class Here:
    """`ledger` is open for as long as this is used."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._operator = ledger.operator
        self._session = ledger.database.session

    async def find(self, reference: str) -> Execution:
        async with self._session(self._operator) as session:
            return await executions.find(session, self._operator, reference)

    async def page(self, wanted: Wanted, *, limit: int, after: str | None = None) -> Page:
        filters = Filters(**{**vars(wanted), "by": self.ledger.me.user if wanted.by == "me" else wanted.by})
        place = None if after is None else Place.parse(after)
        async with self._session(self._operator) as session:
            found = await executions.page(session, self._operator, filters, limit=limit, after=place)
        return Page(found.executions, None if found.next is None else str(found.next))

    async def inside(self, execution: UUID, *, transitions: bool, events: bool, calls: bool) -> Inside:
        async with self._session(self._operator) as session:
            return Inside(
                await executions.find(session, self._operator, str(execution)),
                await executions.transitions(session, execution) if transitions else [],
                await executions.reruns(session, execution),
                await timeline.read(session, execution) if events else [],
                await usage.read(session, execution) if calls else [],
                await usage.repricings(session, execution),
            )

    async def logs(self, execution: UUID, *, after: int) -> Sequence[LogLine]:
        async with self._session(self._operator) as session:
            return await timeline.read_logs(session, execution, after=after)

    async def look(self, execution: UUID, *, after: int) -> Look:
        async with self._session(self._operator) as session:
            # Read first: events and calls are written before the row ends, so a row that has ended has all of them.
            row = await executions.find(session, self._operator, str(execution))
            events = await timeline.read(session, execution, after=after)
            calls = await usage.read(session, execution) if events or row.status.is_terminal else []
        return Look(row, events, calls)

    async def nudges(self, execution: UUID, patience: float | None) -> AsyncGenerator[object]:  # noqa: ARG002
        """At a steady beat: a look costs next to nothing here."""
        now = asyncio.get_running_loop().time
        ends_at = None if patience is None else now() + patience
        while ends_at is None or now() < ends_at:
            yield None
            await asyncio.sleep(_LOOK_SECONDS)
        yield None

    async def cancel(self, execution: UUID, reason: str | None) -> str:
        async with self._session(self._operator) as session:
            return await executions.cancel(session, execution, reason)

    async def flow(self, name: str) -> KnownFlow:
        return named(await self.flows(), name)

    async def flows(self) -> list[KnownFlow]:
        async with self._session(self._operator) as session:
            return await flows.list_(session)

    async def estimate(self, flow: KnownFlow) -> Estimate:
        async with self._session(self._operator) as session:
            return await spending.estimate(session, self._operator, flow.id)

    async def record(self, new: NewExecution) -> Execution:
        async with self._session(self.ledger.me) as session:
            return await executions.record(session, new)

    async def statuses(self) -> Sequence[FlowStatus]:
        async with self._session(self._operator) as session:
            return await flows.statuses(session)

    async def pause(self, flow_key: str, reason: str | None) -> bool:
        async with self._session(self._operator) as session:
            return await flows.pause(session, flow_key, reason)

    async def resume(self, flow_key: str) -> bool:
        async with self._session(self._operator) as session:
            return await flows.resume(session, flow_key)

    async def costs(self, by: Dimension, days: Days, flow_key: str | None) -> Sequence[Spent]:
        async with self._session(self._operator) as session:
            flow = None if flow_key is None else await flows.find(session, flow_key)
            return await spending.by(session, self._operator, by, days, of=Of(flow=flow))

    async def failures(self, since: datetime | None, flow_key: str | None) -> Sequence[Failures]:
        async with self._session(self._operator) as session:
            flow = None if flow_key is None else await flows.find(session, flow_key)
            return await failures.groups(session, self._operator, since=since, flow=flow)


def named(known: Sequence[KnownFlow], name: str) -> KnownFlow:
    """The flow with this key, class name, display name or entry point. Raises FlowNotFound, with the nearest keys."""
    names = {
        alias: flow
        for flow in reversed(known)
        for entry_point in [str(flow.definition.get("entry_point", ""))]
        for alias in (entry_point.rpartition(":")[2], entry_point, flow.flow_name, flow.flow_key)
    }
    if name in names:
        return names[name]
    keys = [flow.flow_key for flow in known]
    raise FlowNotFound(name, tuple(difflib.get_close_matches(name, keys, n=3)))
