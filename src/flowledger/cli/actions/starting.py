"""Starts one execution for a command and stays with it until it has ended.

With a worker at work for the flow it only records and watches; with none it brings one of its own, for this execution
alone, and takes it away again.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NoReturn

import typer
from rich.text import Text

from flowledger import registry
from flowledger.cli.actions.observing import Observers
from flowledger.cli.desk import Desk
from flowledger.cli.exits import OUTCOMES, Exit
from flowledger.cli.here import Here, named
from flowledger.cli.opening import Ledger, desk, surroundings
from flowledger.cli.output import err, exact_money, out, plain, short_id, tokens, write_json, write_result
from flowledger.cli.progress import follow, summary
from flowledger.database.session import Database
from flowledger.domain.duration import format_duration
from flowledger.domain.execution import Execution, NewExecution
from flowledger.errors import FlowNotFound
from flowledger.ledger import workers
from flowledger.ledger.flows import KnownFlow
from flowledger.ledger.spending import Estimate
from flowledger.settings import Settings
from flowledger.telemetry.logs import configure_logs
from flowledger.worker.ending import ended
from flowledger.worker.worker import Worker


@dataclass(frozen=True)
class Asked:
    """What is to be started: a flow's key, class name or entry point, and what to record once the flow is known."""

    flow: str
    new: Callable[[KnownFlow], NewExecution]


def start_and_leave(
    chosen: Settings, ask: Callable[[Desk], Awaitable[Asked]], *, detach: bool, as_json: bool
) -> NoReturn:
    """Starts what `ask` answers with, stays with it unless detached, and exits by its outcome."""
    configure_logs(chosen.log_format, level=logging.WARNING)
    try:
        execution = asyncio.run(_start(chosen, ask, detach=detach, quiet=as_json))
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(Exit.INTERRUPTED) from None
    if as_json:
        write_json(execution)
    elif detach:
        out.print(str(execution.id))
    else:
        err.print(summary(execution))
        write_result(execution)
    raise typer.Exit(Exit.DONE if detach else OUTCOMES.get(execution.status, Exit.STOPPED_WAITING))


async def _start(chosen: Settings, ask: Callable[[Desk], Awaitable[Asked]], *, detach: bool, quiet: bool) -> Execution:
    task = asyncio.current_task()
    assert task is not None
    # As Ctrl-C: what runs in this very process must not stay behind as running.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with AsyncExitStack() as stack:
        open_desk = await stack.enter_async_context(desk(chosen))
        asked = await ask(open_desk)
        # Behind a server nobody but its workers can run it.
        if detach or not isinstance(open_desk, Here) or await _is_served(open_desk, chosen, asked.flow):
            execution = await _record(open_desk, await open_desk.flow(asked.flow), asked)
            return execution if detach else await _follow(open_desk, execution, quiet=quiet, others_run_it=True)
        worker = await stack.enter_async_context(_own_worker(open_desk.ledger, chosen))
        # The ledger may know flows of other projects too, which this worker would never claim.
        known = named([flow for flow in await open_desk.flows() if flow.id in worker.serves], asked.flow)
        execution = await _record(open_desk, known, asked)
        worker.admit(execution.id)
        return await _follow(open_desk, execution, quiet=quiet, others_run_it=False)


async def _is_served(here: Here, chosen: Settings, name: str) -> bool:
    """Whether some worker that was heard of lately runs the flow."""
    try:
        known = await here.flow(name)
    except FlowNotFound:
        return False
    async with here.ledger.database.session(here.ledger.operator) as session:
        # A living worker is heard of every quarter of a lease.
        heard_within = timedelta(seconds=chosen.lease_seconds / 2)
        return await workers.serving(session, known.id, heard_within=heard_within) > 0


@asynccontextmanager
async def _own_worker(open_ledger: Ledger, chosen: Settings) -> AsyncIterator[Worker]:
    """A worker in this very process, for the one execution it will be told of."""
    found = registry.locate(chosen.project, chosen.python)
    observers = Observers(chosen, scraped=False)
    configure_logs(chosen.log_format, level=logging.WARNING, listeners=observers.listeners)
    async with Database(open_ledger.addresses.worker) as database, observers.watching(database):
        worker = Worker(chosen, database, found, surroundings(chosen, open_ledger.addresses), among=[])
        working = asyncio.create_task(worker.run())
        try:
            with err.status(f"Loading {found.root.name} …"):
                await _ready_or_failed(worker, working)
            yield worker
        finally:
            worker.drain()
            if worker.ready.is_set():
                await asyncio.wait((working,))
            else:
                await ended((working,))


async def _ready_or_failed(worker: Worker, working: asyncio.Task[None]) -> None:
    """Raises what kept the worker from its work."""
    ready = asyncio.create_task(worker.ready.wait())
    try:
        await asyncio.wait((working, ready), return_when=asyncio.FIRST_COMPLETED)
    finally:
        ready.cancel()
    if working.done():
        await working


async def _record(open_desk: Desk, known: KnownFlow, asked: Asked) -> Execution:
    estimate = await open_desk.estimate(known)
    new = asked.new(known)
    if estimate.runs:
        new = replace(new, metadata={**new.metadata, "estimate": plain(estimate)})
    execution = await open_desk.record(new)
    _tell_estimate(estimate)
    await _tell_if_paused(open_desk, execution)
    return execution


def _tell_estimate(estimate: Estimate) -> None:
    """What the latest runs took, in the middle; nothing where there were none."""
    parts = [
        "" if estimate.cost_usd is None else exact_money(estimate.cost_usd),
        "" if estimate.tokens is None else f"{tokens(estimate.tokens)} tokens",
        format_duration(estimate.duration_ms),
    ]
    if told := ", ".join(part for part in parts if part):
        runs = "the last run" if estimate.runs == 1 else f"the median of the last {estimate.runs} runs"
        err.print(Text(f"usually {told} ({runs})", "dim"))


async def _tell_if_paused(open_desk: Desk, execution: Execution) -> None:
    status = next((one for one in await open_desk.statuses() if one.id == execution.flow_id), None)
    if status is not None and status.paused_at is not None:
        err.print(
            Text.assemble(
                ("! ", "yellow"),
                f"{status.flow_key} is paused by {status.paused_by}: {status.paused_reason or 'no reason given'}. ",
                (f"This waits until `flowledger flows resume {status.flow_key}`.", "dim"),
            )
        )


async def _follow(open_desk: Desk, execution: Execution, *, quiet: bool, others_run_it: bool) -> Execution:
    try:
        return await follow(open_desk, execution, quiet=quiet)
    except asyncio.CancelledError:
        # Ctrl-C. An execution that this very process runs cannot go on without it.
        if not others_run_it or _cancel_wanted(execution):
            await open_desk.cancel(execution.id, "interrupted on the terminal")
            err.print(summary(await follow(open_desk, execution, quiet=True)))
        raise


def _cancel_wanted(execution: Execution) -> bool:
    if not (sys.stdin.isatty() and err.is_terminal):
        return False
    return typer.confirm(f"Cancel {short_id(execution.id)}, or let it go on?", default=False, err=True)
