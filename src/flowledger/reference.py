"""Writes the schema reference document of a table from the live catalog.

For `crewai_flow_executions` it is, byte for byte but for the Generated line, the document that the table was specified
with. That document sets the form for every other table; a section stands only where there is something to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any

from psycopg import sql

from flowledger.database import catalog
from flowledger.errors import InvalidInput
from flowledger.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    import psycopg

    from flowledger.database.catalog import Column, Constraint, Table

    Connection = psycopg.Connection[Any]


@dataclass(frozen=True)
class Header:
    """The lines that no catalog knows."""

    application: str
    database: str
    repository: str
    purpose: str


def document(conn: Connection, table: str, header: Header, generated_at: datetime) -> str:
    """The reference document of one table, named with or without its schema; its rows as the caller sees them."""
    found = catalog.read(conn).table(table)
    if found is None:
        raise InvalidInput("table", f"flowledger has no table {table!r} in this database")
    return "\n".join(_lines(found, header, generated_at, _row_count(conn, found))) + "\n"


def overview(tables: Iterable[Table]) -> str:
    """The page that every document links back to."""
    lines = ["# Database Schema Overview", "", "| Table | Columns | Description |", "|-------|---------|-------------|"]
    lines += [
        f"| [{_display(table)}](schema/{table.name}.md) | {len(table.columns)} | {table.description or '-'} |"
        for table in tables
    ]
    return "\n".join(lines) + "\n"


def _row_count(conn: Connection, table: Table) -> int:
    statement = sql.SQL(query("catalog", "row_count")).format(table=sql.Identifier(table.schema, table.name))
    row = conn.execute(statement).fetchone()
    assert row is not None
    return int(row[0])


def _lines(table: Table, header: Header, generated_at: datetime, rows: int) -> Iterator[str]:
    yield from _head(table, header, generated_at, rows)
    yield from _columns(table)
    yield from _constraints(table)
    yield from _indexes(table)
    yield from _policies(table)
    yield from _triggers(table)
    yield from ("---", "", "[← Back to Schema Overview](../database-schema-overview.md)")


def _head(table: Table, header: Header, generated_at: datetime, rows: int) -> Iterator[str]:
    stamp = generated_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    yield from (f"# {_display(table)} Table", "")
    if table.description:
        yield from (table.description, "")
    yield f"**Application**: {header.application}"
    yield f"**Database**: {header.database}"
    yield f"**Repository**: {header.repository}"
    yield f"**Purpose**: {header.purpose}"
    yield f"**Generated**: {stamp}"
    yield f"**Rows**: {rows:,}"
    yield f"**RLS**: {_row_security(table)}"
    yield ""
    yield from ("⚠️ **This is a REFERENCE document** - Query database directly for validation", "")
    place, short_name = header.repository, header.application.partition(" - ")[0]
    yield f"⚠️ **CRITICAL**: This schema is for **{short_name}** database. Implementations go in {place}"
    yield from ("", "---", "")


def _display(table: Table) -> str:
    return table.name if table.schema == "public" else table.full_name


def _row_security(table: Table) -> str:
    if not table.row_security:
        return "Disabled"
    count = len(table.policies)
    return f"Enabled ({count} {'policy' if count == 1 else 'policies'})"


def _columns(table: Table) -> Iterator[str]:
    yield from (f"## Columns ({len(table.columns)} total)", "")
    yield "| Column | Type | Nullable | Default | Description |"
    yield "|--------|------|----------|---------|-------------|"
    for column in table.columns:
        nullable = "YES" if column.nullable else "**NO**"
        description = (column.description or "-").replace("|", "\\|").replace("\n", " ")
        yield f"| {column.name} | `{_type(column)}` | {nullable} | {_default(column)} | {description} |"
    yield ""


_BITS = {"smallint": 16, "integer": 32, "bigint": 64, "real": 24, "double precision": 53}


def _type(column: Column) -> str:
    # Length, else precision, and scale only when it is not 0; unpacked from the modifier because information_schema
    # shows no columns to those who own no table.
    if column.base_type in _BITS:
        return f"{column.base_type}({_BITS[column.base_type]})"
    if column.base_type == "numeric" and column.type_modifier >= 0:
        precision, scale = (column.type_modifier - 4) >> 16, (column.type_modifier - 4) & 0x7FF
        return f"numeric({precision},{scale})" if scale else f"numeric({precision})"
    return column.type


def _default(column: Column) -> str:
    if column.identity:
        return f"generated {column.identity} as identity"
    return f"`{column.default}`" if column.default else "-"


_SECTIONS = {
    "p": "Primary Key",
    "f": "Foreign Keys",
    "u": "Unique Constraints",
    "c": "Check Constraints",
    "x": "Exclusion Constraints",
}


def _constraints(table: Table) -> Iterator[str]:
    if not table.constraints:
        return
    yield from ("## Constraints", "")
    for kind, title in _SECTIONS.items():
        of_kind = [constraint for constraint in table.constraints if constraint.kind == kind]
        if of_kind:
            yield from (f"### {title}", *map(_constraint, of_kind), "")


def _constraint(constraint: Constraint) -> str:
    if constraint.kind == "f":
        target = f"{constraint.foreign_table}({constraint.foreign_columns})"
        return f"- `{constraint.name}`: {constraint.columns} → {target}"
    return f"- `{constraint.name}`: {_as_first_written(constraint.definition)}"


_RESTORED_LIST = re.compile(r"ANY \(ARRAY\[((?:\('\w+'::character varying\)::text(?:, )?)+)\]\)")


def _as_first_written(definition: str) -> str:
    """After a dump and a restore Postgres words `varchar in (...)` in another way, which means the same."""
    return _RESTORED_LIST.sub(lambda found: f"ANY ((ARRAY[{_without_casts(found[1])}])::text[])", definition)


def _without_casts(literals: str) -> str:
    return re.sub(r"\(('\w+'::character varying)\)::text", r"\1", literals)


def _indexes(table: Table) -> Iterator[str]:
    if not table.indexes:
        return
    yield from ("## Indexes", "")
    for index in table.indexes:
        yield from (f"- `{index.name}`", "  ```sql", f"  {index.definition}", "  ```")
    yield ""


def _policies(table: Table) -> Iterator[str]:
    if not table.policies:
        return
    yield from ("## RLS Policies", "")
    for number, policy in enumerate(table.policies, start=1):
        yield from (f"### {number}. {policy.name} ({policy.command})", "", f"- **Roles**: {policy.roles}")
        if policy.using:
            yield f"- **Using**: `{policy.using}`"
        if policy.with_check:
            yield f"- **With Check**: `{policy.with_check}`"
        yield ""


def _triggers(table: Table) -> Iterator[str]:
    if not table.triggers:
        return
    yield from ("## Triggers", "")
    for trigger in table.triggers:
        yield from (f"### {trigger.name}", "")
        for event in trigger.events:
            yield f"- **Timing**: {trigger.timing} {event}"
        yield from (f"- **Action**: `{trigger.action}`", "")
