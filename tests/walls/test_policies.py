"""The policies alone: with every grant given to everybody, each identity reaches the rows that the law says."""

from __future__ import annotations

import pytest

from tests.walls.canaries import BELONG_TO_NOBODY, OWNERS, PLANTS, everything_of, owners_in
from tests.walls.law import DELETE, INSERT, READ, UPDATE
from tests.walls.probes import Connection, Table, breaches, with_every_grant


def test_every_table_is_in_the_law(known: dict[str, Table]) -> None:
    assert set(known) == set(READ)
    assert set(INSERT) | set(UPDATE) | set(DELETE) <= set(READ)


def test_every_table_has_a_canary_of_each_owner_or_a_reason_to_have_none(known: dict[str, Table]) -> None:
    bare = {}
    for table in known.values():
        needed = set() if table.name in BELONG_TO_NOBODY else {one for one in OWNERS if _may_own(table.name, one)}
        if missing := needed - table.owners:
            bare[table.name] = missing
    assert bare == {}
    assert all(table.owners for table in known.values()), "a wall with nothing behind it shows nothing"
    assert set(BELONG_TO_NOBODY) < set(known)


def _may_own(table: str, one: str) -> bool:
    planted = PLANTS.get(table)
    return one != "nobody" or planted is None or planted.of(OWNERS[one])


def test_no_row_names_two_owners(owner: Connection) -> None:
    rows = [row for table in everything_of(owner).values() for row in table]
    assert [row for row in rows if len(owners_in(row)) != 1] == []


def test_row_level_security_is_on_wherever_there_are_rows(owner: Connection, known: dict[str, Table]) -> None:
    found = owner.execute(
        """select relnamespace::regnamespace || '.' || relname as name from pg_class
           where relrowsecurity and not relforcerowsecurity"""
    ).fetchall()
    assert {row["name"] for row in found} == {table.name for table in known.values() if not table.is_view}


@pytest.mark.parametrize("name", READ)
def test_with_every_grant_given_the_policies_are_the_law(owner: Connection, known: dict[str, Table], name: str) -> None:
    with with_every_grant(owner, known):
        assert breaches(owner, known[name]) == []
