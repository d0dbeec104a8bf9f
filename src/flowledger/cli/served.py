"""The ledger behind a server: whoever the token says asks, and sees and starts what they may."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import fields
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from statistics import median_low
from typing import Any
from uuid import UUID

from flowledger import client, inputs
from flowledger.cli.desk import Inside, Look, Page, Wanted
from flowledger.cli.here import named
from flowledger.client import AsyncClient, WholeExecution, WholeFlow
from flowledger.domain.dimension import Dimension
from flowledger.domain.execution import Execution, NewExecution
from flowledger.domain.flow import Discovery, Flow
from flowledger.domain.status import Status
from flowledger.domain.timeline import LogLine
from flowledger.domain.usage import Usage
from flowledger.errors import FlowNotFound, InvalidInput
from flowledger.ledger.failures import Failures
from flowledger.ledger.flows import FlowStatus, KnownFlow
from flowledger.ledger.spending import Days, Estimate, Spent

_LATEST_RUNS = 20
_EVER = datetime.min.replace(tzinfo=UTC)


class Served:
    """`client` is open for as long as this is used."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._executions = client.executions

    async def find(self, reference: str) -> Execution:
        return _row(await self._executions.get(reference))

    async def page(self, wanted: Wanted, *, limit: int, after: str | None = None) -> Page:
        found = await self._executions.page(
            limit=limit,
            after=after,
            status=wanted.statuses,
            flow=wanted.flow_key,
            mode=wanted.mode,
            since=wanted.since,
            until=wanted.until,
            meeting=wanted.meeting,
            by=wanted.by,
        )
        return Page(found.executions, found.next)

    async def inside(self, execution: UUID, *, transitions: bool, events: bool, calls: bool) -> Inside:
        reference = str(execution)
        row = await self._executions.get(reference)
        steps = await self._executions.transitions(reference) if transitions else ()
        links = (*([] if row.repeats is None else [row.repeats]), *row.repeated_by)
        return Inside(
            _row(row),
            steps,
            links,
            [event async for event in self._executions.timeline(reference)] if events else [],
            [call async for call in self._executions.usage(reference)] if calls else [],
            row.repricings,
        )

    async def logs(self, execution: UUID, *, after: int) -> Sequence[LogLine]:
        return [line async for line in self._executions.logs(str(execution), after=after)]

    async def look(self, execution: UUID, *, after: int) -> Look:
        reference = str(execution)
        # Read first: events and calls are written before the row ends, so a row that has ended has all of them.
        row = await self._executions.get(reference)
        events = [event async for event in self._executions.timeline(reference, after=after)]
        is_news = bool(events) or row.status.is_terminal
        calls = [call async for call in self._executions.usage(reference)] if is_news else []
        return Look(_row(row), events, calls)

    def nudges(self, execution: UUID, patience: float | None) -> AsyncGenerator[object]:
        return self._client.nudges(execution, patience=patience)

    async def cancel(self, execution: UUID, reason: str | None) -> str:
        return (await self._executions.cancel(str(execution), reason)).answer

    async def flow(self, name: str) -> KnownFlow:
        try:
            return _known(await self._client.flows.get(name))
        except (FlowNotFound, InvalidInput):
            # It may be another of its names.
            return named([_known(flow) for flow in await self.flows()], name)

    async def flows(self) -> list[WholeFlow]:
        """The active ones, each in full."""
        return [await self._client.flows.get(flow.flow_key) async for flow in self._client.flows.list()]

    async def discovery(self) -> Discovery:
        """The active flows, as if they had been found in a project."""
        return Discovery(tuple(map(_found, await self.flows())))

    async def estimate(self, flow: KnownFlow) -> Estimate:
        """From the rows that the caller sees, as the database would from all of them."""
        latest = await self._executions.page(limit=_LATEST_RUNS, flow=flow.flow_key, status=Status.COMPLETED)
        runs = latest.executions
        return Estimate(
            len(runs),
            _middle(map(_exact_cost, runs)),
            _middle(run.token_count for run in runs),
            _middle(run.duration_ms for run in runs),
        )

    async def record(self, new: NewExecution) -> Execution:
        if new.rerun_of is not None:
            return await self._repeated(new, str(new.rerun_of))
        budget = new.budget
        return await self._executions.create(
            new.flow_key,
            new.inputs,
            execution_key=new.execution_key,
            timeout_seconds=new.timeout_seconds,
            queue_seconds=new.queue_seconds,
            priority=new.priority,
            budget_usd=None if budget is None else budget.usd,
            budget_tokens=None if budget is None else budget.tokens,
            on_budget=None if budget is None else budget.on_reach,
            board_meeting_id=new.board_meeting_id,
            metadata=new.metadata,
        )

    async def _repeated(self, new: NewExecution, earlier: str) -> Execution:
        before = inputs.of_earlier(await self._executions.get(earlier))
        if gone := sorted(set(before) - set(new.inputs)):
            raise InvalidInput(
                gone[0], "was taken away, and a server keeps what a rerun does not change", "Give it another value."
            )
        changed = {name: value for name, value in new.inputs.items() if name not in before or before[name] != value}
        return await self._executions.rerun(earlier, changed)

    async def statuses(self) -> Sequence[FlowStatus]:
        return [
            FlowStatus(flow.id, flow.flow_key, flow.version or 0, **vars(flow.now))
            async for flow in self._client.flows.list()
            if flow.now is not None
        ]

    async def pause(self, flow_key: str, reason: str | None) -> bool:
        return await self._client.flows.pause(flow_key, reason)

    async def resume(self, flow_key: str) -> bool:
        return await self._client.flows.resume(flow_key)

    async def costs(self, by: Dimension, days: Days, flow_key: str | None) -> Sequence[Spent]:
        # The server's days end before a moment.
        until = None if days.last is None else days.last + timedelta(days=1)
        told = await self._client.costs(by, since=days.first or date.min, until=until, flow=flow_key)
        return [_spent(row, by) for row in told.rows]

    async def failures(self, since: datetime | None, flow_key: str | None) -> Sequence[Failures]:
        told = await self._client.errors(since=since or _EVER, flow=flow_key)
        return [
            Failures(**{**vars(one), "flows": {key: [*each] for key, each in one.flows.items()}}) for one in told.errors
        ]


def _found(flow: WholeFlow) -> Flow:
    return Flow(
        key=flow.flow_key,
        name=flow.flow_name,
        description=flow.description or "",
        entry_point=flow.entry_point or "",
        input_schema=flow.input_schema,
        graph=flow.graph,
        source=flow.python_code or "",
        fingerprint=flow.fingerprint or "",
    )


def _known(flow: WholeFlow) -> KnownFlow:
    definition = {"entry_point": flow.entry_point or "", "input_schema": flow.input_schema}
    return KnownFlow(
        id=flow.id,
        flow_key=flow.flow_key,
        flow_name=flow.flow_name,
        description=flow.description,
        definition=definition,
        version=flow.version or 0,
        execution_count=flow.execution_count or 0,
        last_executed_at=flow.last_executed_at,
    )


def _spent(row: client.Spent, by: Dimension) -> Spent:
    facts = dict(vars(row))
    usage = Usage(**{name: facts.pop(name) for name in vars(Usage())})
    key = facts.pop("key")
    del facts["is_lower_bound"]
    is_day = by is Dimension.DAY and key is not None
    return Spent(
        day=date.fromisoformat(key) if is_day else None, key=None if is_day else key or "", usage=usage, **facts
    )


def _exact_cost(execution: Execution) -> Decimal | None:
    """The row rounds; its metadata does not."""
    exact = (execution.metadata or {}).get("exact_cost_usd")
    return execution.cost_usd if execution.cost_usd is None or exact is None else Decimal(exact)


def _middle(values: Iterable[Any]) -> Any:
    """Of two in the middle the lower; None of none."""
    known = [value for value in values if value is not None]
    return median_low(known) if known else None


def _row(whole: WholeExecution) -> Execution:
    return Execution(**{field.name: getattr(whole, field.name) for field in fields(Execution)})
