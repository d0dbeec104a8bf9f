# Made of client/asynchronous by scripts/synchronous.py: change it there, and `make docs` writes it again.
"""`client.executions`: start, list, show, end, repeat and compare them, and read what belongs to each."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
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
from flowledger.client.files import whole_file
from flowledger.client.synchronous.wire import Wire
from flowledger.client.wanted import Filters, Options, as_body, as_params
from flowledger.domain.execution import Execution, Transition
from flowledger.domain.timeline import Event, LogLine
from flowledger.domain.usage import PricedCall
from flowledger.errors import TransitionRefused

Format = Literal["csv", "jsonl", "parquet"]
Numbered = TypeVar("Numbered", EventPage, LogPage, CallPage)

_EXPORT_QUIET_SECONDS = 120
"""A search that finds little may be silent for long."""


class Executions:
    """A `reference` is an execution's id, a unique prefix of it, or its key. What is not there, or not the caller's to
    see, raises ExecutionNotFound; a prefix of several, AmbiguousReference.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(
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
        return self._started("executions", body=body, key=idempotency_key)

    def rerun(
        self, reference: str, inputs: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> Execution:
        """Starts the same flow with the same inputs, changed by name where `inputs` says so. Raises as `create`."""
        return self._started("executions", reference, "rerun", body={"inputs": dict(inputs or {})}, key=idempotency_key)

    def _started(self, *path: str, body: Mapping[str, Any], key: str | None) -> Execution:
        headers = {"Idempotency-Key": checked_key(key or str(uuid4()))}
        return self._wire.ask(Execution, "POST", *path, body=body, headers=headers, repeatable=True)

    # -- Reading ------------------------------------------------------------------------------------------------------

    def get(self, reference: str) -> WholeExecution:
        """One execution, in full."""
        return self._wire.ask(WholeExecution, "GET", "executions", reference)

    def page(self, *, limit: int = 50, after: str | None = None, **filters: Unpack[Filters]) -> ExecutionPage:
        """A page of executions, newest first: after the `next` of the page before. A search may find few or none on a
        page that has a `next`. Large values are `{"$large": bytes}`; `get` and `state` have them whole.
        """
        params = as_params({**filters, "limit": limit, "after": after})
        return self._wire.ask(ExecutionPage, "GET", "executions", params=params)

    def list(self, *, page_size: int = 100, **filters: Unpack[Filters]) -> Generator[Execution]:
        """All of them, newest first; the next page is fetched when it is reached."""
        after = None
        while True:
            page = self.page(limit=page_size, after=after, **filters)
            for execution in page.executions:
                yield execution
            if (after := page.next) is None:
                return

    def state(self, reference: str) -> States:
        """What went in and what came out, however large."""
        return self._wire.ask(States, "GET", "executions", reference, "state")

    def transitions(self, reference: str) -> tuple[Transition, ...]:
        """Every step of its life, the birth first."""
        told = self._wire.ask(dict[str, tuple[Transition, ...]], "GET", "executions", reference, "transitions")
        return told["transitions"]

    def timeline(self, reference: str, *, after: int = 0) -> Generator[Event]:
        """What has happened inside, after a sequence number. `client.events` goes on until the execution ends."""
        for page in self._pages(EventPage, "timeline", reference, after):
            for event in page.events:
                yield event

    def spans(self, reference: str) -> Spans:
        """The same, beginnings and ends put together."""
        return self._wire.ask(Spans, "GET", "executions", reference, "timeline", params={"as": "spans"})

    def usage(self, reference: str, *, after: int = 0) -> Generator[PricedCall]:
        """Its LLM calls, after a number: tokens, prices, costs."""
        for page in self._pages(CallPage, "usage", reference, after):
            for call in page.calls:
                yield call

    def logs(self, reference: str, *, after: int = 0) -> Generator[LogLine]:
        """What the flow wrote to stdout and stderr, after a sequence number."""
        for page in self._pages(LogPage, "logs", reference, after):
            for line in page.lines:
                yield line

    def _pages(self, kind: type[Numbered], name: str, reference: str, after: int) -> Generator[Numbered]:
        last: int | None = after
        while last is not None:
            page = self._wire.ask(kind, "GET", "executions", reference, name, params={"after": str(last)})
            yield page
            last = page.next

    def compare(self, reference: str, other: str) -> Comparison:
        """What is different in another execution: inputs, outputs, steps, tokens, cost, time."""
        params = {"with": other}
        return self._wire.ask(Comparison, "GET", "executions", reference, "comparison", params=params)

    def export(self, format: Format = "jsonl", **filters: Unpack[Filters]) -> Generator[bytes]:  # noqa: A002
        """Every column of the executions, newest first, in pieces as they come. One that breaks off raises
        ServerUnreachable: what came before is not whole.
        """
        params = {**as_params(cast(Mapping[str, Any], filters)), "format": format}
        with self._wire.stream("executions", "export", params=params, quiet_seconds=_EXPORT_QUIET_SECONDS) as answer:
            for piece in answer.iter_bytes():
                yield piece

    def export_to(self, file: str | Path, format: Format = "jsonl", **filters: Unpack[Filters]) -> None:  # noqa: A002
        """The same into a file, which is there when all of it is."""
        with whole_file(Path(file)) as growing:
            with closing(self.export(format, **filters)) as pieces:
                for piece in pieces:
                    growing.write(piece)

    # -- Ending -------------------------------------------------------------------------------------------------------

    def cancel(self, reference: str, reason: str | None = None) -> Cancellation:
        """Asks to end an execution: at once if it has not started, else its worker stops it. May be repeated."""
        try:
            return self._wire.ask(
                Cancellation,
                "POST",
                "executions",
                reference,
                "cancellation",
                body=as_body({"reason": reason}),
                repeatable=True,
            )
        except TransitionRefused:
            return Cancellation((self.get(reference)).id, CancelAnswer.ENDED)
