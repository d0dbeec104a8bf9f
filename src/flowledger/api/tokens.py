"""`/tokens`: the caller's own personal tokens."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Self
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import ConfigDict, Field

from flowledger.api.asking import Asked
from flowledger.api.shapes import Shape, refusals
from flowledger.domain.token import Scope, Secret, Token
from flowledger.errors import TokenNotFound
from flowledger.ledger import tokens

router = APIRouter(prefix="/tokens", tags=["tokens"])

LONGEST_DAYS = 3650


class NewTokenShape(Shape):
    """`expires_in_days` left out: it lasts until it is revoked."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "ci", "scopes": ["read"], "expires_in_days": 90}]}
    )

    name: Annotated[str, Field(min_length=1, max_length=tokens.LONGEST_NAME)]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=len(Scope))] = (Scope.RUN,)
    expires_in_days: Annotated[int, Field(ge=1, le=LONGEST_DAYS)] | None = None

    @property
    def lasts(self) -> timedelta | None:
        return None if self.expires_in_days is None else timedelta(days=self.expires_in_days)


class TokenShape(Shape):
    """A token without what it says; `hint` is how it begins. `last_used_at` is true to the minute."""

    id: UUID
    user_id: UUID
    name: str
    hint: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None

    @classmethod
    def of(cls, token: Token) -> Self:
        return cls.model_validate({**vars(token), "scopes": list(token.scopes)})


class MadeTokenShape(TokenShape):
    """`token` is what it says: shown now and never again."""

    token: str

    @classmethod
    def made(cls, token: Token, secret: Secret) -> Self:
        return cls.model_validate({**vars(token), "scopes": list(token.scopes), "token": secret.text})


@router.get("")
async def list_(asked: Asked) -> list[TokenShape]:
    """The caller's tokens that may be used, newest first. At most 100."""
    async with asked.session() as session:
        return [TokenShape.of(token) for token in await tokens.list_(session, asked.claims.user)]


@router.post("", status_code=201)
async def create(asked: Asked, new: NewTokenShape) -> MadeTokenShape:
    """Makes a token of the caller's own. A token makes no other token."""
    async with asked.session() as session:
        return MadeTokenShape.made(*await tokens.create(session, new.name, new.scopes, new.lasts))


@router.delete("/{id}", status_code=204, responses=refusals(404))
async def revoke(asked: Asked, id: UUID) -> Response:  # noqa: A002 - its name in the path
    """Ends one of the caller's tokens, at once."""
    async with asked.as_user.session() as session:
        if not await tokens.revoke(session, id):
            raise TokenNotFound(str(id))
    return Response(status_code=204)
