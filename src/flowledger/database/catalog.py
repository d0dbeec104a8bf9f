"""The live catalog as plain values: what a database really holds of ours.

Read by the reference document and by `check`. The SQL stands in `queries/catalog.sql`; nothing here judges.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from psycopg.rows import dict_row

from flowledger.sql import query

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.Connection[Any]


@dataclass(frozen=True)
class Column:
    """`type_modifier` is the packed length or precision, -1 without one. `identity`: always, by default or None."""

    name: str
    base_type: str
    type: str
    type_modifier: int
    nullable: bool
    default: str | None
    identity: str | None
    description: str | None


@dataclass(frozen=True)
class Constraint:
    """`kind` is p (primary key), f (foreign key), u (unique), c (check) or x (exclusion)."""

    name: str
    kind: str
    definition: str
    validated: bool
    columns: str | None
    foreign_table: str | None
    foreign_columns: str | None


@dataclass(frozen=True)
class Index:
    name: str
    definition: str
    valid: bool


@dataclass(frozen=True)
class Policy:
    """`using` and `with_check` None: the policy has no such part."""

    name: str
    command: str
    permissive: bool
    roles: str
    using: str | None
    with_check: str | None


@dataclass(frozen=True)
class Trigger:
    name: str
    timing: str
    events: list[str]
    action: str
    definition: str
    enabled: bool


@dataclass(frozen=True)
class Rule:
    name: str
    definition: str


@dataclass(frozen=True)
class Table:
    """`options` are storage parameters, such as fillfactor."""

    schema: str
    name: str
    description: str | None
    row_security: bool
    row_security_forced: bool
    options: str
    columns: tuple[Column, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    indexes: tuple[Index, ...] = ()
    policies: tuple[Policy, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    rules: tuple[Rule, ...] = ()

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True)
class View:
    name: str
    definition: str
    options: str
    description: str | None


@dataclass(frozen=True)
class Sequence:
    name: str
    type: str
    start: int
    increment: int
    cycles: bool


@dataclass(frozen=True)
class Function:
    """`name` includes the argument types; `settings` are its SET clauses; `body` is the sha256 of its source."""

    name: str
    arguments: str
    result: str | None
    language: str
    security_definer: bool
    volatility: str
    strict: bool
    settings: str
    body: str


@dataclass(frozen=True)
class Grant:
    """What a role other than the owner may do with one object; `name` is the object and the role."""

    name: str
    privileges: str


@dataclass(frozen=True)
class Catalog:
    tables: tuple[Table, ...] = ()
    views: tuple[View, ...] = ()
    sequences: tuple[Sequence, ...] = ()
    functions: tuple[Function, ...] = ()
    grants: tuple[Grant, ...] = ()

    def table(self, name: str) -> Table | None:
        """The table of this name, with or without its schema."""
        for table in self.tables:
            if name in (table.name, table.full_name):
                return table
        return None


def read(conn: Connection) -> Catalog:
    """Everything of ours that the database holds. Leaves the connection's settings and transaction as they were."""
    with conn.transaction(force_rollback=True):
        conn.execute(query("catalog", "look_from_public"))
        headings = _rows(conn, "our_tables", [])
        oids = [heading["table_oid"] for heading in headings]
        return Catalog(
            tables=_tables(conn, headings, oids),
            views=_all(conn, "views", View, oids),
            sequences=_all(conn, "sequences", Sequence, oids),
            functions=_all(conn, "functions", Function, oids),
            grants=_all(conn, "grants", Grant, oids),
        )


def names(conn: Connection, name: str) -> list[str]:
    """The single column of one of the catalog's shorter questions."""
    return [row["name"] for row in _rows(conn, name, [])]


def _tables(conn: Connection, headings: list[dict[str, Any]], oids: list[int]) -> tuple[Table, ...]:
    parts: dict[str, dict[int, list[Any]]] = {
        "columns": _by_table(conn, "columns", Column, oids),
        "constraints": {
            oid: [replace(one, definition=_as_first_written(one.definition)) for one in found]
            for oid, found in _by_table(conn, "constraints", Constraint, oids).items()
        },
        "indexes": _by_table(conn, "indexes", Index, oids),
        "policies": _by_table(conn, "policies", Policy, oids),
        "triggers": _by_table(conn, "triggers", Trigger, oids),
        "rules": _by_table(conn, "rules", Rule, oids),
    }
    return tuple(_table(heading, parts) for heading in headings)


def _table(heading: dict[str, Any], parts: dict[str, dict[int, list[Any]]]) -> Table:
    facts = dict(heading)
    oid = facts.pop("table_oid")
    for name, found in parts.items():
        facts[name] = tuple(found.get(oid, ()))
    return Table(**facts)


_RESTORED_LIST = re.compile(r"ANY \(ARRAY\[((?:\('\w+'::character varying\)::text(?:, )?)+)\]\)")


def _as_first_written(definition: str) -> str:
    """After a dump and a restore Postgres words `varchar in (...)` in another way, which means the same."""
    return _RESTORED_LIST.sub(lambda found: f"ANY ((ARRAY[{_without_casts(found[1])}])::text[])", definition)


def _without_casts(literals: str) -> str:
    return re.sub(r"\(('\w+'::character varying)\)::text", r"\1", literals)


Kind = TypeVar("Kind")


def _by_table(conn: Connection, name: str, kind: type[Kind], oids: list[int]) -> dict[int, list[Kind]]:
    found: dict[int, list[Kind]] = {}
    for row in _rows(conn, name, oids):
        found.setdefault(row.pop("table_oid"), []).append(kind(**row))
    return found


def _all(conn: Connection, name: str, kind: type[Kind], oids: list[int]) -> tuple[Kind, ...]:
    return tuple(kind(**row) for row in _rows(conn, name, oids))


def _rows(conn: Connection, name: str, oids: list[int]) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query("catalog", name), {"tables": oids}).fetchall()
