# Made of client/asynchronous by scripts/synchronous.py: change it there, and `make docs` writes it again.
"""`Client`: the server's resources, and what takes several requests: run, wait, follow, watch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from datetime import date, datetime
from types import TracebackType
from typing import Any, Self, Unpack
from uuid import UUID

import httpx

from flowledger.client.address import Address
from flowledger.client.answers import Costs, ErrorGroups, WholeExecution
from flowledger.client.outcomes import completed
from flowledger.client.retries import Patience
from flowledger.client.synchronous.executions import Executions
from flowledger.client.synchronous.flows import Flows
from flowledger.client.synchronous.live import Live
from flowledger.client.synchronous.tokens import Tokens
from flowledger.client.synchronous.wire import TIMEOUTS, Wire
from flowledger.client.wanted import Options, as_params
from flowledger.domain.change import Change, ChangeKind, Topics
from flowledger.domain.dimension import Dimension
from flowledger.domain.execution import Execution
from flowledger.domain.timeline import Event
from flowledger.errors import StoppedWaiting

RETRY_SECONDS = 30.0

_INSIDE = (ChangeKind.TIMELINE, ChangeKind.LOGS)


class Client:
    """A flowledger server. Use it as `with Client() as client`, or `close` it.

    `url` and `token` None: FLOWLEDGER_URL and FLOWLEDGER_TOKEN. What fails in passing (no connection, 429, 502, 503,
    504) is sent again for `retry_seconds` if that starts nothing twice. Raises InvalidInput for a URL or a token that
    cannot be one; every request may raise ServerUnreachable, NotAuthenticated, RateLimited, UnexpectedAnswer.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeouts: httpx.Timeout = TIMEOUTS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        address = Address.of(url, token)
        self.url = address.url
        self._wire = Wire(address, timeouts, retry_seconds)
        self._live = Live(self._wire)
        self.executions = Executions(self._wire)
        self.flows = Flows(self._wire)
        self.tokens = Tokens(self._wire)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends its connections. Executions go on."""
        self._wire.close()

    def ping(self) -> None:
        """Raises ServerUnreachable or UnexpectedAnswer, without another try, unless a server answers."""
        self._wire.ping()

    # -- Running ------------------------------------------------------------------------------------------------------

    def run(
        self,
        flow: str,
        inputs: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        on_event: Callable[[Event], object] | None = None,
        patience: float | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> WholeExecution:
        """Starts a flow, waits until it has ended, and answers with its row.

        `timeout` is how many seconds it may run, `patience` how many are waited here. `on_event` is called with each
        event of its timeline as it comes. The same `idempotency_key` takes up the waiting for the same execution.
        Raises ExecutionFailed, ExecutionCancelled, ExecutionTimedOut, StoppedWaiting, and what `create` raises.
        """
        waiting = Patience(patience)
        if timeout is not None:
            options["timeout_seconds"] = timeout
        started = self.executions.create(flow, inputs, idempotency_key=idempotency_key, **options)
        if on_event is not None:
            with closing(self._events(started.id, 0, waiting)) as events:
                for event in events:
                    on_event(event)
        return completed(self._ended(started.id, waiting))

    def wait(self, execution: UUID | Execution, *, patience: float | None = None) -> WholeExecution:
        """The execution once it has ended, however it did. `patience` in seconds. Raises StoppedWaiting."""
        return self._ended(_id(execution), Patience(patience))

    def events(self, execution: UUID | Execution, *, after: int = 0) -> Generator[Event]:
        """Its timeline after a sequence number, from what has happened to what happens, until it has ended: each event
        once, whatever becomes of the connection meanwhile.
        """
        with closing(self._events(_id(execution), after, Patience(None))) as events:
            for event in events:
                yield event

    def watch(
        self, *executions: UUID | Execution, all_executions: bool = False, flows: bool = False
    ) -> Generator[Change]:
        """That something changes, as it does: of these executions, of all that the caller may see, or of the flows.

        READY comes first, and from there on nothing is missed; RESET means that anything may have changed. After a
        connection that broke the latest changes may be told once more. What has changed is for `executions.get`.
        """
        topics = Topics(frozenset(map(_id, executions)), executions=all_executions, flows=flows)
        with closing(self._live.watch(topics)) as changes:
            for change in changes:
                yield change

    def nudges(self, execution: UUID | Execution, *, patience: float | None = None) -> Generator[ChangeKind]:
        """When to look at an execution, for whoever follows it in a way of their own: at once, whenever something of it
        has changed, and once more when the `patience`, in seconds, has ended. RESET: nobody knows what has changed.
        """
        return self._live.nudges(_id(execution), Patience(patience))

    def _ended(self, execution: UUID, patience: Patience) -> WholeExecution:
        with closing(self._live.nudges(execution, patience)) as nudges:
            for kind in nudges:
                if kind in _INSIDE:
                    continue
                row = self.executions.get(str(execution))
                if row.status.is_terminal:
                    return row
        raise StoppedWaiting(row, patience.seconds or 0)

    def _events(self, execution: UUID, after: int, patience: Patience) -> Generator[Event]:
        """Ends with the patience too."""
        with closing(self._live.nudges(execution, patience)) as nudges:
            for kind in nudges:
                # Looked at first: events are written before the row ends, so a row that has ended has all of them.
                has_ended = kind not in _INSIDE and (self.executions.get(str(execution))).status.is_terminal
                for event in self.executions.timeline(str(execution), after=after):
                    after = event.sequence
                    yield event
                if has_ended:
                    return

    # -- Looking back -------------------------------------------------------------------------------------------------

    def costs(
        self,
        by: Dimension | str = Dimension.FLOW,
        *,
        since: date | str = "30d",
        until: date | str | None = None,
        flow: str | None = None,
        meeting: UUID | None = None,
    ) -> Costs:
        """What was spent, of whole days, UTC: by flow, model, user, day, mode or meeting. Users see what they spent."""
        params = as_params({"by": by, "since": since, "until": until, "flow": flow, "meeting": meeting})
        return self._wire.ask(Costs, "GET", "costs", params=params)

    def errors(
        self,
        *,
        since: datetime | str = "30d",
        until: datetime | str | None = None,
        flow: str | None = None,
        limit: int = 100,
    ) -> ErrorGroups:
        """What failed: the same error in the same place is one. Users see their own."""
        params = as_params({"since": since, "until": until, "flow": flow, "limit": limit})
        return self._wire.ask(ErrorGroups, "GET", "errors", params=params)


def _id(execution: UUID | Execution) -> UUID:
    return execution.id if isinstance(execution, Execution) else execution
