"""Functions: whoever may not call one is refused; and one that runs above the policies neither changes nor tells what
is somebody else's, whatever ids it is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb

from tests.walls import functions
from tests.walls.canaries import FLOW_KEY, OWNERS, Owner, everything_of
from tests.walls.law import ANON, EMPTY, GARBAGE, IDENTITIES, A, B, Identity, executable
from tests.walls.probes import STRANGER, Connection, become, undone

BOB = OWNERS["bob"]
NOBODY_KNOWN = Owner("stranger", STRANGER)
"""What is named after it is not there."""


def test_each_function_runs_with_the_rights_that_the_law_says_and_pins_its_search_path(owner: Connection) -> None:
    assert functions.breaches(owner) == []


@pytest.mark.parametrize("identity", IDENTITIES, ids=lambda identity: identity.name)
def test_whoever_may_not_call_a_function_is_refused(login: Connection, owner: Connection, identity: Identity) -> None:
    refused = [one for one in functions.in_catalog(owner) if one.name not in executable(identity.role)]
    assert len(refused) > 20
    for function in refused:
        with undone(login):
            become(login, identity)
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"):
                login.execute(function.nothing.encode())


# -- With somebody else's ids -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """A call with what is the victim's."""

    function: str
    statement: str
    values: Callable[[Owner], list[Any]]
    works_for: str = "bob"
    """To whom the same call does tell or change something: else it would show nothing."""


def _attack(function: str, values: Callable[[Owner], list[Any]], works_for: str = "bob") -> Attack:
    given = ", ".join("%s" for _ in values(BOB))
    return Attack(function, f"select * from {function}({given})", values, works_for)


ATTACKS = [
    *(
        _attack("flowledger.cancel", lambda o, which=which: [o.executions[which], "not yours"])  # type: ignore[misc]
        for which in range(3)
    ),
    _attack("flowledger.answered", lambda o: [o.canary, o.canary.encode()]),
    _attack("flowledger.answered", lambda o: [o.canary, b"another request"]),
    _attack("flowledger.remember_answer", lambda o: ["a key", b"digest", o.ended]),
    _attack("flowledger.revoke_token", lambda o: [o.token]),
    _attack("flowledger.kickoff", lambda o: [FLOW_KEY, Jsonb({}), None, Jsonb({"rerun_of": str(o.ended)})]),
    # A draft is nobody's to start, its owner's neither.
    _attack("flowledger.kickoff", lambda o: [f"FLOW-{o.canary}"], works_for=""),
    # Whoever knows the secret is its bearer; what else is known of it opens nothing.
    _attack("flowledger.redeem_token", lambda o: [o.secret.sha256], works_for="anon"),
    _attack("flowledger.redeem_session", lambda o: [o.session.sha256], works_for="anon"),
    _attack("flowledger.redeem_login", lambda o: [o.link.sha256, b"s" * 32], works_for="anon"),
    _attack("flowledger.end_session", lambda o: [o.session.sha256], works_for="anon"),
]

TAKE_NO_IDS = {
    "auth.uid": "tells the caller's own claims",
    "auth.role": "tells the caller's own claims",
    "auth.jwt": "tells the caller's own claims",
    "public.update_updated_at_column": "is a trigger",
    "flowledger.is_operator": "tells of the caller's own role",
    "flowledger.execution_key": "makes a random key",
    "flowledger.create_token": "makes a token of the caller's own, see below",
    "flowledger.flows_digest": "tells whether something changed, see below",
}


def test_every_function_that_users_may_call_is_attacked_or_takes_no_ids() -> None:
    callable_ = executable("authenticated") | executable("anon")
    assert {attack.function for attack in ATTACKS} | set(TAKE_NO_IDS) == callable_


def answered(owner: Connection, identity: Identity, attack: Attack, victim: Owner) -> str:
    """What the caller is told. Names and new ids are left out."""
    try:
        with owner.transaction():
            become(owner, identity)
            with owner.cursor(row_factory=tuple_row) as cursor:
                told = str(cursor.execute(attack.statement.encode(), attack.values(victim)).fetchall())
            owner.execute("select set_config('role', 'none', true)")
    except psycopg.Error as refusal:
        told = str(refusal)
    return _without_names(told, victim)


def _without_names(text: str, victim: Owner) -> str:
    for mark in victim.markers:
        text = text.replace(mark, "VICTIM")
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", text)


@pytest.mark.parametrize("identity", [A, EMPTY, *GARBAGE], ids=lambda identity: identity.name)
def test_what_is_somebody_elses_is_as_if_it_were_not_there(owner: Connection, identity: Identity) -> None:
    before = everything_of(owner, identity.owner or "")
    for attack in ATTACKS:
        with undone(owner):
            told = answered(owner, identity, attack, BOB)
            assert everything_of(owner, identity.owner or "") == before, attack
        with undone(owner):
            as_if = answered(owner, identity, attack, NOBODY_KNOWN)
        # Claims that cannot be read stop a call where it first looks at them; that is no answer.
        is_stopped = identity in GARBAGE and told.startswith("invalid input syntax for type")
        assert is_stopped or told == as_if, attack


@pytest.mark.parametrize("attack", [one for one in ATTACKS if one.works_for], ids=lambda attack: attack.function)
def test_the_same_call_does_something_for_whoever_may(owner: Connection, attack: Attack) -> None:
    """Else the attacks would be calls of nothing."""
    identity = {"bob": B, "anon": ANON}[attack.works_for]
    before = everything_of(owner)
    with undone(owner):
        told = answered(owner, identity, attack, BOB)
        does_change = everything_of(owner) != before
    with undone(owner):
        as_if = answered(owner, identity, attack, NOBODY_KNOWN)
    assert does_change or told != as_if


# -- Tokens and logins ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "digests"),
    [
        ("flowledger.redeem_token", [BOB.session.sha256, BOB.link.sha256, BOB.token.bytes, b"", b"\0" * 32]),
        ("flowledger.redeem_session", [BOB.secret.sha256, BOB.link.sha256, BOB.canary.encode(), b"", b"\0" * 32]),
    ],
)
def test_one_kind_of_secret_is_none_of_another(owner: Connection, function: str, digests: list[bytes]) -> None:
    for digest in digests:
        with undone(owner):
            become(owner, ANON)
            with owner.cursor(row_factory=tuple_row) as cursor:
                found = cursor.execute(f"select * from {function}(%s)".encode(), [digest]).fetchall()
            assert found in ([], [(None,)])


def test_a_token_is_made_of_the_callers_own_alone(owner: Connection) -> None:
    make = "select * from flowledger.create_token(%s, %s, 'h', %s, null)"
    with undone(owner):
        before = everything_of(owner, "alice")
        become(owner, A)
        made = owner.execute(make, [BOB.canary, b"d" * 32, ["run"]]).fetchone()
        owner.execute("select set_config('role', 'none', true)")
        owner.execute("update flowledger.tokens set name = 'hers' where id = %s", [made["id"]])
        assert str(made["user_id"]) == A.sub
        assert everything_of(owner, "alice") == before
    for identity in (EMPTY, *GARBAGE):
        with undone(owner):
            become(owner, identity)
            with pytest.raises(psycopg.Error):
                owner.execute(make, ["mine", b"d" * 32, ["run"]])
    with undone(owner):
        become(owner, A)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            owner.execute(make, ["mine", b"d" * 32, ["run", "operate"]])


def test_the_digest_of_flows_stays_when_a_draft_of_somebody_elses_changes(owner: Connection) -> None:
    def digest(identity: Identity) -> str:
        with undone(owner):
            become(owner, identity)
            return str(owner.execute("select flowledger.flows_digest() as digest").fetchone()["digest"])

    with undone(owner):
        before = {identity.name: digest(identity) for identity in (A, B)}
        owner.execute("update crewai_flows set flow_name = 'changed' where id = %s", [BOB.draft])
        owner.execute("update flowledger.flow_controls set paused_reason = 'changed' where flow_id = %s", [BOB.draft])
        assert digest(A) == before["alice"]
        assert digest(B) != before["bob"]


def test_nobody_but_an_operator_is_taken_for_one(login: Connection) -> None:
    for identity in IDENTITIES:
        if "flowledger.is_operator" in executable(identity.role):
            with undone(login):
                become(login, identity)
                found = login.execute("select flowledger.is_operator() as is_operator").fetchone()
            assert found == {"is_operator": identity.is_operator}
