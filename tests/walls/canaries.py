"""Rows of each owner in every table, which name their owner; and whose a text is.

A canary is a row that was planted to be seen where it must not be. There is one of each owner in every table that holds
what belongs to somebody, so that no wall is looked at with nothing behind it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb

from flowledger.domain.token import PREFIX, Secret
from tests.walls.law import PEOPLE, PUBLISHED

Values = dict[str, Any]

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=1)
EARLIER = NOW - timedelta(hours=1)


def _id(*names: str) -> UUID:
    return uuid5(NAMESPACE_URL, "/".join(names))


HOUSE_FLOW = _id("flow of the house")
FLOW_KEY = "HOUSE"


@dataclass(frozen=True)
class Owner:
    """Whose rows they are, and their ids: an execution that waits, one that runs and one that failed."""

    name: str
    user: UUID | None

    @property
    def canary(self) -> str:
        return f"canary-of-{self.name}"

    @property
    def published(self) -> str:
        """In what its owner shows to all."""
        return f"shown-by-{self.name}"

    @property
    def pending(self) -> UUID:
        return _id(self.name, "pending")

    @property
    def running(self) -> UUID:
        return _id(self.name, "running")

    @property
    def ended(self) -> UUID:
        return _id(self.name, "ended")

    @property
    def executions(self) -> tuple[UUID, UUID, UUID]:
        return self.pending, self.running, self.ended

    @property
    def draft(self) -> UUID:
        return _id(self.name, "draft")

    @property
    def meeting(self) -> UUID:
        return _id(self.name, "meeting")

    @property
    def token(self) -> UUID:
        return _id(self.name, "token")

    @property
    def secret(self) -> Secret:
        """What the token says."""
        return Secret(f"{PREFIX}{self.canary}")

    @property
    def read_only_secret(self) -> Secret:
        return Secret(f"{self.secret.text}-read")

    @property
    def expired_secret(self) -> Secret:
        return Secret(f"{self.secret.text}-expired")

    @property
    def revoked_secret(self) -> Secret:
        return Secret(f"{self.secret.text}-revoked")

    @property
    def link(self) -> Secret:
        """Opens a login."""
        return Secret(f"link {self.canary}")

    @property
    def expired_link(self) -> Secret:
        return Secret(f"expired link {self.canary}")

    @property
    def session(self) -> Secret:
        """Of a login that was opened."""
        return Secret(f"session {self.canary}")

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts of which each tells that something is this owner's."""
        known = (self.user, *self.executions, self.draft, self.token, self.meeting)
        return (self.canary, *(str(one) for one in known if one))


OWNERS = {name: Owner(name, user) for name, user in PEOPLE.items()}


def owners_in(text: str) -> frozenset[str]:
    """Whose the row is that reads so; the house's if it names nobody."""
    published = {PUBLISHED + one.name for one in OWNERS.values() if one.published in text}
    return frozenset(
        published or {one.name for one in OWNERS.values() if any(mark in text for mark in one.markers)} or {"the house"}
    )


def named(name: str) -> sql.Identifier:
    """`schema.name`, quoted."""
    return sql.Identifier(*name.split(".", 1))


# -- What is planted --------------------------------------------------------------------------------------------------


def _execution(o: Owner, number: int, status: str, **more: Any) -> Values:
    return {
        "id": o.executions[number],
        "flow_id": HOUSE_FLOW,
        "execution_key": f"{FLOW_KEY}-{status}-{o.canary}",
        "input_state": {"topic": o.canary},
        "status": status,
        "board_meeting_id": o.meeting,
        "executed_by": o.user,
        "metadata": {"note": o.canary},
        "started_at": EARLIER,
        **more,
    }


def _executions(o: Owner) -> list[Values]:
    ended = {
        "output_state": {"said": o.canary},
        "error_type": f"{o.canary}.Error",
        "error_message": f"failed for {o.canary}",
        "error_stack": f"in {o.canary}",
        "completed_at": NOW,
        "duration_ms": 1000,
        "token_count": 110,
        "cost_usd": "0.01",
    }
    return [
        _execution(o, 0, "pending"),
        _execution(o, 1, "running"),
        _execution(o, 2, "failed", **ended),
    ]


def _flows(o: Owner) -> list[Values]:
    def flow(id_: UUID, text: str, status: str) -> Values:
        return {
            "id": id_,
            "flow_key": f"FLOW-{text}",
            "flow_name": f"Flow {text}",
            "description": text,
            "flow_definition": {
                "input_schema": {"properties": {text: {"type": "string"}}},
                "nodes": {text: {}},
                "edges": [],
                "start_methods": [text],
                "router_methods": [],
            },
            "python_code": text,
            "status": status,
            "created_by": o.user,
        }

    return [flow(o.draft, o.canary, "draft"), flow(_id(o.name, "published"), o.published, "active")]


def _timeline(o: Owner) -> list[Values]:
    def event(execution: UUID, sequence: int, kind: str, **fields: Any) -> Values:
        fields = {"said": o.canary, **fields}
        return {
            "execution_id": execution,
            "sequence": sequence,
            "at": NOW,
            "kind": kind,
            "name": o.canary,
            "fields": fields,
        }

    return [
        event(o.running, 1, "flow_started"),
        event(o.ended, 1, "llm_started", call=1),
        {**event(o.ended, 2, "llm_completed", call=1), "began": 1},
    ]


def _tokens(o: Owner) -> list[Values]:
    def token(secret: Secret, **more: Any) -> Values:
        given = {"user_id": o.user, "name": secret.text, "sha256": secret.sha256, "hint": secret.hint}
        return {**given, "scopes": ["run"], "created_at": EARLIER, **more}

    return [
        token(o.secret, id=o.token),
        token(o.read_only_secret, scopes=["read"]),
        token(o.expired_secret, expires_at=NOW),
        token(o.revoked_secret, revoked_at=NOW),
    ]


def _of(*names: str) -> Callable[[Owner], bool]:
    return lambda o: o.name in names


def _with_user(o: Owner) -> bool:
    """For tables whose rows always name a user."""
    return o.user is not None


def _always(_: Owner) -> bool:
    return True


@dataclass(frozen=True)
class Plant:
    """Rows of one table for each owner of whom there are any."""

    rows: Callable[[Owner], Values | list[Values]]
    of: Callable[[Owner], bool] = _always


# In the order of their references.
PLANTS: dict[str, Plant] = {
    "public.crewai_flows": Plant(_flows),
    "public.crewai_flow_executions": Plant(_executions),
    "flowledger.flow_controls": Plant(
        lambda o: {"flow_id": o.draft, "paused_at": NOW, "paused_by": o.canary, "paused_reason": o.canary}
    ),
    "flowledger.queue": Plant(lambda o: {"execution_id": o.pending, "flow_id": HOUSE_FLOW, "executed_by": o.user}),
    "flowledger.leases": Plant(
        lambda o: {
            "execution_id": o.running,
            "worker_id": _id("worker"),
            "claimed_at": NOW,
            "expires_at": LATER,
            "deadline_at": LATER,
            "flow_id": HOUSE_FLOW,
            "executed_by": o.user,
        }
    ),
    "flowledger.cancel_wishes": Plant(
        lambda o: {"execution_id": o.running, "wished_by": o.user, "reason": o.canary},
    ),
    "flowledger.transitions": Plant(
        lambda o: [
            {"execution_id": one, "to_status": "pending", "actor": str(o.user or o.canary), "reason": o.canary}
            for one in o.executions
        ]
    ),
    "flowledger.reruns": Plant(lambda o: {"execution_id": o.pending, "of_execution": o.ended, "attempt": 2}),
    "flowledger.uncounted_executions": Plant(lambda o: {"flow_id": o.draft, "born_at": NOW}),
    "flowledger.timeline": Plant(_timeline),
    "flowledger.logs": Plant(
        lambda o: [
            {"execution_id": one, "sequence": 1, "at": NOW, "stream": "stdout", "text": o.canary}
            for one in (o.running, o.ended)
        ]
    ),
    "flowledger.usage": Plant(
        lambda o: {
            "execution_id": o.ended,
            "number": 1,
            "call_id": o.canary,
            "status": "completed",
            "model": o.canary,
            "provider": o.canary,
            "started_at": NOW,
            **dict.fromkeys(("input_tokens", "output_tokens"), 100),
            **dict.fromkeys(("cached_input_tokens", "cache_write_tokens", "reasoning_tokens"), 0),
            "price": {"source": o.canary, "version": "1", "input": "50", "output": "50"},
            "cost_usd": "0.01",
        }
    ),
    "flowledger.repricings": Plant(
        lambda o: {
            "execution_id": o.ended,
            "repriced_by": o.canary,
            "old_usd": "0.01",
            "new_usd": "0.02",
            "prices": {o.canary: {"input": "100"}},
        }
    ),
    "flowledger.repriced_calls": Plant(
        lambda o: {"execution_id": o.ended, "number": 1, "price": {"source": o.canary}, "cost_usd": "0.02"}
    ),
    "flowledger.failures": Plant(
        lambda o: {
            "execution_id": o.ended,
            "fingerprint": f"print-{o.canary}",
            "failed_at": NOW,
            "flow_id": HOUSE_FLOW,
            "error_type": f"{o.canary}.Error",
            "place": o.canary,
            "message": o.canary,
        }
    ),
    "flowledger.ended_executions": Plant(
        lambda o: {
            "execution_id": o.ended,
            "listed_at": EARLIER,
            "executed_by": o.user,
            "flow_id": HOUSE_FLOW,
            "board_meeting_id": o.meeting,
            "status": "failed",
            "execution_mode": "manual",
            "error": f"{o.canary}.Error: failed for {o.canary}",
        }
    ),
    "flowledger.reservations": Plant(
        lambda o: {
            "execution_id": o.running,
            "number": 1,
            "flow_id": HOUSE_FLOW,
            "executed_by": o.user,
            "usd": "1",
            "tokens": 1,
        }
    ),
    "flowledger.unfolded_spending": Plant(
        lambda o: {"day": NOW.date(), "flow_id": HOUSE_FLOW, "executed_by": o.user, "model": o.canary, "calls": 1}
    ),
    "flowledger.spending": Plant(
        lambda o: [
            {"dimension": dimension, "day": NOW.date(), "key": key, "calls": 1}
            for dimension, key in (("user", str(o.user)), ("model", o.canary))
            if o.user or dimension == "model"
        ]
    ),
    "flowledger.budgets": Plant(
        lambda o: {"scope": "user", "user_id": o.user, "period": "month", "usd": "1000000", "set_by": o.canary}
    ),
    "flowledger.tokens": Plant(_tokens, _with_user),
    "flowledger.logins": Plant(
        lambda o: [
            {"user_id": o.user, "link_sha256": o.link.sha256, "link_expires_at": LATER},
            {"user_id": o.user, "link_sha256": o.expired_link.sha256, "link_expires_at": EARLIER},
            {
                "user_id": o.user,
                "link_sha256": Secret(f"opened {o.canary}").sha256,
                "link_expires_at": LATER,
                "session_sha256": o.session.sha256,
                "session_expires_at": LATER,
            },
        ],
        _with_user,
    ),
    "flowledger.requests": Plant(
        lambda o: {"user_id": o.user, "key": o.canary, "digest": o.canary.encode(), "execution_id": o.ended}, _with_user
    ),
    "flowledger.workers": Plant(
        lambda _: {"id": _id("worker"), "host": "house", "pid": 1, "version": "0", "slots": 1}, _of("nobody")
    ),
    "flowledger.watchers": Plant(lambda _: {"id": _id("watcher"), "waits_until": EARLIER}, _of("nobody")),
    "flowledger.prunes": Plant(
        lambda o: {"pruned_by": o.canary, "statuses": ["failed"], "ended_before": EARLIER}, _of("carol")
    ),
    "flowledger.prices": Plant(
        lambda o: {"model": "gpt", "input_usd": "1", "output_usd": "1", "set_by": o.canary}, _of("carol")
    ),
}

BELONG_TO_NOBODY = {
    "flowledger.settings": "limits of the whole installation",
    "flowledger.schema_migrations": "the migrations that were applied",
    "flowledger.workers": "processes of the operators",
    "flowledger.watchers": "servers that wait for changes",
    "flowledger.prunes": "what operators deleted, as numbers",
    "flowledger.prices": "what models cost, which is no secret",
}
"""Tables that hold nothing of any one user's, and why."""


def plant(owner: psycopg.Connection[Any]) -> None:
    """Plants all of it in an empty ledger, as the schema's owner. No trigger judges it."""
    with owner.transaction():
        tables = ("crewai_flow_executions", "flowledger.transitions", "flowledger.timeline", "flowledger.logs")
        _triggers(owner, tables, "disable")
        house = {"id": HOUSE_FLOW, "flow_key": FLOW_KEY, "flow_name": "House", "flow_definition": {}}
        _insert(owner, "public.crewai_flows", {**house, "status": "active"})
        for table, planted in PLANTS.items():
            for one in OWNERS.values():
                if planted.of(one):
                    rows = planted.rows(one)
                    for row in rows if isinstance(rows, list) else [rows]:
                        _insert(owner, table, row)
        _triggers(owner, tables, "enable")


def _triggers(owner: psycopg.Connection[Any], tables: Iterable[str], able: str) -> None:
    for table in tables:
        owner.execute(f"alter table {table} {able} trigger user".encode())


def _insert(owner: psycopg.Connection[Any], table: str, row: Values) -> None:
    values = [Jsonb(value) if isinstance(value, dict) else value for value in row.values()]
    statement = sql.SQL("insert into {} ({}) values ({})").format(
        named(table), sql.SQL(", ").join(map(sql.Identifier, row)), sql.SQL(", ").join([sql.Placeholder()] * len(row))
    )
    owner.execute(statement, values)


def everything_of(conn: psycopg.Connection[Any], *but: str) -> dict[str, list[str]]:
    """Every row of every planted table as text, except those that name one of `but` alone: to see what has changed."""
    seen: dict[str, list[str]] = {}
    with conn.cursor(row_factory=tuple_row) as cursor:
        for table, row in cursor.execute(_EVERY_ROW).fetchall():
            if not owners_in(row) <= set(but):
                seen.setdefault(table, []).append(row)
    return {table: sorted(rows) for table, rows in seen.items()}


_EVERY_ROW = sql.SQL(" union all ").join(
    sql.SQL("select {}, t::text from {} as t").format(table, named(table)) for table in PLANTS
)


def told(text: str, of: str, asked: Iterable[str] = ()) -> list[str]:
    """What of this owner's a text tells to somebody who said `asked` and may be answered with it."""
    for one in sorted(asked, key=len, reverse=True):
        text = text.replace(one, "").replace(json.dumps(one)[1:-1], "")
    return [mark for mark in OWNERS[of].markers if mark in text]
