"""Grants and policies together, as a request meets them: every identity tries every command on every object, by real
SQL through the API's own login, and gets what both laws let through.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import psycopg
import pytest
from psycopg import sql

from tests.walls import probes
from tests.walls.canaries import named
from tests.walls.law import DELETE, GARBAGE, IDENTITIES, INSERT, NONE, READ, UPDATE, Identity, Owners, Rule, granted
from tests.walls.probes import DENIED, SCHEMAS, Connection, Table, become, undone

Outcome = Owners | int | str


def by_law(identity: Identity, table: Table, command: str, columns: Collection[str]) -> Owners | str:
    """Whose rows it reaches, or DENIED."""
    allowed = granted(identity.role, table.name, command)
    if allowed is None or (allowed and not set(columns) <= set(allowed)):
        return DENIED
    rules: dict[str, dict[str, Rule]] = {"select": READ, "insert": INSERT, "update": UPDATE, "delete": DELETE}
    rule = rules[command].get(table.name)
    return rule(identity) & table.owners if rule else NONE


def outcomes(login: Connection, owner: Connection, identity: Identity, table: Table) -> Iterator[tuple[str, ...]]:
    """Each command with what came of it and what the law says, where these differ."""
    for command, found, allowed in _tried(login, owner, identity, table):
        # Garbage may stop an answer that an empty sub would get.
        is_stopped = identity in GARBAGE and not found
        if found != allowed and not (is_stopped and allowed != DENIED):
            yield identity.name, command, table.name, str(found), str(allowed)


def _tried(
    login: Connection, owner: Connection, identity: Identity, table: Table
) -> Iterator[tuple[str, Outcome, Outcome]]:
    columns = granted(identity.role, table.name, "select") or table.columns
    yield "select", probes.read(login, identity, table, columns), by_law(identity, table, "select", columns)
    if not table.is_writable:
        return
    given = granted(identity.role, table.name, "insert") or table.given
    yield "insert", probes.insert(login, identity, table, given), by_law(identity, table, "insert", given)
    for command, statement, needed in [
        ("update", probes.update(table), (table.spare,)),
        ("delete", probes.delete(table), ()),
    ]:
        allowed = by_law(identity, table, command, needed)
        rows = allowed if isinstance(allowed, str) else _number(owner, table, allowed)
        yield command, probes.changed(login, identity, statement), rows
    for command, text in ({} if table.is_view else ON_WHOLE_TABLES).items():
        yield command, _refusal(login, identity, sql.SQL(text).format(table.identifier)), DENIED


def _refusal(login: Connection, identity: Identity, statement: sql.Composed) -> str:
    with undone(login):
        become(login, identity)
        try:
            login.execute(statement)
        except psycopg.errors.InsufficientPrivilege:
            return DENIED
        return "done"


# What no row-level security looks at, and nobody has.
ON_WHOLE_TABLES = {
    "truncate": "truncate {} cascade",
    "trigger": "create trigger spy before insert on {} for each row execute function public.update_updated_at_column()",
    "rule": "create rule spy as on insert to {} do also nothing",
    "policy": "create policy open on {} using (true)",
    "alter": "alter table {} disable row level security",
    "rename": "alter table {} rename to elsewhere",
    "drop": "drop table {}",
}


def _number(owner: Connection, table: Table, owners: Owners) -> int:
    return sum(1 for one in probes.whose(owner, table) if one in owners)


@pytest.mark.parametrize("identity", IDENTITIES, ids=lambda identity: identity.name)
def test_each_command_reaches_what_the_law_lets_it(
    login: Connection, owner: Connection, known: dict[str, Table], identity: Identity
) -> None:
    assert [found for table in known.values() for found in outcomes(login, owner, identity, table)] == []


@pytest.mark.parametrize("identity", IDENTITIES, ids=lambda identity: identity.name)
def test_no_sequence_is_read_or_moved(login: Connection, owner: Connection, identity: Identity) -> None:
    sequences = owner.execute(
        """select relnamespace::regnamespace || '.' || relname as name from pg_class
           where relkind = 'S' and relnamespace = any (%s::regnamespace[])""",
        [SCHEMAS],
    ).fetchall()
    assert len(sequences) >= 6
    for sequence in sequences:
        for text in ("select nextval(%s)", "select setval(%s, 1)", "select lastval(), currval(%s)"):
            with undone(login):
                become(login, identity)
                with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState)):
                    login.execute(text, [sequence["name"]])
        with undone(login):
            become(login, identity)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                login.execute(sql.SQL("select last_value from {}").format(named(sequence["name"])))


@pytest.mark.parametrize("identity", IDENTITIES, ids=lambda identity: identity.name)
def test_nobody_makes_anything_in_a_schema_of_ours(login: Connection, identity: Identity) -> None:
    for schema in SCHEMAS:
        for text in (
            "create table {}.mine (id integer)",
            "create view {}.mine as select 1 as one",
            "create function {}.mine() returns integer language sql as 'select 1'",
            "create type {}.mine as enum ('a')",
        ):
            with undone(login):
                become(login, identity)
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    login.execute(sql.SQL(text).format(sql.Identifier(schema)))


def test_claims_end_with_their_transaction(login: Connection) -> None:
    who = """select current_user::text as role, current_setting('request.jwt.claim.sub', true) as sub,
                    current_setting('request.jwt.claims', true) as claims"""
    for identity in IDENTITIES:
        with undone(login):
            become(login, identity)
        assert login.execute(who).fetchone() == {"role": "flowledger_api", "sub": "", "claims": ""}


def test_the_matrix_is_as_large_as_it_should_be(known: dict[str, Table]) -> None:
    assert len(IDENTITIES) * len(known) * 4 > 400
