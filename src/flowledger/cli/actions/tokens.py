"""Makes, lists and revokes personal tokens, as whoever may reach the database: for oneself, and as an operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from rich.text import Text

from flowledger.cli.actions.reading import with_ledger
from flowledger.cli.flags import seconds, settings
from flowledger.cli.opening import Ledger
from flowledger.cli.output import err, local_time, out, plain, short_id, write_json, write_table
from flowledger.domain.token import Scope, Secret, Token
from flowledger.errors import TokenNotFound
from flowledger.ledger import tokens


def create(*, name: str, scopes: Sequence[Scope], expires: str | None, as_json: bool, **flags: Any) -> None:
    span = seconds(expires, "--expires")

    async def make(open_ledger: Ledger) -> tuple[Token, Secret]:
        # Whoever reaches the database is an operator, and gives any scope.
        me = replace(open_ledger.me, role="service_role")
        async with open_ledger.database.session(me) as session:
            return await tokens.create(session, name, scopes, None if span is None else timedelta(seconds=span))

    made, secret = with_ledger(settings(**flags), make)
    if as_json:
        write_json({**plain(made), "token": secret.text})
        return
    out.print(Text(secret.text))
    until = "until it is revoked" if made.expires_at is None else f"until {local_time(made.expires_at)}"
    err.print(Text(f"{made.name} may {', '.join(made.scopes)} {until}. It is not shown again.", "dim"))


def list_(*, as_json: bool, **flags: Any) -> None:
    async def read(open_ledger: Ledger) -> list[Token]:
        async with open_ledger.database.session(open_ledger.operator) as session:
            return await tokens.list_(session, None)

    listed = with_ledger(settings(**flags), read)
    if as_json:
        write_json(listed)
    else:
        _write(listed)


def revoke(*, reference: str, as_json: bool, **flags: Any) -> None:
    async def end(open_ledger: Ledger) -> None:
        async with open_ledger.database.session(open_ledger.operator) as session:
            known = await tokens.list_(session, None)
            found = next((one.id for one in known if _is(one, reference, open_ledger.me.user)), None)
            if found is None or not await tokens.revoke(session, found):
                raise TokenNotFound(reference)

    with_ledger(settings(**flags), end)
    if as_json:
        write_json({"revoked": True})
    else:
        out.print(Text(f"{reference}  revoked"))


def _is(token: Token, reference: str, me: UUID | None) -> bool:
    return str(token.id) == reference or (token.user_id == me and token.name == reference)


def _write(listed: Sequence[Token]) -> None:
    eyes = out.is_terminal
    write_table(
        ("TOKEN", "NAME", "BEGINS", "SCOPES", "USER", "CREATED", "LAST USED", "EXPIRES"),
        [
            (
                str(token.id),
                token.name,
                token.hint,
                ",".join(token.scopes),
                short_id(token.user_id) if eyes else str(token.user_id),
                *(
                    local_time(at) if eyes else str(plain(at) or "")
                    for at in (token.created_at, token.last_used_at, token.expires_at)
                ),
            )
            for token in listed
        ],
    )
