"""The grants alone: what the catalog grants is what the law says, to the last column; the roles have nothing else."""

from __future__ import annotations

from tests.walls import grants
from tests.walls.grants import ROLES
from tests.walls.law import ON_TABLES
from tests.walls.probes import SCHEMAS, Connection, Table

LOGINS_AND_ROLES = [*ROLES, "flowledger_api", "flowledger_worker"]


def test_what_is_granted_is_the_law(owner: Connection) -> None:
    assert grants.breaches(owner) == []


def test_the_law_names_things_that_are_there(owner: Connection, known: dict[str, Table]) -> None:
    assert set(ON_TABLES) <= set(known)
    functions = owner.execute(
        """select pronamespace::regnamespace || '.' || proname as name, count(*) as number
           from pg_proc where pronamespace = any (%s::regnamespace[]) group by 1""",
        [SCHEMAS],
    ).fetchall()
    # The law names functions without their parameters.
    assert [row["name"] for row in functions if row["number"] > 1] == []


def test_nothing_new_is_granted_by_default(owner: Connection) -> None:
    """But what Postgres itself gives to PUBLIC: each function is revoked by name, and the law would miss it."""
    assert owner.execute("select * from pg_default_acl").fetchall() == []


def test_no_role_of_requests_stands_above_the_walls(owner: Connection) -> None:
    found = owner.execute(
        """select rolname from pg_roles
           where rolname = any (%s) and (rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolreplication)""",
        [LOGINS_AND_ROLES],
    ).fetchall()
    assert found == []


def test_no_role_of_requests_owns_anything(owner: Connection) -> None:
    found = owner.execute(
        """select 'relation ' || oid::regclass as what from pg_class where relowner::regrole::text = any (%(roles)s)
           union all select 'function ' || oid::regproc from pg_proc where proowner::regrole::text = any (%(roles)s)
           union all select 'schema ' || nspname from pg_namespace where nspowner::regrole::text = any (%(roles)s)""",
        {"roles": LOGINS_AND_ROLES},
    ).fetchall()
    assert found == []


def test_the_roles_lead_to_each_other_where_the_law_says(owner: Connection) -> None:
    """The API becomes one of the three for a request and inherits none; the worker is an operator."""
    found = owner.execute(
        """select one.rolname as one, array_agg(other.rolname::text order by other.rolname) as becomes
           from pg_roles as one, pg_roles as other
           where one.rolname = any (%s) and one.rolname <> other.rolname and pg_has_role(one.oid, other.oid, 'member')
           group by 1""",
        [LOGINS_AND_ROLES],
    ).fetchall()
    assert {row["one"]: row["becomes"] for row in found} == {
        "flowledger_api": ["anon", "authenticated", "service_role"],
        "flowledger_worker": ["service_role"],
    }
    inherits = owner.execute("select rolinherit from pg_roles where rolname = 'flowledger_api'").fetchone()
    assert inherits == {"rolinherit": False}
