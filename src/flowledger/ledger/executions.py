"""Executions in the order of their life: record, claim, renew, finish, cancel, reap; and how they are read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from flowledger.database.session import Claims, Connection
from flowledger.domain.execution import Claim, Execution, Finish, NewExecution, Outcome, Rerun, Transition
from flowledger.domain.mode import Mode
from flowledger.domain.status import Status
from flowledger.errors import AmbiguousReference, ExecutionNotFound, FlowNotFound, InvalidInput
from flowledger.sql import query


async def record(connection: Connection, new: NewExecution) -> Execution:
    """Inserts a pending row as the session's user.

    Raises FlowNotFound, InvalidInput (the key is taken), QueueFull, PermissionRefused.
    """
    metadata = new.asked_for
    try:
        row = await _one(
            connection,
            query("executions", "record"),
            flow_key=new.flow_key,
            execution_key=new.execution_key,
            inputs=Jsonb(new.inputs),
            board_meeting_id=new.board_meeting_id,
            metadata=Jsonb(metadata) if metadata else None,
        )
    except psycopg.errors.UniqueViolation as taken:
        raise InvalidInput(
            "execution_key", f"{new.execution_key} is taken", "Leave it out and the ledger makes one."
        ) from taken
    except psycopg.DataError as unfit:
        raise InvalidInput("inputs", f"cannot be stored: {unfit.diag.message_primary}") from unfit
    if row is None:
        raise FlowNotFound(new.flow_key)
    return _execution(row)


async def claim(
    connection: Connection,
    worker: UUID,
    timeouts: Mapping[UUID, float],
    slots: int,
    lease: timedelta,
    among: Sequence[UUID] | None = None,
) -> list[Claim]:
    """Takes up to `slots` pending executions of the flows in `timeouts` (flow id -> seconds), oldest first.

    `among`, unless None, narrows the claim to these executions. Fewer than `slots` mean: the queue is empty, the worker
    is marked as waiting, and must claim once more before it sleeps.
    """
    rows = await _all(
        connection,
        query("executions", "claim"),
        worker=worker,
        flows=list(timeouts),
        timeouts=list(timeouts.values()),
        slots=slots,
        lease=lease,
        among=None if among is None else list(among),
    )
    return [Claim(**{**row, "execution_mode": Mode(row["execution_mode"])}) for row in rows]


@dataclass(frozen=True)
class Held:
    """A lease that was renewed, and whether its owner wants the execution ended."""

    execution_id: UUID
    fence: int
    cancel_wished: bool
    cancel_reason: str | None


async def renew(connection: Connection, worker: UUID, fences: Mapping[UUID, int], lease: timedelta) -> list[Held]:
    """Keeps the leases of `fences` (execution id -> fence). One that is not answered is lost."""
    rows = await _all(
        connection,
        query("executions", "renew"),
        worker=worker,
        executions=list(fences),
        fences=list(fences.values()),
        lease=lease,
    )
    return [Held(**row) for row in rows]


async def finish(connection: Connection, execution: UUID, fence: int, outcome: Outcome) -> Finish:
    """Writes the outcome if the execution still runs under this fence; idempotent.

    An outcome that Postgres cannot store must not leave the row running, so there is a ladder: the whole outcome, else
    `failed` with OutputNotStorable, else the bare status. Raises DatabaseUnreachable and other trouble that passes: try
    again then.
    """
    outcome = _clamped(outcome)
    for rung in (outcome, _not_storable(outcome), Outcome(Status.FAILED, error_type="OutputNotStorable")):
        try:
            return await _finish(connection, execution, fence, rung)
        except (psycopg.Error, ValueError, TypeError, RecursionError) as unfit:
            if _passes(unfit):
                raise
            refusal = unfit
    raise refusal


def _passes(trouble: Exception) -> bool:
    """Connection loss, deadlocks, want of resources. Anything else Postgres refuses again at the next attempt."""
    return (
        isinstance(trouble, psycopg.OperationalError | psycopg.InterfaceError)
        and (trouble.sqlstate or "")[:2] not in _FINAL
    )


_FINAL = ("54", "FL")
"""SQLSTATE classes that psycopg counts among the operational ones: program limits, and the law's own refusals."""


def _clamped(outcome: Outcome) -> Outcome:
    """What the flow's process counted may be anything; the columns hold what lies between two bounds."""
    given = {"token_count": outcome.token_count, "cost_usd": outcome.cost_usd, "began_after_ms": outcome.began_after_ms}
    fit = {name: _fit(value, *_BOUNDS[name]) for name, value in given.items()}
    true = {name: str(given[name])[:100] for name in given if fit[name] != given[name]}
    if not true:
        return outcome
    metadata = {**outcome.metadata, "clamped": {**outcome.metadata.get("clamped", {}), **true}}
    return replace(outcome, metadata=metadata, **fit)


def _fit(value: Any, least: Any, most: Any) -> Any:
    """The nearest that the column holds; None for what is no number."""
    # Only NaN differs from itself.
    if value is None or value != value:
        return None
    return min(max(value, least), most)


_MOST_INTEGER = 2**31 - 1
_BOUNDS = {
    "token_count": (0, _MOST_INTEGER),
    "cost_usd": (Decimal(0), Decimal("999999.9999")),
    "began_after_ms": (0, _MOST_INTEGER),
}


async def _finish(connection: Connection, execution: UUID, fence: int, outcome: Outcome) -> Finish:
    row = await _one(
        connection,
        query("executions", "finish"),
        execution=execution,
        fence=fence,
        status=outcome.status,
        output_state=None if outcome.output_state is None else Jsonb(outcome.output_state),
        error_type=outcome.error_type,
        error_message=outcome.error_message,
        error_stack=outcome.error_stack,
        token_count=outcome.token_count,
        cost_usd=outcome.cost_usd,
        began_after_ms=outcome.began_after_ms,
        metadata=Jsonb(outcome.metadata),
    )
    assert row is not None
    return Finish(row["answer"])


def _not_storable(outcome: Outcome) -> Outcome:
    try:
        size = f"{len(json.dumps(outcome.output_state, default=repr)):,} bytes"
    except (ValueError, TypeError, RecursionError):
        size = "a size that cannot be told"
    return replace(
        outcome,
        status=Status.FAILED if outcome.status is Status.COMPLETED else outcome.status,
        output_state=None,
        error_type="OutputNotStorable",
        error_message=f"Postgres cannot store this {outcome.status} outcome; its output has {size}.",
        error_stack=None,
        token_count=None,
        cost_usd=None,
        metadata={},
    )


async def cancel(connection: Connection, execution: UUID, reason: str | None) -> str:
    """Asks to end an execution. Answers `cancelled` (it had not started), `wished` or `ended` (too late).

    Raises ExecutionNotFound when there is none that the caller may cancel.
    """
    row = await _one(connection, query("executions", "cancel"), execution=execution, reason=reason)
    assert row is not None
    if row["answer"] == "unknown":
        raise ExecutionNotFound(str(execution))
    return str(row["answer"])


async def reap(connection: Connection, grace: timedelta) -> list[tuple[UUID, Status]]:
    """Ends running executions whose lease ran out more than `grace` ago, by the database's clock."""
    rows = await _all(connection, query("executions", "reap"), grace=grace)
    return [(row["execution_id"], Status(row["status"])) for row in rows]


async def expire(connection: Connection) -> list[UUID]:
    """Ends pending executions that waited longer than they may."""
    return [row["execution_id"] for row in await _all(connection, query("executions", "expire"))]


# -- Reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inside:
    """A place in a row's JSON: `root` is one of its three JSON columns, `path` leads into it, `value` is what must
    stand there, as text; None: anything.
    """

    root: str
    path: tuple[str, ...]
    value: str | None = None


@dataclass(frozen=True)
class Filters:
    """Which executions to list; None takes all. `since` is inclusive, `until` exclusive, both compare started_at.

    `search` is a part of the error's type or message, in any case of letters.
    """

    statuses: tuple[Status, ...] | None = None
    flow_key: str | None = None
    mode: Mode | None = None
    since: datetime | None = None
    until: datetime | None = None
    meeting: UUID | None = None
    by: UUID | None = None
    search: str | None = None
    inside: Inside | None = None

    @property
    def most_searched(self) -> int | None:
        """How many executions one page looks through; None: those that it shows."""
        if self.inside is not None:
            return _MOST_READ
        return None if self.search is None else _MOST_SEARCHED

    def as_values(self) -> dict[str, Any]:
        """As the queries take them. One status is given apart from several: rows of one lie in order in their index."""
        statuses = None if self.statuses is None else [str(status) for status in dict.fromkeys(self.statuses)]
        several = statuses is not None and len(statuses) != 1
        return {
            "by": self.by,
            "statuses": statuses if several else None,
            "status": None if several or statuses is None else statuses[0],
            "flow_key": self.flow_key,
            "mode": self.mode,
            "since": self.since,
            "until": self.until,
            "meeting": self.meeting,
            "search": None if self.search is None else f"%{_LIKE.sub(_ESCAPED, self.search)}%",
            "root": self.inside and self.inside.root,
            "path": self.inside and list(self.inside.path),
            "value": self.inside and self.inside.value,
        }


_LIKE = re.compile(r"([\\%_])")
_ESCAPED = r"\\\1"

_MOST_SEARCHED = 10_000
_MOST_READ = 3_000
"""A search that finds nothing must end as soon as one that does. Reading a payload costs more than reading an error."""


@dataclass(frozen=True)
class Place:
    """Where a page ended: the next one begins after it."""

    started_at: datetime
    id: UUID

    def __str__(self) -> str:
        return f"{self.started_at.isoformat()}/{self.id}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """Reads what `str()` wrote. Raises InvalidInput."""
        started_at, _, id_ = text.rpartition("/")
        try:
            return cls(datetime.fromisoformat(started_at), UUID(id_))
        except ValueError as wrong:
            raise InvalidInput(
                "after", f"{text!r} is no place in a list", "Use the `next` of the page before."
            ) from wrong


@dataclass(frozen=True)
class Found:
    """Executions that a page consists of. `next` None: there are no more.

    A search looks through so many executions at most. Its page may hold few or none, and still have a `next`.
    """

    ids: tuple[UUID, ...]
    next: Place | None


async def search(
    connection: Connection, claims: Claims, filters: Filters, *, limit: int, after: Place | None = None
) -> Found:
    """Which executions a page consists of, newest first: the user's own, or anybody's for an operator."""
    candidates = filters.most_searched or limit + 1
    rows = await _all(
        connection,
        _own_or_all("list", claims),
        user=claims.user,
        **filters.as_values(),
        after_started_at=after and after.started_at,
        after_id=after and after.id,
        candidates=candidates,
        # One more than asked for tells whether there is a next page.
        limit=limit + 1,
    )
    shown = rows[:limit]
    is_more = len(rows) > limit or (bool(rows) and rows[-1]["rank"] == candidates)
    return Found(
        tuple(row["id"] for row in shown if row["matches"]),
        Place(shown[-1]["listed_at"], shown[-1]["id"]) if is_more else None,
    )


@dataclass(frozen=True)
class Page:
    """Executions, newest first. `next` None: there are no more."""

    executions: list[Execution]
    next: Place | None


async def page(
    connection: Connection,
    claims: Claims,
    filters: Filters,
    *,
    limit: int,
    after: Place | None = None,
    largest: int | None = None,
) -> Page:
    """A page of executions. Of JSON and text that takes more than `largest` bytes, unless that is None, the row tells
    the size or a part: `{LARGE: bytes}`.
    """
    found = await search(connection, claims, filters, limit=limit, after=after)
    if not found.ids:
        return Page([], found.next)
    rows = await _all(connection, _own_or_all("rows", claims), user=claims.user, ids=list(found.ids), largest=largest)
    by_id = {row["id"]: _execution(row) for row in rows}
    # One that was deleted in between is left out.
    return Page([by_id[id_] for id_ in found.ids if id_ in by_id], found.next)


LARGE = "$large"
"""The only key of what stands in a list for a JSON value that is too large for it; its value is the size in bytes."""


async def list_(
    connection: Connection, claims: Claims, filters: Filters, *, limit: int, after: Place | None = None
) -> list[Execution]:
    """A page of executions in full, newest first: the user's own, or everybody's for an operator."""
    return (await page(connection, claims, filters, limit=limit, after=after)).executions


async def export(
    connection: Connection, claims: Claims, executions: Sequence[UUID], most_bytes: int
) -> list[dict[str, Any]]:
    """The first of these executions, as many as take `most_bytes` in the database and at least one: every column, JSON
    as its text. Empty when none of them is there any more.
    """
    return await _all(
        connection,
        _own_or_all("export", claims),
        user=claims.user,
        ids=list(executions),
        most_bytes=most_bytes,
    )


@dataclass(frozen=True)
class States:
    """What went in and what came out, as JSON text: also what Python would not read. None: nothing."""

    input_state: str | None
    output_state: str | None


async def states(connection: Connection, claims: Claims, execution: UUID) -> States:
    """Raises ExecutionNotFound."""
    row = await _one(connection, _own_or_all("states", claims), user=claims.user, execution=execution)
    if row is None:
        raise ExecutionNotFound(str(execution))
    return States(**row)


def _own_or_all(name: str, claims: Claims) -> LiteralString:
    """Two statements for one question: users ask for their own rows by name, operators through a view."""
    return query("executions", f"{name}_of_all" if claims.is_operator else f"{name}_of_user")


async def find(connection: Connection, claims: Claims, reference: str) -> Execution:
    """The execution that `reference` names: its id, a prefix of at least 4 hexadecimal digits, or its key.

    Raises ExecutionNotFound, AmbiguousReference.
    """
    return _execution(await _only(connection, claims, "find", reference))


@dataclass(frozen=True)
class Identity:
    """Which execution it is, and how far it is."""

    id: UUID
    status: Status


async def identify(connection: Connection, claims: Claims, reference: str) -> Identity:
    """The same without the row, for whoever wants what belongs to it. Raises ExecutionNotFound, AmbiguousReference."""
    row = await _only(connection, claims, "identify", reference)
    return Identity(row["id"], _status(row))


async def _only(connection: Connection, claims: Claims, how: str, reference: str) -> dict[str, Any]:
    first, last = _range_of(reference)
    rows = await _all(
        connection,
        _own_or_all(how, claims),
        user=claims.user,
        first_id=first,
        last_id=last,
        reference=reference,
    )
    # Anybody may choose another's id as a key of their own: what is a whole id names that execution first.
    named = [row for row in rows if first == row["id"] == last] or rows
    if not named:
        raise ExecutionNotFound(reference)
    if len(named) > 1:
        raise AmbiguousReference(reference, tuple(str(row["id"]) for row in named))
    return named[0]


def _range_of(reference: str) -> tuple[UUID | None, UUID | None]:
    """The ids that begin with `reference`; nothing if it cannot begin one."""
    digits = reference.replace("-", "").lower()
    if not 4 <= len(digits) <= 32 or set(digits) - set("0123456789abcdef"):
        return None, None
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


@dataclass(frozen=True)
class Ended:
    """How an execution ended, briefly. `duration_ms` None: it never started."""

    flow_key: str
    status: Status
    error_type: str | None
    duration_ms: int | None
    events_dropped: int


async def ended(connection: Connection, ids: Sequence[UUID]) -> list[Ended]:
    """How these executions ended; those that go on are left out. For operators."""
    rows = await _all(connection, query("executions", "ended"), executions=list(ids))
    return [
        Ended(**{**row, "status": Status(row["status"]), "events_dropped": _counted(row["events_dropped"])})
        for row in rows
    ]


def _counted(given: Any) -> int:
    """Metadata is also its user's, who may have put anything there."""
    return min(given, _MOST_INTEGER) if isinstance(given, int) and given > 0 else 0


async def transitions(connection: Connection, execution: UUID) -> list[Transition]:
    """Every step of the execution that the session may see, its birth first."""
    rows = await _all(connection, query("executions", "transitions"), execution=execution)
    return [
        Transition(
            **{
                **row,
                "from_status": Status(row["from_status"]) if row["from_status"] else None,
                "to_status": Status(row["to_status"]),
            }
        )
        for row in rows
    ]


async def reruns(connection: Connection, execution: UUID) -> list[Rerun]:
    """What the execution repeats and what repeats it, as far as the session may see."""
    return [Rerun(**row) for row in await _all(connection, query("executions", "reruns"), execution=execution)]


def _execution(row: Mapping[str, Any]) -> Execution:
    return Execution(
        **{
            **row,
            "status": _status(row),
            "execution_mode": Mode(row["execution_mode"] or Mode.MANUAL),
            "flow_key": row["flow_key"] or "",
        },
    )


def _status(row: Mapping[str, Any]) -> Status:
    """Tables that were here before flowledger may hold NULL, where the column's default would have said pending."""
    return Status(row["status"] or Status.PENDING)


async def _all(connection: Connection, text: LiteralString, **values: Any) -> list[dict[str, Any]]:
    return await (await connection.execute(text, values)).fetchall()


async def _one(connection: Connection, text: LiteralString, **values: Any) -> dict[str, Any] | None:
    return await (await connection.execute(text, values)).fetchone()
