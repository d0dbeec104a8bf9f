"""The error tree: what can go wrong, told in facts, with the remedy beside it.

An error carries fields, never a formatted sentence, so that it crosses a pipe whole and is put into words in one place
per audience: exit codes in `cli/exits.py`, problems in the API. `title` says what is wrong; `hint` says what to do.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar


class FlowledgerError(Exception):
    """Something flowledger can name. `code` is stable and meant for programs."""

    code: ClassVar[str] = "error"

    @property
    def title(self) -> str:
        return "something went wrong"

    @property
    def hint(self) -> str:
        return ""

    def __str__(self) -> str:
        return f"{self.title}. {self.hint}" if self.hint else self.title

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), {field.name: getattr(self, field.name) for field in fields(self)})  # type: ignore[arg-type]


def _rebuild(kind: type[FlowledgerError], facts: dict[str, Any]) -> FlowledgerError:
    return kind(**facts)


# -- What the caller gave us ------------------------------------------------------------------------------------------


@dataclass(eq=False)
class InvalidInput(FlowledgerError):
    """A value that cannot be used. `field` names where it was given, `problem` what is wrong with it."""

    code = "invalid_input"
    field: str
    problem: str
    remedy: str = ""

    @property
    def title(self) -> str:
        return f"{self.field}: {self.problem}"

    @property
    def hint(self) -> str:
        return self.remedy


@dataclass(eq=False)
class FlowNotFound(FlowledgerError):
    """No flow answers to this name. `suggestions` are the nearest known ones."""

    code = "flow_not_found"
    name: str
    suggestions: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"there is no flow {self.name!r}"

    @property
    def hint(self) -> str:
        if self.suggestions:
            return f"Did you mean {' or '.join(self.suggestions)}?"
        return "`flowledger flows list` shows the flows of this project."


@dataclass(eq=False)
class ExecutionNotFound(FlowledgerError):
    """No execution answers to this id, prefix or key, or the caller may not see it."""

    code = "execution_not_found"
    reference: str

    @property
    def title(self) -> str:
        return f"there is no execution {self.reference!r}"

    @property
    def hint(self) -> str:
        return "`flowledger executions list` shows the recent ones."


@dataclass(eq=False)
class AmbiguousReference(FlowledgerError):
    """A prefix that more than one execution begins with."""

    code = "ambiguous_reference"
    reference: str
    matches: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.reference!r} could be {', '.join(self.matches)}"

    @property
    def hint(self) -> str:
        return "Give more characters of the id."


@dataclass(eq=False)
class NotAuthenticated(FlowledgerError):
    """Nobody knows who asks. `reason` says what is wrong with the token."""

    code = "not_authenticated"
    reason: str

    @property
    def title(self) -> str:
        return f"who asks is not known: {self.reason}"

    @property
    def hint(self) -> str:
        return "Send `Authorization: Bearer TOKEN`; `flowledger tokens create` makes one."


@dataclass(eq=False)
class ScopeRefused(FlowledgerError):
    """A personal token may not do this, although its user may. `needed` is the scope that may."""

    code = "scope_refused"
    scopes: tuple[str, ...]
    needed: str

    @property
    def title(self) -> str:
        return f"this token's scope is {', '.join(self.scopes)}; this needs {self.needed}"

    @property
    def hint(self) -> str:
        return f"`flowledger tokens create NAME --scope {self.needed}` makes one that may."


@dataclass(eq=False)
class OriginRefused(FlowledgerError):
    """A page of another origin wanted to act with the browser's login. `origin` empty: the request tells none."""

    code = "origin_refused"
    origin: str

    @property
    def title(self) -> str:
        return f"a login acts from flowledger's own pages only, not from {self.origin or 'nowhere'}"

    @property
    def hint(self) -> str:
        return "Programs send `Authorization: Bearer TOKEN` in place of the cookie."


@dataclass(eq=False)
class RateLimited(FlowledgerError):
    """One identity asks more often than it may. `seconds` is when it may ask again."""

    code = "rate_limited"
    limit: str
    seconds: int

    @property
    def title(self) -> str:
        return f"that is more than {self.limit}"

    @property
    def hint(self) -> str:
        return f"Wait {self.seconds} s, or raise FLOWLEDGER_RATE_LIMIT."


@dataclass(eq=False)
class KeysUnavailable(FlowledgerError):
    """The keys that JWTs are checked with cannot be had from where they are published."""

    code = "keys_unavailable"
    place: str
    reason: str

    @property
    def title(self) -> str:
        return f"the keys of {self.place} cannot be had: {self.reason}"

    @property
    def hint(self) -> str:
        return "Check FLOWLEDGER_JWKS_URL or FLOWLEDGER_JWKS_FILE; personal tokens work meanwhile."


@dataclass(eq=False)
class TokenNotFound(FlowledgerError):
    """No living token of the caller's answers to this name or id."""

    code = "token_not_found"
    reference: str

    @property
    def title(self) -> str:
        return f"there is no token {self.reference!r}"

    @property
    def hint(self) -> str:
        return "`flowledger tokens list` shows them."


@dataclass(eq=False)
class TooManyStreams(FlowledgerError):
    """As many live streams as one identity may have open at one server."""

    code = "too_many_streams"
    limit: int

    @property
    def title(self) -> str:
        return f"{self.limit} live streams of this identity are open already"

    @property
    def hint(self) -> str:
        return "Close one, or follow several topics with one stream: ?topics=execution:A,execution:B."


@dataclass(eq=False)
class PriceNotFound(FlowledgerError):
    """The team has set no such price. `known` are those that it has for the model."""

    code = "price_not_found"
    model: str
    known: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"the team has set no such price of {self.model}"

    @property
    def hint(self) -> str:
        if self.known:
            return f"There is {' and '.join(self.known)}."
        return "`flowledger prices list` shows the prices."


@dataclass(eq=False)
class BudgetNotFound(FlowledgerError):
    """No window has this id."""

    code = "budget_not_found"
    id: int

    @property
    def title(self) -> str:
        return f"there is no budget {self.id}"

    @property
    def hint(self) -> str:
        return "`flowledger budgets list` shows them."


# -- The project whose flows we run -----------------------------------------------------------------------------------


@dataclass(eq=False)
class ProjectNotFound(FlowledgerError):
    """The path holds no CrewAI project."""

    code = "project_not_found"
    path: str

    @property
    def title(self) -> str:
        return f"{self.path} holds no CrewAI flow project"

    @property
    def hint(self) -> str:
        return (
            'Run inside a project whose pyproject.toml says [tool.crewai] type = "flow", or name a directory, '
            "a file or a module with --project."
        )


@dataclass(eq=False)
class ProjectUnusable(FlowledgerError):
    """The project's interpreter could not be started, or it holds no CrewAI that we know."""

    code = "project_unusable"
    path: str
    reason: str
    remedy: str = ""

    @property
    def title(self) -> str:
        return f"the project in {self.path} cannot be loaded: {self.reason}"

    @property
    def hint(self) -> str:
        return self.remedy


# -- The database -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class DatabaseUnreachable(FlowledgerError):
    """Nobody answers at the database's address, or it turns us away."""

    code = "database_unreachable"
    address: str
    reason: str

    @property
    def title(self) -> str:
        return f"the database at {self.address} cannot be reached: {self.reason}"

    @property
    def hint(self) -> str:
        return "Check FLOWLEDGER_DATABASE_URL, or unset it to use the embedded Postgres."


@dataclass(eq=False)
class DatabaseBusy(FlowledgerError):
    """The database is there and cannot do this now: full, out of connections, or two changes met. It passes."""

    code = "database_busy"
    reason: str

    @property
    def title(self) -> str:
        return f"the database cannot do this now: {self.reason}"

    @property
    def hint(self) -> str:
        return "Try again; if it stays so, look at the database's disk and max_connections."


@dataclass(eq=False)
class SchemaTooOld(FlowledgerError):
    """The database's schema is older than this version of flowledger needs. Version 0 means: not installed."""

    code = "schema_too_old"
    found: int
    needed: int

    @property
    def title(self) -> str:
        if self.found == 0:
            return "this database holds no flowledger schema"
        return f"the database has schema {self.found}, this flowledger needs {self.needed}"

    @property
    def hint(self) -> str:
        return "Run `flowledger db migrate`."


@dataclass(eq=False)
class SchemaTooNew(FlowledgerError):
    """The database was migrated by a later version of flowledger than this one."""

    code = "schema_too_new"
    found: int
    known: int

    @property
    def title(self) -> str:
        return f"the database has schema {self.found}, this flowledger knows {self.known} at most"

    @property
    def hint(self) -> str:
        return "Upgrade flowledger on this machine."


@dataclass(eq=False)
class ServerTooOld(FlowledgerError):
    """Postgres itself is older than the oldest version that flowledger is made for."""

    code = "server_too_old"
    found: str
    needed: str

    @property
    def title(self) -> str:
        return f"this is Postgres {self.found}; flowledger needs {self.needed} or later"

    @property
    def hint(self) -> str:
        return "Use a newer Postgres, or unset FLOWLEDGER_DATABASE_URL to use the embedded one."


@dataclass(eq=False)
class SchemaNotOurs(FlowledgerError):
    """The database holds something under our names that is not what we would have made."""

    code = "schema_not_ours"
    differences: tuple[str, ...]

    @property
    def title(self) -> str:
        return "the database already holds something else under flowledger's names:\n  " + "\n  ".join(self.differences)

    @property
    def hint(self) -> str:
        return "Use another database, or rename what is there; nothing was changed."


@dataclass(eq=False)
class MigrationChanged(FlowledgerError):
    """A migration that was applied here reads differently now."""

    code = "migration_changed"
    name: str

    @property
    def title(self) -> str:
        return f"migration {self.name} was applied to this database with other content"

    @property
    def hint(self) -> str:
        return "Migrations never change once released: reinstall flowledger, or restore the file."


@dataclass(eq=False)
class EmbeddedPostgresFailed(FlowledgerError):
    """The private Postgres could not be started."""

    code = "embedded_postgres_failed"
    reason: str
    remedy: str = ""

    @property
    def title(self) -> str:
        return f"the embedded Postgres did not start: {self.reason}"

    @property
    def hint(self) -> str:
        return self.remedy


@dataclass(eq=False)
class ArchiveFailed(FlowledgerError):
    """What was to be deleted could not be archived; nothing was deleted."""

    code = "archive_failed"
    place: str
    reason: str
    remedy: str = ""

    @property
    def title(self) -> str:
        return f"{self.place} could not be written: {self.reason}"

    @property
    def hint(self) -> str:
        return self.remedy or "Nothing was deleted. Remove the unfinished directory and try again."


# -- What the ledger refuses ------------------------------------------------------------------------------------------


@dataclass(eq=False)
class PermissionRefused(FlowledgerError):
    """Postgres does not let this identity do this (SQLSTATE 42501)."""

    code = "permission_refused"
    reason: str

    @property
    def title(self) -> str:
        return f"not permitted: {self.reason}"

    @property
    def hint(self) -> str:
        return "Users create and read their own executions only; everything else needs the service role."


@dataclass(eq=False)
class TransitionRefused(FlowledgerError):
    """The law of the six statuses forbids this step (SQLSTATEs FL001 to FL004, see docs/lifecycle.md)."""

    code = "transition_refused"
    reason: str

    @property
    def title(self) -> str:
        return self.reason


@dataclass(eq=False)
class FeedbackNotAwaited(FlowledgerError):
    """Feedback for an execution that waits for none: flows that pause for people are not supported yet."""

    code = "feedback_not_awaited"
    execution: str

    @property
    def title(self) -> str:
        return f"execution {self.execution} is not in pending human input state"

    @property
    def hint(self) -> str:
        return "Executions of this version never wait for people; start another with what they said among its inputs."


@dataclass(eq=False)
class QueueFull(FlowledgerError):
    """As many executions wait as the ledger accepts (SQLSTATE FL006)."""

    code = "queue_full"
    limit: int

    @property
    def title(self) -> str:
        return f"the queue is full: {self.limit:,} executions are waiting"

    @property
    def hint(self) -> str:
        return "Start more workers, or raise queue_limit in the table flowledger.settings."


@dataclass(eq=False)
class BudgetUsedUp(FlowledgerError):
    """What may be spent in a day or a month is spent, so nothing starts (SQLSTATE FL007)."""

    code = "budget_used_up"
    reason: str

    @property
    def title(self) -> str:
        return self.reason

    @property
    def hint(self) -> str:
        return "Wait for the next window, or have an operator raise it: `flowledger budgets list`."


# -- What a client meets ----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class ServerUnreachable(FlowledgerError):
    """Nobody answers at the server's address, or the answer broke off and was not to be had again."""

    code = "server_unreachable"
    address: str
    reason: str

    @property
    def title(self) -> str:
        return f"the server at {self.address} cannot be reached: {self.reason}"

    @property
    def hint(self) -> str:
        return "Check FLOWLEDGER_URL, and that `flowledger up` or `flowledger server` runs there."


@dataclass(eq=False)
class UnexpectedAnswer(FlowledgerError):
    """An answer of the server that this version has no error of its own for.

    `problem` is the code that it gave, empty if it gave none. `request_id` finds it in the server's log.
    """

    code = "unexpected_answer"
    status: int
    problem: str
    what: str
    remedy: str = ""
    request_id: str = ""

    @property
    def title(self) -> str:
        return self.what

    @property
    def hint(self) -> str:
        found = f"Its log tells more about request {self.request_id}." if self.request_id else ""
        return " ".join(part for part in (self.remedy, found) if part)


@dataclass(eq=False)
class NotCompleted(FlowledgerError):
    """An execution that was waited for ended otherwise than completed. `execution` is its row."""

    code = "not_completed"
    execution: Any

    @property
    def title(self) -> str:
        row = self.execution
        told = f"{row.flow_key} {self._happened}: execution {row.execution_key}"
        why = ": ".join(part for part in (row.error_type, row.error_message) if part)
        return f"{told}, {why}" if why else told

    @property
    def hint(self) -> str:
        return f"`flowledger executions show {self.execution.id} --timeline --error` tells more."

    @property
    def _happened(self) -> str:
        return "did not complete"


@dataclass(eq=False)
class ExecutionFailed(NotCompleted):
    """The execution that was waited for failed."""

    code = "execution_failed"

    @property
    def _happened(self) -> str:
        return "failed"


@dataclass(eq=False)
class ExecutionCancelled(NotCompleted):
    """The execution that was waited for was cancelled."""

    code = "execution_cancelled"

    @property
    def _happened(self) -> str:
        return "was cancelled"


@dataclass(eq=False)
class ExecutionTimedOut(NotCompleted):
    """The execution that was waited for reached its timeout, or waited too long for a worker."""

    code = "execution_timed_out"

    @property
    def _happened(self) -> str:
        return "ran out of time"


@dataclass(eq=False)
class StoppedWaiting(FlowledgerError):
    """Whoever waited for an execution has no more patience; it goes on. `execution` is its row."""

    code = "stopped_waiting"
    execution: Any
    seconds: float

    @property
    def title(self) -> str:
        row = self.execution
        return f"{row.flow_key} has not ended within {self.seconds:g} s: execution {row.execution_key}"

    @property
    def hint(self) -> str:
        return f"It goes on: `flowledger executions watch {self.execution.id}`."
