"""With whose rights each function runs, and where it looks for names: as the catalog says, compared with the law."""

from __future__ import annotations

from dataclasses import dataclass

from tests.walls.law import AS_THE_CALLER, executable
from tests.walls.probes import SCHEMAS, Connection

PINNED = "search_path=pg_catalog, pg_temp"
"""Temporary things last: else a caller's own type or function would come before the real one."""

OF_THE_PLATFORM = frozenset({"auth.uid", "auth.role", "auth.jwt"})
"""Supabase defines them, without a search_path; they run as the caller."""


@dataclass(frozen=True)
class Function:
    """`reference` names it with its parameters, `nothing` calls it with nothing. `path` None: not pinned."""

    name: str
    reference: str
    nothing: str
    is_definer: bool
    is_trigger: bool
    path: str | None


def in_catalog(conn: Connection) -> list[Function]:
    rows = conn.execute(
        """select pronamespace::regnamespace || '.' || proname as name, pg_proc.oid::regprocedure::text as reference,
                  format('select %%I.%%I(%%s)', pronamespace::regnamespace, proname, (
                    select string_agg('null::' || format_type(type, null), ', ' order by place)
                    from unnest(proargtypes) with ordinality as parameters (type, place))) as nothing,
                  prosecdef as is_definer, prorettype = 'trigger'::regtype as is_trigger,
                  (select one from unnest(proconfig) as one where one like 'search_path=%%') as path
           from pg_proc where pronamespace = any (%s::regnamespace[]) order by 1""",
        [SCHEMAS],
    ).fetchall()
    return [Function(**row) for row in rows]


def breaches(conn: Connection) -> list[str]:
    """Where the catalog and the law differ, in words."""
    callable_ = executable("authenticated") | executable("service_role") | executable("anon")
    found = []
    for function in in_catalog(conn):
        if function.path != (None if function.name in OF_THE_PLATFORM else PINNED):
            found.append(f"{function.name} looks for names in {function.path}")
        # Of those that nobody may call, a trigger's rights matter: they are the owner's.
        of_caller = function.name in AS_THE_CALLER or not (function.name in callable_ or function.name in OF_THE_OWNER)
        if function.is_definer == of_caller:
            found.append(f"{function.name} runs as {'its owner' if function.is_definer else 'its caller'}")
    return found


OF_THE_OWNER = frozenset(
    {
        "public.calculate_execution_duration",
        "public.update_flow_execution_count",
        "flowledger.tell_watchers",
        "flowledger.used_up",
    }
)
"""What nobody may call and runs as the owner: triggers, and what a trigger calls."""
