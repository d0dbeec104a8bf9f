"""Starts one execution and stays with it until it has ended.

With a worker at work for this flow it only records and watches; with none it brings one of its own, for this execution
alone, and takes it away again.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import typer

from flowledger import inputs, registry
from flowledger.cli.exits import OUTCOMES, Exit
from flowledger.cli.flags import seconds, settings
from flowledger.cli.opening import Ledger, ledger, surroundings
from flowledger.cli.output import err, out, short_id, write_json, write_result
from flowledger.cli.progress import follow, summary
from flowledger.database.session import Database
from flowledger.domain.execution import Execution, NewExecution
from flowledger.errors import FlowNotFound, InvalidInput
from flowledger.ledger import executions, flows, workers
from flowledger.ledger.flows import KnownFlow
from flowledger.settings import Settings
from flowledger.telemetry import configure_logs
from flowledger.worker.ending import ended
from flowledger.worker.worker import Worker


def run(
    *,
    flow: str,
    pairs: list[str] | None,
    input_file: str | None,
    json_input: str | None,
    timeout: str | None,
    meeting: UUID | None,
    detach: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    chosen = settings(**flags, slots=1)
    asked = _Asked(
        flow=flow,
        given=_given(input_file, json_input),
        pairs=pairs or [],
        timeout_seconds=seconds(timeout, "--timeout"),
        meeting=meeting,
    )
    configure_logs(chosen.log_format, level=30)
    try:
        ended = asyncio.run(_run(chosen, asked, detach=detach, quiet=as_json))
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(Exit.INTERRUPTED) from None
    if as_json:
        write_json(ended)
    elif detach:
        out.print(str(ended.id))
    else:
        err.print(summary(ended))
        write_result(ended)
    raise typer.Exit(Exit.DONE if detach else OUTCOMES.get(ended.status, Exit.STOPPED_WAITING))


class _Asked:
    """What the command line asks for, before the flow is known."""

    def __init__(
        self, *, flow: str, given: dict[str, Any], pairs: list[str], timeout_seconds: float | None, meeting: UUID | None
    ) -> None:
        self.flow = flow
        self._given = given
        self._pairs = pairs
        self._timeout_seconds = timeout_seconds
        self._meeting = meeting

    def of(self, known: KnownFlow) -> NewExecution:
        """The execution to record. Raises InvalidInput naming the field."""
        values = {**self._given, **inputs.parse(self._pairs, known.input_schema)}
        inputs.check(known.input_schema, values)
        return NewExecution(
            flow_key=known.flow_key,
            inputs=values,
            board_meeting_id=self._meeting,
            timeout_seconds=self._timeout_seconds,
        )


async def _run(chosen: Settings, asked: _Asked, *, detach: bool, quiet: bool) -> Execution:
    task = asyncio.current_task()
    assert task is not None
    # As Ctrl-C: what runs in this very process must not stay behind as running.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with AsyncExitStack() as stack:
        open_ledger = await stack.enter_async_context(ledger(chosen))
        known = await _served(open_ledger, chosen, asked.flow)
        if detach:
            known = known or _named(await _known_flows(open_ledger), asked.flow)
            return await _record(open_ledger, asked.of(known))
        if known is not None:
            execution = await _record(open_ledger, asked.of(known))
            return await _follow(open_ledger, execution, quiet=quiet, others_run_it=True)
        worker = await stack.enter_async_context(_own_worker(open_ledger, chosen))
        # The ledger may know flows of other projects too, which this worker would never claim.
        known = _named([flow for flow in await _known_flows(open_ledger) if flow.id in worker.serves], asked.flow)
        execution = await _record(open_ledger, asked.of(known))
        worker.admit(execution.id)
        return await _follow(open_ledger, execution, quiet=quiet, others_run_it=False)


async def _served(open_ledger: Ledger, chosen: Settings, name: str) -> KnownFlow | None:
    """The flow, if some worker that was heard of lately runs it."""
    try:
        known = _named(await _known_flows(open_ledger), name)
    except FlowNotFound:
        return None
    async with open_ledger.database.session(open_ledger.operator) as session:
        # A living worker is heard of every quarter of a lease.
        heard_within = timedelta(seconds=chosen.lease_seconds / 2)
        heard = await workers.serving(session, known.id, heard_within=heard_within)
    return known if heard else None


async def _known_flows(open_ledger: Ledger) -> list[KnownFlow]:
    async with open_ledger.database.session(open_ledger.operator) as session:
        return await flows.list_(session)


def _named(known: list[KnownFlow], name: str) -> KnownFlow:
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


@asynccontextmanager
async def _own_worker(open_ledger: Ledger, chosen: Settings) -> AsyncIterator[Worker]:
    """A worker in this very process, for the one execution it will be told of."""
    found = registry.locate(chosen.project, chosen.python)
    async with Database(open_ledger.addresses.worker) as database:
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


async def _record(open_ledger: Ledger, new: NewExecution) -> Execution:
    async with open_ledger.database.session(open_ledger.me) as session:
        return await executions.record(session, new)


async def _follow(open_ledger: Ledger, execution: Execution, *, quiet: bool, others_run_it: bool) -> Execution:
    try:
        return await follow(open_ledger, execution, quiet=quiet)
    except asyncio.CancelledError:
        # Ctrl-C. An execution that this very process runs cannot go on without it.
        if not others_run_it or _cancel_wanted(execution):
            async with open_ledger.database.session(open_ledger.me) as session:
                await executions.cancel(session, execution.id, "interrupted on the terminal")
            err.print(summary(await follow(open_ledger, execution, quiet=True)))
        raise


def _cancel_wanted(execution: Execution) -> bool:
    if not (sys.stdin.isatty() and err.is_terminal):
        return False
    return typer.confirm(f"Cancel {short_id(execution.id)}, or let it go on?", default=False, err=True)


def _given(input_file: str | None, json_input: str | None) -> dict[str, Any]:
    if input_file is not None and json_input is not None:
        raise InvalidInput("--input", "cannot be given together with --json-input", "Use one of them.")
    if json_input is not None:
        return _object(json_input, "--json-input")
    if input_file is not None:
        return _object(_read(input_file), "--input")
    return {}


def _read(place: str) -> str:
    if place == "-":
        return sys.stdin.read()
    try:
        return Path(place).read_text()
    except (OSError, UnicodeDecodeError) as unreadable:
        raise InvalidInput("--input", f"{place} cannot be read: {unreadable}") from unreadable


def _object(text: str, field: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as wrong:
        raise InvalidInput(field, f"is no JSON: {wrong}") from wrong
    if not isinstance(value, dict):
        raise InvalidInput(
            field, f"must be a JSON object, not {type(value).__name__}", 'Name each input: {"topic": "..."}.'
        )
    return value
