"""What several commands read alike: a question to the ledger, an execution by its reference, a list of statuses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import typer

from flowledger.cli.exits import Exit
from flowledger.cli.opening import Ledger, ledger
from flowledger.domain.execution import Execution
from flowledger.domain.status import Status
from flowledger.errors import ExecutionNotFound, InvalidInput
from flowledger.ledger import executions
from flowledger.ledger.executions import Filters
from flowledger.settings import Settings

T = TypeVar("T")


def with_ledger(chosen: Settings, ask: Callable[[Ledger], Awaitable[T]]) -> T:
    async def asked() -> T:
        async with ledger(chosen) as open_ledger:
            return await ask(open_ledger)

    try:
        return asyncio.run(asked())
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None


async def find(open_ledger: Ledger, reference: str) -> Execution:
    async with open_ledger.database.session(open_ledger.operator) as session:
        if not reference.startswith("@"):
            return await executions.find(session, open_ledger.operator, reference)
        if reference not in ("@last", "@failed"):
            raise InvalidInput("EXECUTION", f"{reference} is not known", "Use @last or @failed.")
        filters = Filters(statuses=(Status.FAILED,) if reference == "@failed" else None)
        newest = await executions.list_(session, open_ledger.operator, filters, limit=1)
    if not newest:
        raise ExecutionNotFound(reference)
    return newest[0]


def statuses(text: str | None) -> tuple[Status, ...] | None:
    if text is None:
        return None
    try:
        return tuple(Status(word.strip()) for word in text.split(","))
    except ValueError as wrong:
        raise InvalidInput("--status", str(wrong), f"Use {', '.join(Status)}.") from wrong
