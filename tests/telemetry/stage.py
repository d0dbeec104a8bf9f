"""A ledger with executions whose timeline and calls are made by hand, parents and all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

from flowledger.database.session import Claims, Database
from flowledger.domain.execution import Claim, NewExecution, Outcome
from flowledger.domain.status import Status
from flowledger.domain.timeline import Event, EventKind
from flowledger.domain.usage import CallStatus, LlmCall, Price, PricedCall, Usage
from flowledger.ledger import executions, timeline, usage

ALICE = Claims(uuid4())
LEASE = timedelta(seconds=30)


class Stage:
    """A ledger with one flow, and the worker that carries its executions."""

    def __init__(self, service: Database, api: Database, flow: UUID) -> None:
        self.service, self.api, self.flow, self.worker = service, api, flow, uuid4()

    async def claimed(self, lease: timedelta = LEASE) -> Claim:
        async with self.api.session(ALICE) as session:
            await executions.record(session, NewExecution("good"))
        async with self.service.service() as connection:
            (claim,) = await executions.claim(connection, self.worker, {self.flow: 60.0}, 1, lease)
        async with self.service.service() as connection:
            held = (claim.execution_id, claim.fence)
            await timeline.append(connection, [(held, event) for event in _events()])
            await usage.append(connection, [(held, _call())])
        return claim

    async def finished(self, **metadata: object) -> UUID:
        claim = await self.claimed()
        outcome = Outcome(Status.COMPLETED, metadata=metadata)
        async with self.service.service() as connection:
            await executions.finish(connection, claim.execution_id, claim.fence, outcome)
        return claim.execution_id


def _events() -> list[Event]:
    now = datetime.now(UTC)
    return [
        Event(1, now, EventKind.FLOW_STARTED, "Good"),
        Event(2, now, EventKind.METHOD_STARTED, "write", parent=1),
        Event(3, now, EventKind.LLM_STARTED, "gpt-x", {"from_cache": 10**40}, parent=2),
    ]


def _call() -> PricedCall:
    used = LlmCall(1, "c", "gpt-x", "openai", datetime.now(UTC), CallStatus.COMPLETED, Usage(5, 0, 0, 7, 0), sequence=3)
    return PricedCall(used, Price(Decimal(1), Decimal(1), "test", "1"))
