"""What is granted, as the catalog says and as the law says, in the same words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.walls.law import ON_COLUMNS, ON_FUNCTIONS, ON_SCHEMAS, ON_TABLES
from tests.walls.probes import SCHEMAS, Connection

ROLES = ("PUBLIC", "anon", "authenticated", "service_role")


class Grant(NamedTuple):
    """`column` is empty for the whole; `privilege` ends with a star where it may be passed on."""

    object: str
    column: str
    role: str
    privilege: str

    def __str__(self) -> str:
        what = f"{self.object}.{self.column}" if self.column else self.object
        return f"{self.privilege} on {what} to {self.role}"


_GRANTS = """
with acls as (
  select nspname::text as object, '' as col, coalesce(nspacl, acldefault('n', nspowner)) as acl, nspowner as owner
  from pg_namespace where nspname = any (%(schemas)s)
  union all
  select relnamespace::regnamespace || '.' || relname, '',
         coalesce(relacl, acldefault(case relkind when 'S' then 's' else 'r' end::"char", relowner)), relowner
  from pg_class where relnamespace = any (%(schemas)s::regnamespace[]) and relkind in ('r', 'v', 'p', 'm', 'f', 'S')
  union all
  select relnamespace::regnamespace || '.' || relname, attname, attacl, relowner
  from pg_attribute join pg_class on pg_class.oid = attrelid
  where relnamespace = any (%(schemas)s::regnamespace[]) and attacl is not null
  union all
  select pronamespace::regnamespace || '.' || proname, '', coalesce(proacl, acldefault('f', proowner)), proowner
  from pg_proc where pronamespace = any (%(schemas)s::regnamespace[])
)
select object, col, case grantee when 0 then 'PUBLIC' else grantee::regrole::text end as role,
       lower(privilege_type) || case when is_grantable then '*' else '' end as privilege
from acls cross join lateral aclexplode(acl)
where grantee <> owner
"""


def in_catalog(conn: Connection) -> set[Grant]:
    """Everything granted to anybody but the owner of the thing."""
    rows = conn.execute(_GRANTS, {"schemas": SCHEMAS}).fetchall()
    return {Grant(row["object"], row["col"], row["role"], row["privilege"]) for row in rows}


def by_law() -> set[Grant]:
    return {*_on_wholes(), *_on_columns(), *_on_functions()}


def _on_wholes() -> Iterator[Grant]:
    for name, privileges in {**ON_TABLES, **ON_SCHEMAS}.items():
        for privilege, roles in privileges.items():
            yield from (Grant(name, "", role, privilege) for role in roles)


def _on_columns() -> Iterator[Grant]:
    for name, privileges in ON_COLUMNS.items():
        for privilege, (roles, columns) in privileges.items():
            yield from (Grant(name, column, role, privilege) for role in roles for column in columns.split())


def _on_functions() -> Iterator[Grant]:
    for roles, names in ON_FUNCTIONS.items():
        yield from (Grant(name, "", role, "execute") for name in names.split() for role in roles)


def breaches(conn: Connection) -> list[str]:
    """Where the catalog and the law differ, in words."""
    found, law = in_catalog(conn), by_law()
    return [f"by no law: {grant}" for grant in sorted(found - law)] + [
        f"missing: {grant}" for grant in sorted(law - found)
    ]
