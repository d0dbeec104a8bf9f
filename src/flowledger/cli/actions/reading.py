"""What several commands read alike: a question to the ledger, an execution by its reference, a list of statuses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import typer

from flowledger.cli.desk import Desk, Wanted
from flowledger.cli.exits import Exit
from flowledger.cli.opening import Ledger, desk, ledger, server
from flowledger.cli.served import Served
from flowledger.domain.execution import Execution
from flowledger.domain.status import Status
from flowledger.errors import ExecutionNotFound, InvalidInput
from flowledger.settings import Settings

T = TypeVar("T")


def with_ledger(chosen: Settings, ask: Callable[[Ledger], Awaitable[T]]) -> T:
    async def asked() -> T:
        async with ledger(chosen) as open_ledger:
            return await ask(open_ledger)

    return _run(asked())


def with_desk(chosen: Settings, ask: Callable[[Desk], Awaitable[T]]) -> T:
    """The same of what a server can be asked too."""

    async def asked() -> T:
        async with desk(chosen) as open_desk:
            return await ask(open_desk)

    return _run(asked())


def with_server(chosen: Settings, ask: Callable[[Served], Awaitable[T]]) -> T:
    """Of what only a server can be asked, one being named."""

    async def asked() -> T:
        async with server(chosen) as served:
            return await ask(served)

    return _run(asked())


def _run(asked: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(asked)
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None


async def find(open_desk: Desk, reference: str) -> Execution:
    """The execution by its reference, `@last` and `@failed` included."""
    if not reference.startswith("@"):
        return await open_desk.find(reference)
    if reference not in ("@last", "@failed"):
        raise InvalidInput("EXECUTION", f"{reference} is not known", "Use @last or @failed.")
    wanted = Wanted(statuses=(Status.FAILED,) if reference == "@failed" else None)
    newest = (await open_desk.page(wanted, limit=1)).executions
    if not newest:
        raise ExecutionNotFound(reference)
    return await open_desk.find(str(newest[0].id))


def statuses(text: str | None) -> tuple[Status, ...] | None:
    if text is None:
        return None
    try:
        return tuple(Status(word.strip()) for word in text.split(","))
    except ValueError as wrong:
        raise InvalidInput("--status", str(wrong), f"Use {', '.join(Status)}.") from wrong
