"""The two laws, written by hand: whose rows each identity reaches where the grants let it, and what is granted.

What the schema says is compared with these pages and not the other way round: whoever adds a table, a policy, a
function or a grant says here who may.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from tests.ledger.law import ALICE, BOB

CAROL = UUID("ca401000-0000-4000-8000-000000000003")
"""Who operates the ledger."""

Owners = frozenset[str]
"""Of rows, by name. Those of `nobody` name no user; those of `the house` belong to none."""

PEOPLE: dict[str, UUID | None] = {"alice": ALICE, "bob": BOB, "carol": CAROL, "nobody": None}
PUBLISHED = "published by "
"""Before the name of who made what all may see: an active flow."""

NONE: Owners = frozenset()
ALL: Owners = frozenset(["the house", *PEOPLE, *(PUBLISHED + one for one in PEOPLE)])


@dataclass(frozen=True)
class Identity:
    """A role with claims, as the API and PostgREST set them for a transaction. `role` None: the login itself."""

    name: str
    role: str | None = "authenticated"
    sub: str = ""
    claims: str = ""
    owner: str | None = None
    """Whose rows are its own. None: nobody's."""

    @property
    def is_operator(self) -> bool:
        return self.role == "service_role"


def _user(name: str, role: str = "authenticated") -> Identity:
    sub = str(PEOPLE[name])
    return Identity(name, role, sub, f'{{"role": "{role}", "sub": "{sub}"}}', name)


A, B, OPERATOR = _user("alice"), _user("bob"), _user("carol", "service_role")
ANON = Identity("anon", "anon", claims='{"role": "anon"}')
EMPTY = Identity("a user with an empty sub", claims='{"role": "authenticated"}')
"""As the API sets it for claims without a user."""
EXPIRED = Identity("whose claims are over", None)
"""A transaction takes role and claims along when it ends; what is left is the login, which inherits no role."""

# Some cannot be read at all, and stop whatever asks them; the others name nobody.
GARBAGE = tuple(
    Identity(f"garbage {claims or sub}", sub=sub, claims=claims)
    for sub, claims in [
        ("", '{"sub": ""}'),
        ("", "{{{"),
        ("", "[]"),
        ("", '"text"'),
        ("", '{"role": "service_role"}'),
        ("", '{"sub": 7}'),
        ("", '{"sub": true}'),
        ("", '{"sub": "alice"}'),
        ("", f'{{"sub": ["{ALICE}"]}}'),
        ("", f'{{"sub": {{"sub": "{ALICE}"}}}}'),
        ("", f'["sub", "{ALICE}"]'),
        ("", f'{{"SUB": "{ALICE}"}}'),
        (f"{ALICE} or true", ""),
        (f"{ALICE}'--", ""),
        ("%", ""),
    ]
)

IDENTITIES = (ANON, A, B, OPERATOR, EMPTY, EXPIRED, *GARBAGE)


# -- Whose rows -------------------------------------------------------------------------------------------------------

Rule = Callable[[Identity], Owners]


def nobodys(_: Identity) -> Owners:
    return NONE


def everybodys(_: Identity) -> Owners:
    return ALL


def own(identity: Identity) -> Owners:
    """Of operators too: the rows of all are read through a view."""
    return frozenset([identity.owner]) if identity.owner else NONE


def own_or_operated(identity: Identity) -> Owners:
    return ALL if identity.is_operator else own(identity)


def operated(identity: Identity) -> Owners:
    return ALL if identity.is_operator else NONE


def own_and_published(identity: Identity) -> Owners:
    return own(identity) | {owner for owner in ALL if owner.startswith(PUBLISHED)} | {"the house"}


def own_published_or_not(identity: Identity) -> Owners:
    return frozenset([identity.owner, PUBLISHED + identity.owner]) if identity.owner else NONE


READ: dict[str, Rule] = {
    "public.crewai_flows": own_and_published,
    "public.crewai_flow_executions": own,
    "flowledger.ended_executions": own,
    "flowledger.transitions": own_or_operated,
    "flowledger.cancel_wishes": own_or_operated,
    "flowledger.timeline": own_or_operated,
    "flowledger.logs": own_or_operated,
    "flowledger.reruns": own_or_operated,
    "flowledger.usage": own_or_operated,
    "flowledger.repricings": own_or_operated,
    "flowledger.repriced_calls": own_or_operated,
    "flowledger.failures": own_or_operated,
    "flowledger.tokens": own_or_operated,
    "flowledger.requests": own_or_operated,
    "flowledger.settings": operated,
    "flowledger.workers": operated,
    "flowledger.queue": operated,
    "flowledger.leases": operated,
    "flowledger.flow_controls": operated,
    "flowledger.prunes": operated,
    "flowledger.spending": operated,
    "flowledger.unfolded_spending": operated,
    "flowledger.budgets": operated,
    "flowledger.reservations": operated,
    "flowledger.watchers": operated,
    "flowledger.logins": nobodys,
    "flowledger.uncounted_executions": nobodys,
    "flowledger.schema_migrations": everybodys,
    "flowledger.prices": everybodys,
    # Views show their owner's sight: nothing guards them but the grants.
    "flowledger.every_execution": everybodys,
    "flowledger.every_ended_execution": everybodys,
    "flowledger.spending_now": everybodys,
}

# What is not here, nobody does to any row.
INSERT: dict[str, Rule] = {
    "public.crewai_flows": own_published_or_not,
    "public.crewai_flow_executions": own,
}
UPDATE: dict[str, Rule] = {
    "public.crewai_flows": own_published_or_not,
    "flowledger.settings": operated,
}
DELETE: dict[str, Rule] = {
    "public.crewai_flows": own,
}


# -- What is granted --------------------------------------------------------------------------------------------------

USERS = frozenset({"authenticated"})
OPERATORS = frozenset({"service_role"})
BOTH = USERS | OPERATORS
ANYBODY = frozenset({"anon", "authenticated", "service_role"})
BEFORE_LOGIN = frozenset({"anon"})
EVERY_ROLE = frozenset({"PUBLIC"})

Roles = frozenset[str]

ON_TABLES: dict[str, dict[str, Roles]] = {
    "public.crewai_flows": {"select": BOTH, "delete": USERS},
    "public.crewai_flow_executions": {"select": BOTH},
    "flowledger.schema_migrations": {"select": ANYBODY},
    "flowledger.ended_executions": {"select": USERS},
    **{
        f"flowledger.{name}": {"select": BOTH}
        for name in (
            "requests",
            "transitions",
            "cancel_wishes",
            "timeline",
            "logs",
            "reruns",
            "usage",
            "repricings",
            "repriced_calls",
            "failures",
            "prices",
        )
    },
    **{
        f"flowledger.{name}": {"select": OPERATORS}
        for name in (
            "every_execution",
            "every_ended_execution",
            "settings",
            "workers",
            "queue",
            "leases",
            "flow_controls",
            "prunes",
            "spending",
            "unfolded_spending",
            "spending_now",
            "budgets",
            "reservations",
            "watchers",
        )
    },
}
"""Privileges on whole tables and views. Sequences are of no role."""

ON_COLUMNS: dict[str, dict[str, tuple[Roles, str]]] = {
    "public.crewai_flows": {
        "insert": (USERS, "flow_key flow_name description flow_definition python_code metadata tags created_by"),
        "update": (USERS, "flow_name description flow_definition python_code metadata tags updated_by"),
    },
    "public.crewai_flow_executions": {
        "insert": (USERS, "flow_id execution_key input_state board_meeting_id executed_by metadata"),
    },
    "flowledger.settings": {"update": (OPERATORS, "value")},
    # All but the digest.
    "flowledger.tokens": {
        "select": (BOTH, "id user_id name hint scopes created_at expires_at last_used_at revoked_at"),
    },
}

ON_FUNCTIONS: dict[Roles, str] = {
    USERS: "flowledger.kickoff flowledger.answered flowledger.remember_answer",
    BOTH: """
        flowledger.is_operator flowledger.execution_key flowledger.cancel flowledger.flows_digest
        flowledger.create_token flowledger.revoke_token
    """,
    OPERATORS: """
        flowledger.claim flowledger.renew flowledger.finish flowledger.reap flowledger.expire
        flowledger.set_controls flowledger.pause_flow flowledger.resume_flow
        flowledger.open_prune flowledger.prune flowledger.fold_execution_counts flowledger.fold_spending
        flowledger.remember_flow flowledger.enlist_worker flowledger.discharge_worker
        flowledger.append_timeline flowledger.append_events flowledger.append_logs flowledger.append_usage
        flowledger.usage_total flowledger.set_prices flowledger.remove_price flowledger.reprice
        flowledger.reserve flowledger.windows flowledger.set_budget flowledger.remove_budget
        flowledger.watch flowledger.stop_watching flowledger.open_login
    """,
    BEFORE_LOGIN: """
        flowledger.redeem_token flowledger.redeem_login flowledger.redeem_session flowledger.end_session
    """,
    # The platform's own, which tell the caller about themselves; and a trigger, which nobody can call.
    EVERY_ROLE: "auth.uid auth.role auth.jwt public.update_updated_at_column",
}

AS_THE_CALLER = frozenset(
    {
        "auth.uid",
        "auth.role",
        "auth.jwt",
        "public.update_updated_at_column",
        "flowledger.kickoff",
        "flowledger.is_operator",
        "flowledger.execution_key",
        "flowledger.usage_total",
    }
)
"""Functions that somebody may call and that run with the caller's rights. All others that may be called run as the
owner, above the policies, and must look by themselves who calls."""

ON_SCHEMAS: dict[str, dict[str, Roles]] = {
    "flowledger": {"usage": ANYBODY},
    "auth": {"usage": ANYBODY},
    "public": {"usage": ANYBODY | EVERY_ROLE},
}


def granted(role: str | None, table: str, command: str) -> tuple[str, ...] | None:
    """The columns that a role may reach with a command: () means all of them, None that it may not."""
    if role in ON_TABLES.get(table, {}).get(command, NONE):
        return ()
    roles, columns = ON_COLUMNS.get(table, {}).get(command, (NONE, ""))
    return tuple(columns.split()) if role in roles else None


def executable(role: str | None) -> frozenset[str]:
    """The functions that a role may execute."""
    return frozenset(
        name
        for roles, names in ON_FUNCTIONS.items()
        if not roles.isdisjoint({role, "PUBLIC"})
        for name in names.split()
    )
