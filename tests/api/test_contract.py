"""The document is true: whatever is asked by it is answered by it, and nothing makes the server fail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from psycopg.rows import dict_row
from structlog.testing import capture_logs

from flowledger import feed
from flowledger.api.document import operations
from flowledger.api.health import HealthShape
from tests.api.conftest import CAROL
from tests.api.contract import Walk, walk
from tests.api.serving import Served, served, signed
from tests.empty_ledger import empty
from tests.ledger.law import ALICE, BOB, append_usage, born, claim, finish, used

EXAMPLES = int(os.environ.get("CONTRACT_EXAMPLES", "3"))
"""For each operation and phase; more with `make contract`, and then other ones each time."""
SEED = 1 if "CONTRACT_EXAMPLES" not in os.environ else None

FLOW = "board_brief"
"""As the document's own examples name it."""


BY_CHANCE = {
    "DELETE /api/v1/budgets/{id}": "a number that nobody guesses",
    "DELETE /api/v1/prices": "a price that was set as it is taken away",
    "PUT /api/v1/budgets": "a scope with what belongs to it",
    "POST /api/v1/crewai/{key}/resume": "nobody waits for an answer in this version",
}
"""Operations that a few examples need not come through, each with what it would take."""


@dataclass(frozen=True)
class Stage:
    """A server, and executions that it can tell of."""

    server: Served
    known: dict[str, list[object]]

    def walked(self, token: str | None, place: Any, **more: Any) -> Walk:
        return walk(self.server.url, token, place, **{"known": self.known, "examples": EXAMPLES, "seed": SEED, **more})


@pytest.fixture(scope="module")
def stage(postgres) -> Iterator[Stage]:
    with pytest.MonkeyPatch.context() as patch:
        # A stream that never ends is never answered.
        patch.setattr(feed, "LONGEST_SECONDS", 0.05)
        with psycopg.connect(postgres.url("flowledger"), autocommit=True) as owner:
            empty(owner)
        with served(postgres, rate_limit="1000000/second") as server:
            lived = [one for user in (ALICE, BOB) for one in _lived(postgres, user)]
            with server.as_user(ALICE) as alice:
                tokens = [alice.post("/api/v1/tokens", json={"name": f"n{number}"}).json()["id"] for number in range(9)]
            known = {"path.reference": lived, "query.with": lived, "query.flow": [FLOW], "path.id": tokens}
            yield Stage(server, {**known, "path.key": [FLOW], "path.kickoff_id": lived})


def _lived(postgres: Any, user: UUID) -> list[UUID]:
    """An execution that has ended, with something of all that can be asked about it, and three that wait."""
    with (
        psycopg.connect(postgres.url("flowledger_worker"), autocommit=True, row_factory=dict_row) as worker,
        psycopg.connect(postgres.url("flowledger_api"), autocommit=True, row_factory=dict_row) as person,
    ):
        known = worker.execute("select id from flowledger.remember_flow(%s, 'Brief', '', '{}', '')", [FLOW]).fetchone()
        assert known is not None
        person.execute("select set_config('request.jwt.claim.sub', %s, false)", [str(user)])
        person.execute("set role authenticated")
        born(person, known["id"])
        held = claim(worker, known["id"], slots=1)[0]
        at = (held["execution_id"], held["fence"], datetime.now(UTC))
        worker.execute(
            """select flowledger.append_events(array[%s], array[%s], array[1], array[null::int], array[null::int],
                                               array[%s], array['method_started'], array['draft'], array['{}'::jsonb]),
                      flowledger.append_logs(array[%s], array[%s], array[1],
                                             array[%s], array['stdout'], array['hello'])""",
            [*at, *at],
        )
        append_usage(worker, held, used(1))
        finish(worker, held["execution_id"], held["fence"], output={"result": "done"})
        return [held["execution_id"], *(born(person, known["id"]) for _ in range(3))]


def lasting(user: UUID, role: str = "authenticated") -> str:
    """A token that outlives a long run."""
    return signed(user, role=role, exp=int(datetime.now(UTC).timestamp()) + 36_000)


@pytest.fixture(scope="module")
def walks(stage, tmp_path_factory) -> dict[str, Walk]:
    """Every phase as a user. In the short form an operator and nobody are spared the longest, which is the same."""
    less = {} if SEED is None else {"phases": "examples,fuzzing,stateful"}
    asked = {
        "user": (lasting(ALICE), {}),
        "operator": (lasting(CAROL, "service_role"), less),
        "nobody": (None, less | ({} if SEED is None else {"examples": 1})),
    }
    return {who: stage.walked(token, tmp_path_factory.mktemp(who), **more) for who, (token, more) in asked.items()}


@pytest.mark.parametrize("who", ["user", "operator", "nobody"])
def test_every_operation_keeps_its_word(walks, who):
    assert walks[who].failures == [], walks[who].output


def test_every_operation_is_asked_and_comes_as_far_as_the_ledger(stage, walks):
    every = [where for where, _ in operations(stage.server.app.openapi())]
    assert {walk.operations for walk in walks.values()} == {len(every)}
    reached = walks["user"].reached + walks["operator"].reached
    assert [where for where in every if not reached[where] and where not in BY_CHANCE] == []


class TestTheWalkFindsWhatItShould:
    @pytest.fixture
    def spoilt(self, postgres) -> Iterator[Served]:
        """The same server with three operations that break their word."""
        router = APIRouter(prefix="/api/v1/spoilt", tags=["health"])

        @router.get("/fails")
        def fails(number: int) -> HealthShape:
            """Divides."""
            return HealthShape(alive=bool(1 // (number - number)))

        @router.get("/lies")
        def lies() -> HealthShape:
            """Answers with something else."""
            return JSONResponse({"alive": "perhaps"})  # type: ignore[return-value]

        @router.get("/keeps-quiet")
        def keeps_quiet() -> HealthShape:
            """Answers with a status that it does not tell of."""
            return JSONResponse({"alive": True}, 418)  # type: ignore[return-value]

        with capture_logs(), served(postgres) as server:
            server.app.include_router(router)
            yield server

    def test_a_fault_a_lie_and_a_secret(self, spoilt, tmp_path):
        told = walk(spoilt.url, None, tmp_path, known={}, examples=1, seed=1, phases="coverage", paths="spoilt")
        assert {(path.rpartition("/")[2], title) for path, title in told.failures} == {
            ("fails", "Server error"),
            ("lies", "Response violates schema"),
            ("keeps-quiet", "Undocumented status code"),
            ("keeps-quiet", "Schema-valid request rejected"),
        }
