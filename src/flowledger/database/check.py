"""Compares a live database with the schema it should have, what the reference document hides included.

Expected is `sql/expected.json`, taken from a freshly migrated database by `scripts/schema.py`. It leaves out what
differs between Postgres versions and platforms: owners, and their own rights. `strangers` asks the narrower question of
the migration: may what is already here be adopted?
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from flowledger.database import catalog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import psycopg

    from flowledger.database.catalog import Catalog, Table

    Connection = psycopg.Connection[Any]

Facts = dict[str, Any]
Snapshot = dict[str, dict[str, Facts]]
"""Kind of object -> its name -> its facts. Names below a table are `schema.table.name`."""

_LEDGER, _FLOWS = "public.crewai_flow_executions", "public.crewai_flows"
_PARTS = ("columns", "constraints", "indexes", "policies", "triggers", "rules")
_SINGULAR = {"indexes": "index", "policies": "policy"}


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it should be. `expected` None: there should be none; `found` None: it is missing."""

    kind: str
    object: str
    fact: str | None
    expected: Any
    found: Any
    remedy: str

    def __str__(self) -> str:
        return f"{self.sentence}. {self.remedy}"

    @property
    def sentence(self) -> str:
        subject = f"{self.kind} {self.object}"
        if self.fact:
            return f"{subject}: {self.fact} is {_told(self.found)}, expected {_told(self.expected)}"
        if self.found is None:
            return f"{subject} is missing: expected {_told(self.expected)}"
        return f"{subject} is not part of the schema: found {_told(self.found)}, expected none"


def differences(conn: Connection) -> list[Difference]:
    """Everything in which this database differs from a freshly migrated one. Empty: nothing."""
    return list(_compare(expected(), _found(conn, catalog.read(conn))))


@cache
def expected() -> Snapshot:
    """What a freshly migrated database holds."""
    text = (files("flowledger.sql") / "expected.json").read_text(encoding="utf-8")
    found: Snapshot = json.loads(text)
    return found


def snapshot(found: Catalog) -> Snapshot:
    """The catalog as facts that can be compared and kept in a file."""
    facts: Snapshot = {"table": {table.full_name: _of_table(table) for table in found.tables}}
    for part in _PARTS:
        facts[_kind_of(part)] = {
            f"{table.full_name}.{item.name}": _of_item(item) for table in found.tables for item in getattr(table, part)
        }
    facts["view"] = {view.name: asdict(view) | {"definition": _bare(view.definition)} for view in found.views}
    facts["sequence"] = {sequence.name: asdict(sequence) for sequence in found.sequences}
    facts["function"] = {function.name: asdict(function) for function in found.functions}
    facts["grant"] = {grant.name: asdict(grant) for grant in found.grants}
    return {kind: {name: _without_name(one) for name, one in objects.items()} for kind, objects in facts.items()}


def _found(conn: Connection, found: Catalog) -> Snapshot:
    """What there is, with checks that mean what ours mean in our words."""
    facts, ours = snapshot(found), expected()["constraint"]
    for name, one in facts["constraint"].items():
        wanted = ours.get(name)
        if wanted is None or wanted["kind"] != "c" or one["kind"] != "c":
            continue
        words = {wanted["definition"], one["definition"]}
        if len(words) > 1 and catalog.mean_the_same(conn, name.rpartition(".")[0], words):
            one["definition"] = wanted["definition"]
    return facts


def strangers(conn: Connection) -> list[str]:
    """Why what this database holds under our names cannot be adopted. Empty: it can, or there is nothing.

    The ledger's document must be equal. Of crewai_flows the columns and constraints must be, and it may have no policy
    or trigger that we would not replace. Everything else of ours must not exist yet.
    """
    found = catalog.read(conn)
    sentences = [
        f"schema flowledger already holds {name}" for name in catalog.names(conn, "anything_in_schema_flowledger")
    ]
    sentences += [
        f"trigger {name} uses a function that flowledger would replace"
        for name in catalog.names(conn, "foreign_uses_of_our_trigger_functions")
    ]
    facts = _found(conn, found)
    if found.table(_LEDGER):
        sentences += _told_apart(_LEDGER, expected(), facts, _document_of_ledger)
    if found.table(_FLOWS):
        sentences += _told_apart(_FLOWS, expected(), facts, _adoptable_flows)
    return sentences


# -- Facts ------------------------------------------------------------------------------------------------------------


def _of_table(table: Table) -> Facts:
    return {
        "description": table.description,
        "row_security": table.row_security,
        "row_security_forced": table.row_security_forced,
        "options": table.options,
        "columns": ", ".join(column.name for column in table.columns),
    }


def _of_item(item: Any) -> Facts:
    facts = asdict(item)
    for hidden in ("base_type", "type_modifier", "columns", "foreign_table", "foreign_columns"):
        facts.pop(hidden, None)
    return facts


def _kind_of(part: str) -> str:
    return _SINGULAR.get(part, part.removesuffix("s"))


def _without_name(facts: Facts) -> Facts:
    return {fact: value for fact, value in facts.items() if fact != "name"}


def _bare(definition: str) -> str:
    # Postgres 16 stopped writing the table's name in front of each column of a view.
    return re.sub(r"\b\w+\.(?=\w)", "", " ".join(definition.split()))


# -- Comparing --------------------------------------------------------------------------------------------------------


def _compare(wanted: Snapshot, found: Snapshot) -> Iterator[Difference]:
    gone = wanted["table"].keys() - found["table"].keys()
    added = found["table"].keys() - wanted["table"].keys()
    for kind, objects in wanted.items():
        for name in sorted(objects.keys() | found[kind].keys()):
            # A missing or strange table is told once, and not again for each of its parts.
            if kind != "table" and _belongs_to(name, gone | added):
                continue
            yield from _compare_one(kind, name, objects.get(name), found[kind].get(name))


def _belongs_to(name: str, tables: Iterable[str]) -> bool:
    return any(name.startswith((f"{table}.", f"table {table} ")) for table in tables)


def _compare_one(kind: str, name: str, wanted: Facts | None, found: Facts | None) -> Iterator[Difference]:
    if wanted is None or found is None:
        yield Difference(kind, name, None, wanted, found, _remedy(kind, name, None, wanted))
        return
    for fact, value in wanted.items():
        # The order of columns tells something only where the columns are the same.
        if kind == "table" and fact == "columns" and sorted(value.split(", ")) != sorted(found[fact].split(", ")):
            continue
        if found[fact] != value:
            yield Difference(kind, name, fact, value, found[fact], _remedy(kind, name, fact, wanted))


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("definition") or value.get("privileges") or value.get("type") or "one")
    return "nothing" if value in (None, "") else f"{value}"


# -- Remedies ---------------------------------------------------------------------------------------------------------

_AGAIN = "Apply the migrations again by hand; they may be repeated, and `flowledger db export --supabase` writes them"


def _remedy(kind: str, name: str, fact: str | None, wanted: Facts | None) -> str:
    if wanted is None:
        return f"{_removal(kind, name)}."
    return f"{_repair(kind, name, fact, wanted)}."


def _removal(kind: str, name: str) -> str:
    table, _, item = name.rpartition(".")
    match kind:
        case "grant":
            target, _, role = name.rpartition(" to ")
            return f"Revoke it: {_revoke_all(target, role)}"
        case "policy" | "trigger" | "rule":
            return f"Drop it: drop {kind} {item} on {table}"
        case "column" | "constraint":
            return f"Drop it if nobody needs it: alter table {table} drop {kind} {item}"
        case "index":
            return f"Drop it: drop index {_schema(table)}.{item}"
    return f"Move it elsewhere, or drop it: drop {kind} {name}"


def _repair(kind: str, name: str, fact: str | None, wanted: Facts) -> str:
    table, _, item = name.rpartition(".")
    match kind, fact:
        case "grant", _:
            target, _, role = name.rpartition(" to ")
            return f"{_revoke_all(target, role)}, then grant {wanted['privileges']}, as the migrations do"
        case "table", "row_security":
            return f"alter table {name} enable row level security"
        case "table", "row_security_forced":
            return f"alter table {name} no force row level security"
        case "trigger", "enabled":
            return f"alter table {table} enable trigger {item}"
        case "column", str():
            return _column_repair(table, item, fact, wanted)
        case "constraint", _:
            definition = _as_written(wanted["definition"])
            return f"alter table {table} drop constraint if exists {item}, add constraint {item} {definition}"
        case "index", _:
            return f"drop index if exists {_schema(table)}.{item}; {wanted['definition']}"
        case (("table" | "column" | "sequence"), None):
            return "Restore it from a backup, or move the data to a freshly migrated database"
    return _AGAIN


def _column_repair(table: str, column: str, fact: str, wanted: Facts) -> str:
    change = {
        "type": f"type {wanted['type']}",
        "default": f"set default {wanted['default']}" if wanted["default"] else "drop default",
        "nullable": "drop not null" if wanted["nullable"] else "set not null",
    }.get(fact)
    return f"alter table {table} alter column {column} {change}" if change else _AGAIN


def _as_written(check: str) -> str:
    # What Postgres prints for `varchar in (...)` reads differently once given back, as after a restored dump.
    listed = re.sub(r"\(\((\w+)\)::text = ANY \(\(ARRAY\[(.*)\]\)::text\[\]\)\)", r"\1 in (\2)", check)
    return listed if listed == check else listed.replace("::character varying", "")


def _revoke_all(target: str, role: str) -> str:
    kind, _, name = target.partition(" ")
    if kind == "column":
        table, _, column = name.rpartition(".")
        return f"revoke all ({column}) on {table} from {role}"
    return f"revoke all on {'table' if kind == 'view' else kind} {name} from {role}"


def _schema(table: str) -> str:
    return table.partition(".")[0]


# -- Adoption ---------------------------------------------------------------------------------------------------------


def _told_apart(
    table: str, wanted: Snapshot, found: Snapshot, narrowed: Callable[[str, Snapshot, Snapshot], Snapshot]
) -> Iterator[str]:
    for difference in _compare(narrowed(table, wanted, wanted), narrowed(table, found, wanted)):
        yield difference.sentence


def _document_of_ledger(table: str, given: Snapshot, _: Snapshot) -> Snapshot:
    # Exactly what the reference document prints.
    own = _only(table, given)
    own["table"] = {name: _pick(facts, "row_security", "columns") for name, facts in own["table"].items()}
    own["constraint"] = {
        name: facts | {"definition": re.sub(r" ON (DELETE|UPDATE) .*", "", facts["definition"])}
        for name, facts in own["constraint"].items()
    }
    own["trigger"] = {name: _pick(facts, "timing", "events", "action") for name, facts in own["trigger"].items()}
    return own


def _adoptable_flows(table: str, given: Snapshot, wanted: Snapshot) -> Snapshot:
    own = _document_of_ledger(table, given, wanted)
    for facts in own["column"].values():
        facts.pop("description")
    added = {
        kind: {name: facts for name, facts in own[kind].items() if name not in wanted[kind]}
        for kind in ("policy", "trigger", "rule")
    }
    return {
        "table": {table: _pick(own["table"][table], "columns")},
        "column": own["column"],
        "constraint": own["constraint"],
        **added,
    }


def _only(table: str, given: Snapshot) -> Snapshot:
    return {
        kind: {name: dict(facts) for name, facts in given[kind].items() if _under(table, kind, name)}
        for kind in ("table", *map(_kind_of, _PARTS))
    }


def _under(table: str, kind: str, name: str) -> bool:
    return name == table if kind == "table" else name.startswith(f"{table}.")


def _pick(facts: Facts, *names: str) -> Facts:
    return {name: facts[name] for name in names}
