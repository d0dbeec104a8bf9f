"""Whom a connection speaks for, and what a refusal is called."""

from __future__ import annotations

import asyncio
import json
from uuid import uuid4

import psycopg
import pytest

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.database.session import (
    UNREADABLE,
    Claims,
    Database,
    address,
    checked,
    connected,
    password,
    translated,
)
from flowledger.errors import (
    DatabaseBusy,
    DatabaseUnreachable,
    FlowledgerError,
    InvalidInput,
    PermissionRefused,
    QueueFull,
    TransitionRefused,
)

DOWN = "postgresql://ada:hunter22@127.0.0.1:1/ledger?connect_timeout=2"


async def test_session_speaks_for_its_claims_and_leaves_nothing_to_the_next(postgres: EmbeddedPostgres) -> None:
    user = uuid4()
    who = b"""
        select current_user::text as role, current_setting('request.jwt.claim.sub', true) as sub,
               current_setting('request.jwt.claims', true) as claims"""
    async with Database(postgres.url("flowledger_api"), most_connections=1) as database:
        async with database.session(Claims(user)) as session:
            first = await (await session.execute(who)).fetchone()
        async with database.session(Claims.of_operator()) as session:
            second = await (await session.execute(who)).fetchone()
        async with database.service() as connection:
            after = await (await connection.execute(who)).fetchone()
    assert first is not None
    assert second is not None
    assert after is not None
    assert (first["role"], first["sub"]) == ("authenticated", str(user))
    assert json.loads(first["claims"]) == {"sub": str(user), "role": "authenticated"}
    assert (second["role"], second["sub"]) == ("service_role", "")
    assert (after["role"], after["sub"], after["claims"]) == ("flowledger_api", "", "")


async def test_failed_session_takes_back_what_it_did(database: EmbeddedPostgres) -> None:
    async with Database(database.url("flowledger_api"), most_connections=1) as api:
        with pytest.raises(RuntimeError):  # noqa: PT012
            async with api.session(Claims.of_operator()) as session:
                await session.execute("update flowledger.settings set value = '1' where name = 'queue_limit'")
                raise RuntimeError
        async with api.session(Claims.of_operator()) as session:
            row = await (
                await session.execute("select value from flowledger.settings where name = 'queue_limit'")
            ).fetchone()
    assert row == {"value": 10_000}


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("FL001", InvalidInput),
        ("FL002", TransitionRefused),
        ("FL003", TransitionRefused),
        ("FL004", TransitionRefused),
        ("FL006", QueueFull),
        ("42501", PermissionRefused),
        ("40001", DatabaseBusy),
        ("40P01", DatabaseBusy),
        ("53300", DatabaseBusy),
        ("53100", DatabaseBusy),
        ("55P03", DatabaseBusy),
        ("57P01", DatabaseUnreachable),
        ("08006", DatabaseUnreachable),
    ],
)
async def test_refusal_of_postgres_is_an_error_that_names_it(
    postgres: EmbeddedPostgres, sqlstate: str, kind: type[FlowledgerError]
) -> None:
    async with Database(postgres.url("flowledger_api"), most_connections=1) as database:
        with pytest.raises(kind) as told:
            async with database.service() as connection:
                await connection.execute(
                    f"do $$ begin raise exception 'just so' using errcode = '{sqlstate}', detail = '7'; end $$".encode()
                )
    assert "just so" in str(told.value) or isinstance(told.value, QueueFull)


async def test_what_has_no_name_of_ours_keeps_its_own(postgres: EmbeddedPostgres) -> None:
    async with Database(postgres.url("flowledger_api"), most_connections=1) as database:
        with pytest.raises(psycopg.errors.UndefinedTable):
            async with database.service() as connection:
                await connection.execute("select 1 from nowhere")


async def test_database_that_is_down_is_told_at_once_and_without_its_password() -> None:
    async with asyncio.timeout(10):
        with pytest.raises(DatabaseUnreachable) as told:
            async with Database(DOWN):
                pass
    assert told.value.address == "127.0.0.1:1/ledger"
    assert "hunter22" not in str(told.value)
    with pytest.raises(DatabaseUnreachable), connected(DOWN):
        pass


async def test_cut_connection_is_replaced_for_the_next_caller(postgres: EmbeddedPostgres) -> None:
    async with Database(postgres.url("flowledger_worker"), most_connections=1) as database:
        with pytest.raises(DatabaseUnreachable):
            async with database.service() as connection:
                await connection.execute("select pg_terminate_backend(pg_backend_pid())")
        async with database.service() as connection:
            assert await (await connection.execute("select 1 as n")).fetchone() == {"n": 1}


async def test_json_beyond_python_is_marked_and_the_rest_is_read(postgres: EmbeddedPostgres) -> None:
    async with (
        Database(postgres.url("flowledger_api"), most_connections=1) as database,
        database.service() as connection,
    ):

        async def read(sql: str) -> object:
            row = await (await connection.execute(f"select ({sql})::jsonb as value".encode())).fetchone()
            assert row is not None
            return row["value"]

        assert await read("""'{"a": [1, null, "é", {}]}'""") == {"a": [1, None, "é", {}]}
        assert await read("repeat('[', 150) || repeat(']', 150)") != {}
        for sql in (
            "repeat('[', 5000) || repeat(']', 5000)",
            "repeat('[', 500) || repeat(']', 500)",
            "repeat('9', 5000)",
        ):
            value = await read(sql)
            assert isinstance(value, dict)
            assert list(value) == [UNREADABLE]


def test_conninfo_gives_up_its_address_and_keeps_its_password() -> None:
    assert address("postgresql://ada:hunter22@db.example:6543/ledger") == "db.example:6543/ledger"
    assert password("postgresql://ada:hunter22@db/x") == "hunter22"
    assert password("host=db") == ""
    with pytest.raises(InvalidInput, match="database_url"):
        checked("postgresql://[half")


def test_other_errors_pass_untouched() -> None:
    with pytest.raises(KeyError), translated("host=db"):
        raise KeyError
