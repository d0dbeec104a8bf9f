"""Each wall weakened once, and each grant changed once: the checks of this folder must notice every one.

Which walls there are is read from the catalog, so a new policy or grant is weakened without anybody thinking of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from psycopg import sql

from tests.walls import functions, grants, probes
from tests.walls.canaries import named
from tests.walls.grants import ROLES
from tests.walls.law import ANON, EMPTY, OPERATOR, A
from tests.walls.probes import SCHEMAS, Connection, Table, undone, with_every_grant

IDENTITIES = (A, EMPTY, ANON, OPERATOR)
"""Enough to notice: those that the others only vary."""


@dataclass(frozen=True)
class Mutant:
    name: str
    statement: sql.Composed
    table: str = ""


# -- Policies ---------------------------------------------------------------------------------------------------------


def weakened(owner: Connection) -> Iterator[Mutant]:
    """Each policy dropped, and each of its conditions loosened; and each table without row-level security."""
    policies = owner.execute(
        """select polname as name, relnamespace::regnamespace || '.' || relname as table,
                  pg_get_expr(polqual, polrelid) as using, pg_get_expr(polwithcheck, polrelid) as check
           from pg_policy join pg_class on pg_class.oid = polrelid"""
    ).fetchall()
    for policy in policies:
        yield from _weakened(policy)
    for table in {policy["table"] for policy in policies}:
        yield Mutant(
            f"{table} without row-level security",
            sql.SQL("alter table {} disable row level security").format(named(table)),
            table,
        )


def _weakened(policy: dict[str, Any]) -> Iterator[Mutant]:
    name, table = policy["name"], policy["table"]
    on = sql.SQL("policy {} on {}").format(sql.Identifier(name), named(table))
    yield Mutant(f"{name} dropped", sql.SQL("drop {}").format(on), table)
    for clause in ("using", "check"):
        # What is true already is no looser.
        if policy[clause] not in (None, "true"):
            words = sql.SQL("using" if clause == "using" else "with check")
            yield Mutant(f"{name} with {clause} (true)", sql.SQL("alter {} {} (true)").format(on, words), table)


def test_every_weaker_policy_is_noticed(owner: Connection, known: dict[str, Table]) -> None:
    mutants = list(weakened(owner))
    assert len(mutants) > 80
    survivors = []
    with with_every_grant(owner, known):
        for mutant in mutants:
            with undone(owner):
                owner.execute(mutant.statement)
                if not probes.breaches(owner, known[mutant.table], IDENTITIES):
                    survivors.append(mutant.name)
    assert survivors == []


def test_what_is_weakened_are_the_only_breaches(owner: Connection, known: dict[str, Table]) -> None:
    """Else the checks would notice anything."""
    with with_every_grant(owner, known):
        assert [found for table in known.values() for found in probes.breaches(owner, table, IDENTITIES)] == []


# -- Grants -----------------------------------------------------------------------------------------------------------

_PRIVILEGES = {
    "table": ("select", "insert", "update", "delete", "truncate", "references", "trigger"),
    "sequence": ("usage", "select", "update"),
    "function": ("execute",),
    "schema": ("usage", "create"),
}


def regranted(owner: Connection) -> Iterator[Mutant]:
    """For each object and role: one privilege more, the first that is not there; and each that is there taken away."""
    there = {(grant.object, grant.role, grant.privilege) for grant in grants.in_catalog(owner) if not grant.column}
    for kind, name, reference in _objects(owner):
        for role in ROLES:
            more = [one for one in _PRIVILEGES[kind] if (name, role, one) not in there]
            if more:
                yield _grant(f"{more[0]} on {name} to {role}", more[0], kind, reference, role)
            for one in set(_PRIVILEGES[kind]) - set(more):
                yield _grant(f"{one} on {name} to {role}", one, kind, reference, role, is_given=False)


def regranted_columns(owner: Connection) -> Iterator[Mutant]:
    """Each column's privilege taken away; and of each table one column given to each role."""
    for grant in sorted(one for one in grants.in_catalog(owner) if one.column):
        privilege = sql.SQL(grant.privilege + " ({})").format(sql.Identifier(grant.column))
        yield _grant(str(grant), privilege, "table", named(grant.object), grant.role, is_given=False)
    for name in {name for kind, name, _ in _objects(owner) if kind == "table"}:
        for role in ROLES:
            row = owner.execute("select attname from pg_attribute where attrelid = %s::regclass and attnum = 1", [name])
            column = row.fetchone()["attname"]
            privilege = sql.SQL("references ({})").format(sql.Identifier(column))
            yield _grant(f"references on {name}.{column} to {role}", privilege, "table", named(name), role)


def _objects(owner: Connection) -> Iterator[tuple[str, str, sql.Composable]]:
    """Kind, name, and how a grant refers to it."""
    relations = owner.execute(
        """select case relkind when 'S' then 'sequence' else 'table' end as kind,
                  relnamespace::regnamespace || '.' || relname as name
           from pg_class where relnamespace = any (%s::regnamespace[]) and relkind in ('r', 'v', 'S')""",
        [SCHEMAS],
    ).fetchall()
    functions = owner.execute(
        """select pronamespace::regnamespace || '.' || proname as name, oid::regprocedure::text as reference
           from pg_proc where pronamespace = any (%s::regnamespace[])""",
        [SCHEMAS],
    ).fetchall()
    yield from ((row["kind"], row["name"], named(row["name"])) for row in relations)
    yield from (("function", row["name"], sql.SQL(row["reference"])) for row in functions)
    yield from (("schema", name, sql.Identifier(name)) for name in SCHEMAS)


def _grant(
    name: str,
    privilege: str | sql.Composed,
    kind: str,
    reference: sql.Composable,
    role: str,
    *,
    is_given: bool = True,
) -> Mutant:
    words = "grant {} on {} {} to {}" if is_given else "revoke {} on {} {} from {}"
    statement = sql.SQL(words).format(
        sql.SQL(privilege) if isinstance(privilege, str) else privilege,
        sql.SQL(kind),
        reference,
        sql.SQL("public") if role == "PUBLIC" else sql.Identifier(role),
    )
    return Mutant(f"{'granted' if is_given else 'revoked'}: {name}", statement)


@pytest.mark.parametrize("generated", [regranted, regranted_columns])
def test_every_other_grant_is_noticed(owner: Connection, generated: Any) -> None:
    mutants = list(generated(owner))
    assert len(mutants) > 100
    survivors = []
    for mutant in mutants:
        with undone(owner):
            owner.execute(mutant.statement)
            if not grants.breaches(owner):
                survivors.append(mutant.name)
    assert survivors == []


# -- Functions --------------------------------------------------------------------------------------------------------


def altered(owner: Connection) -> Iterator[Mutant]:
    """Each function without its search_path; and each run with the rights that it does not have."""
    for function in functions.in_catalog(owner):
        reference = sql.SQL(function.reference)
        if function.path is not None:
            yield Mutant(f"{function.name} unpinned", sql.SQL("alter function {} reset search_path").format(reference))
        rights = "invoker" if function.is_definer else "definer"
        yield Mutant(
            f"{function.name} as {rights}", sql.SQL(f"alter function {{}} security {rights}").format(reference)
        )


def test_every_altered_function_is_noticed(owner: Connection) -> None:
    mutants = list(altered(owner))
    assert len(mutants) > 100
    survivors = []
    for mutant in mutants:
        with undone(owner):
            owner.execute(mutant.statement)
            if not functions.breaches(owner):
                survivors.append(mutant.name)
    assert survivors == []
