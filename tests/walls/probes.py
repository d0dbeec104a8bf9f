"""What an identity really reaches: each command is tried in a transaction that is taken back."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import dict_row, tuple_row

from tests.walls.canaries import named, owners_in
from tests.walls.law import DELETE, GARBAGE, IDENTITIES, INSERT, NONE, READ, UPDATE, Identity, Owners, Rule

Connection = psycopg.Connection[Any]

DENIED = "permission denied"
STRANGER = UUID("57a4e000-0000-4000-8000-00000000000f")
SCHEMAS = ["public", "flowledger", "auth"]

_STOPPED_BEHIND = ("23", "FL")
"""SQLSTATE classes of the schema's own rules: what only they stop has passed the walls."""


@dataclass(frozen=True)
class Table:
    """What is tried on a table or view. Of `rows`, one of each owner: whose it is, and the row as JSON."""

    name: str
    columns: tuple[str, ...]
    given: tuple[str, ...]
    """The columns that an insert may name."""
    spare: str
    """A column that can be set to anything: no key, and no wall looks at it."""
    spare_type: str
    spare_value: str | None
    whose: tuple[str, ...]
    """The columns that say whose a row is."""
    is_view: bool
    is_writable: bool
    """False: a view through which nothing can be written, whoever asks."""
    owners: Owners
    rows: tuple[tuple[str, str], ...]

    @property
    def identifier(self) -> sql.Identifier:
        return named(self.name)


def tables(owner: Connection, *schemas: str) -> dict[str, Table]:
    """Every table and view of these schemas (none: of ours), from the catalog, with what the ledger's owner sees."""
    found = owner.execute(
        """
        select relations.oid, relnamespace::regnamespace || '.' || relname as name, relkind = 'v' as is_view,
               pg_relation_is_updatable(relations.oid, false) <> 0 as is_writable,
               array_agg(attname::text order by attnum) as columns,
               array_agg(attname::text order by attnum) filter (where attidentity = '') as given,
               array_agg(attname::text order by attnum)
                 filter (where attname in ('executed_by', 'created_by', 'user_id')) as whose,
               (array_agg((attname::text, format_type(atttypid, atttypmod)) order by attnum) filter (
                 where attidentity = '' and not exists (
                   select from pg_index where indrelid = relations.oid and attnum = any (indkey))))[1] as spare
        from pg_class as relations
        join pg_attribute on attrelid = relations.oid and attnum > 0 and not attisdropped
        where relnamespace::regnamespace::text = any (%s) and relkind in ('r', 'v', 'p', 'm', 'f')
        group by relations.oid
        """,
        [list(schemas) or SCHEMAS],
    )
    return {row["name"]: _table(owner, row) for row in found.fetchall()}


def _table(owner: Connection, facts: dict[str, Any]) -> Table:
    spare, spare_type = facts["spare"]
    with owner.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(
            sql.SQL("select t::text, to_jsonb(t)::text, {}::text from {} as t").format(
                sql.Identifier(spare), named(facts["name"])
            )
        )
        rows = cursor.fetchall()
    labelled = [(owners_in(text), json, value) for text, json, value in rows]
    return Table(
        facts["name"],
        tuple(facts["columns"]),
        tuple(facts["given"]),
        spare,
        spare_type,
        labelled[0][2] if labelled else None,
        tuple(facts["whose"] or ()),
        facts["is_view"],
        facts["is_writable"],
        NONE.union(*(owners for owners, _, _ in labelled)),
        tuple({next(iter(owners)): (next(iter(owners)), json) for owners, json, _ in labelled}.values()),
    )


@contextmanager
def undone(conn: Connection) -> Iterator[None]:
    """A transaction, or a part of one, that never was."""
    with conn.transaction(force_rollback=True):
        yield


def become(conn: Connection, identity: Identity) -> None:
    """Until the transaction ends, as the API and PostgREST do it."""
    conn.execute(
        "select set_config('role', %s, true), set_config('request.jwt.claim.sub', %s, true),"
        " set_config('request.jwt.claims', %s, true)",
        [identity.role or "none", identity.sub, identity.claims],
    )


def _tried(conn: Connection, statement: sql.Composed, values: list[Any]) -> psycopg.Cursor[Any] | str:
    """What came of it; DENIED, or an empty text for what the walls or the claims themselves stopped."""
    try:
        return conn.execute(statement, values)
    except psycopg.errors.InsufficientPrivilege as refusal:
        return DENIED if str(refusal).startswith(DENIED) else ""
    except psycopg.DataError:
        # Claims that cannot be read stop everything that asks them.
        return ""


# -- One command ------------------------------------------------------------------------------------------------------


def read(conn: Connection, identity: Identity, table: Table, columns: Collection[str] = ()) -> Owners | str:
    """Whose rows it reads."""
    row = sql.SQL(", ").join(map(sql.Identifier, columns or table.columns))
    with undone(conn):
        become(conn, identity)
        found = _tried(conn, sql.SQL("select row({})::text as row from {}").format(row, table.identifier), [])
        if isinstance(found, str):
            return found or NONE
        return NONE.union(*(owners_in(one["row"]) for one in found.fetchall()))


def insert(conn: Connection, identity: Identity, table: Table, columns: Collection[str] = ()) -> Owners | str:
    """Whose rows it can write."""
    given = sql.SQL(", ").join(map(sql.Identifier, columns or table.given))
    statement = sql.SQL("insert into {} ({}) select {} from jsonb_populate_record(null::{}, %s)").format(
        table.identifier, given, given, table.identifier
    )
    written = set()
    for whose, row in table.rows:
        with undone(conn):
            become(conn, identity)
            try:
                came = _tried(conn, statement, [row])
            except psycopg.Error as stopped:
                came = _passed(stopped)
        if came == DENIED:
            return DENIED
        if came:
            written.add(whose)
    return frozenset(written)


def _passed(stopped: psycopg.Error) -> str:
    if not (stopped.sqlstate or "").startswith(_STOPPED_BEHIND):
        raise stopped
    return "passed"


def update(table: Table) -> tuple[sql.Composed, list[Any]]:
    """Changes rows without reading any: with a condition, what can be read would narrow what can be changed."""
    statement = sql.SQL("update {} set {} = %s::{}").format(
        table.identifier, sql.Identifier(table.spare), sql.SQL(table.spare_type)
    )
    return statement, [table.spare_value]


def give_away(table: Table, column: str) -> tuple[sql.Composed, list[Any]]:
    return sql.SQL("update {} set {} = %s").format(table.identifier, sql.Identifier(column)), [STRANGER]


def delete(table: Table) -> tuple[sql.Composed, list[Any]]:
    return sql.SQL("delete from {}").format(table.identifier), []


def changed(conn: Connection, identity: Identity, command: tuple[sql.Composed, list[Any]]) -> int | str:
    """How many rows it changes."""
    with undone(conn):
        become(conn, identity)
        came = _tried(conn, *command)
        return (0 if came == "" else came) if isinstance(came, str) else came.rowcount


def whose_changed(
    conn: Connection, identity: Identity, table: Table, command: tuple[sql.Composed, list[Any]]
) -> Owners | str:
    """Whose rows it changes. `conn` is the owner's, who looks before and after."""
    with undone(conn):
        before = _places(conn, table)
        become(conn, identity)
        try:
            came = _tried(conn, *command)
        except psycopg.Error as stopped:
            return _passed(stopped)
        if isinstance(came, str):
            return came or NONE
        conn.execute("select set_config('role', 'none', true)")
        after = _places(conn, table)
        return NONE.union(*(owners_in(row) for place, row in before.items() if place not in after))


def whose(owner: Connection, table: Table) -> Iterator[str]:
    """Whose each row is."""
    for row in _places(owner, table).values():
        yield from owners_in(row)


def _places(owner: Connection, table: Table) -> dict[str, str]:
    """Each row by where it lies: a changed one lies elsewhere."""
    with owner.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(sql.SQL("select ctid::text, t::text from {} as t").format(table.identifier))
        return dict(cursor.fetchall())


# -- The policies alone -----------------------------------------------------------------------------------------------


@contextmanager
def with_every_grant(owner: Connection, known: dict[str, Table]) -> Iterator[None]:
    """Everybody may do everything, and no trigger interferes: what is left are the policies."""
    with undone(owner):
        for kind in ("tables", "sequences", "functions"):
            owner.execute(
                f"grant all on all {kind} in schema public, flowledger to anon, authenticated, service_role".encode()
            )
        for table in known.values():
            if not table.is_view:
                owner.execute(sql.SQL("alter table {} disable trigger user").format(table.identifier))
        yield


def breaches(owner: Connection, table: Table, identities: Collection[Identity] = IDENTITIES) -> list[str]:
    """Where the policies of a table and the law differ, in words."""
    return [
        f"{identity.name} {verb} {_words(found)} in {table.name}, and by law {_words(allowed)}"
        for identity in identities
        # The login has no policies of its own; what it may is a matter of grants.
        if identity.role is not None
        for verb, found, allowed in _compared(owner, table, identity)
        if found != allowed
    ]


def _compared(owner: Connection, table: Table, identity: Identity) -> Iterator[tuple[str, Owners | str, Owners]]:
    def by_law(rules: dict[str, Rule]) -> Owners:
        rule = rules.get(table.name)
        return rule(identity) & table.owners if rule else NONE

    seen = by_law(READ)
    if identity in GARBAGE:
        # It may stop the whole answer, and shows no more than an empty sub.
        found = read(owner, identity, table)
        yield "reads", found, seen if found else NONE
    else:
        yield "reads", read(owner, identity, table), seen
    if table.is_view:
        return
    yield "inserts", insert(owner, identity, table), by_law(INSERT)
    yield "updates", whose_changed(owner, identity, table, update(table)), by_law(UPDATE)
    yield "deletes", whose_changed(owner, identity, table, delete(table)), by_law(DELETE)
    for column in table.whose:
        yield "gives away", whose_changed(owner, identity, table, give_away(table, column)), NONE


def _words(owners: Owners | str) -> str:
    return owners if isinstance(owners, str) else f"those of {', '.join(sorted(owners)) or 'nobody at all'}"


def connection(url: str) -> Connection:
    conn: Connection = psycopg.connect(url, autocommit=True, row_factory=dict_row)
    # A test that would wait for ever fails instead.
    conn.execute("set lock_timeout = '10s'; set statement_timeout = '30s'")
    return conn
