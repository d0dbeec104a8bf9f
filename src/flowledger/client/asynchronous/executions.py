"""`client.executions`: start, list, show, end, repeat and compare them, and read what belongs to each."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack, cast
from uuid import uuid4

from flowledger.client.address import checked_key
from flowledger.client.answers import (
    CallPage,
    CancelAnswer,
    Cancellation,
    Comparison,
    EventPage,
    ExecutionPage,
    LogPage,
    Spans,
    States,
    WholeExecution,
)
from flowledger.client.asynchronous.wire import AsyncWire
from flowledger.client.files import whole_file
from flowledger.client.wanted import Filters, Options, as_body, as_params
from flowledger.domain.execution import Execution, Transition
from flowledger.domain.timeline import Event, LogLine
from flowledger.domain.usage import PricedCall
from flowledger.errors import TransitionRefused

Format = Literal["csv", "jsonl", "parquet"]
Numbered = TypeVar("Numbered", EventPage, LogPage, CallPage)

_EXPORT_QUIET_SECONDS = 120
"""A search that finds little may be silent for long."""


class AsyncExecutions:
    """A `reference` is an execution's id, a unique prefix of it, or its key. What is not there, or not the caller's to
    see, raises ExecutionNotFound; a prefix of several, AmbiguousReference.
    """

    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire

    async def create(
        self,
        flow: str,
        inputs: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> Execution:
        """Starts a flow: a pending execution, which a worker takes as soon as it may.

        The same `idempotency_key` with the same request is answered with the same execution; None: a new one.
        Raises FlowNotFound, InvalidInput, QueueFull, BudgetUsedUp.
        """
        body = as_body({"flow": flow, "inputs": dict(inputs or {}), **options})
        return await self._started("executions", body=body, key=idempotency_key)

    async def rerun(
        self, reference: str, inputs: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> Execution:
        """Starts the same flow with the same inputs, changed by name where `inputs` says so. Raises as `create`."""
        return await self._started(
            "executions", reference, "rerun", body={"inputs": dict(inputs or {})}, key=idempotency_key
        )

    async def _started(self, *path: str, body: Mapping[str, Any], key: str | None) -> Execution:
        headers = {"Idempotency-Key": checked_key(key or str(uuid4()))}
        return await self._wire.ask(Execution, "POST", *path, body=body, headers=headers, repeatable=True)

    # -- Reading ------------------------------------------------------------------------------------------------------

    async def get(self, reference: str) -> WholeExecution:
        """One execution, in full."""
        return await self._wire.ask(WholeExecution, "GET", "executions", reference)

    async def page(self, *, limit: int = 50, after: str | None = None, **filters: Unpack[Filters]) -> ExecutionPage:
        """A page of executions, newest first: after the `next` of the page before. A search may find few or none on a
        page that has a `next`. Large values are `{"$large": bytes}`; `get` and `state` have them whole.
        """
        params = as_params({**filters, "limit": limit, "after": after})
        return await self._wire.ask(ExecutionPage, "GET", "executions", params=params)

    async def list(self, *, page_size: int = 100, **filters: Unpack[Filters]) -> AsyncGenerator[Execution]:
        """All of them, newest first; the next page is fetched when it is reached."""
        after = None
        while True:
            page = await self.page(limit=page_size, after=after, **filters)
            for execution in page.executions:
                yield execution
            if (after := page.next) is None:
                return

    async def state(self, reference: str) -> States:
        """What went in and what came out, however large."""
        return await self._wire.ask(States, "GET", "executions", reference, "state")

    async def transitions(self, reference: str) -> tuple[Transition, ...]:
        """Every step of its life, the birth first."""
        told = await self._wire.ask(dict[str, tuple[Transition, ...]], "GET", "executions", reference, "transitions")
        return told["transitions"]

    async def timeline(self, reference: str, *, after: int = 0) -> AsyncGenerator[Event]:
        """What has happened inside, after a sequence number. `client.events` goes on until the execution ends."""
        async for page in self._pages(EventPage, "timeline", reference, after):
            for event in page.events:
                yield event

    async def spans(self, reference: str) -> Spans:
        """The same, beginnings and ends put together."""
        return await self._wire.ask(Spans, "GET", "executions", reference, "timeline", params={"as": "spans"})

    async def usage(self, reference: str, *, after: int = 0) -> AsyncGenerator[PricedCall]:
        """Its LLM calls, after a number: tokens, prices, costs."""
        async for page in self._pages(CallPage, "usage", reference, after):
            for call in page.calls:
                yield call

    async def logs(self, reference: str, *, after: int = 0) -> AsyncGenerator[LogLine]:
        """What the flow wrote to stdout and stderr, after a sequence number."""
        async for page in self._pages(LogPage, "logs", reference, after):
            for line in page.lines:
                yield line

    async def _pages(self, kind: type[Numbered], name: str, reference: str, after: int) -> AsyncGenerator[Numbered]:
        last: int | None = after
        while last is not None:
            page = await self._wire.ask(kind, "GET", "executions", reference, name, params={"after": str(last)})
            yield page
            last = page.next

    async def compare(self, reference: str, other: str) -> Comparison:
        """What is different in another execution: inputs, outputs, steps, tokens, cost, time."""
        params = {"with": other}
        return await self._wire.ask(Comparison, "GET", "executions", reference, "comparison", params=params)

    async def export(self, format: Format = "jsonl", **filters: Unpack[Filters]) -> AsyncGenerator[bytes]:  # noqa: A002
        """Every column of the executions, newest first, in pieces as they come. One that breaks off raises
        ServerUnreachable: what came before is not whole.
        """
        params = {**as_params(cast(Mapping[str, Any], filters)), "format": format}
        async with self._wire.stream(
            "executions", "export", params=params, quiet_seconds=_EXPORT_QUIET_SECONDS
        ) as answer:
            async for piece in answer.aiter_bytes():
                yield piece

    async def export_to(self, file: str | Path, format: Format = "jsonl", **filters: Unpack[Filters]) -> None:  # noqa: A002
        """The same into a file, which is there when all of it is."""
        with whole_file(Path(file)) as growing:
            async with aclosing(self.export(format, **filters)) as pieces:
                async for piece in pieces:
                    growing.write(piece)

    # -- Ending -------------------------------------------------------------------------------------------------------

    async def cancel(self, reference: str, reason: str | None = None) -> Cancellation:
        """Asks to end an execution: at once if it has not started, else its worker stops it. May be repeated."""
        try:
            return await self._wire.ask(
                Cancellation,
                "POST",
                "executions",
                reference,
                "cancellation",
                body=as_body({"reason": reason}),
                repeatable=True,
            )
        except TransitionRefused:
            return Cancellation((await self.get(reference)).id, CancelAnswer.ENDED)
