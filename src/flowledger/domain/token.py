"""Personal tokens: what a program carries in place of a JWT. Shown once, known afterwards by its digest."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

PREFIX = "fl_"
_HINT_CHARACTERS = len(PREFIX) + 6


class Scope(StrEnum):
    """What a token may do; each includes those before it."""

    READ = "read"
    """See what its user sees."""
    RUN = "run"
    """Start and cancel executions as its user."""
    OPERATE = "operate"
    """What operators may do: everything of everybody's. Operators alone can give it."""


@dataclass(frozen=True)
class Token:
    """A token that may be used, without what it says. `expires_at` None: it does not expire by itself."""

    id: UUID
    user_id: UUID
    name: str
    hint: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True)
class Secret:
    """A random secret of 256 bits, too many to be guessed, so that a fast digest is enough."""

    text: str = field(repr=False)

    @classmethod
    def fresh(cls, prefix: str = "") -> Secret:
        return cls(prefix + secrets.token_urlsafe(32))

    @property
    def sha256(self) -> bytes:
        """All that is stored of it."""
        return hashlib.sha256(self.text.encode()).digest()

    @property
    def hint(self) -> str:
        """Its beginning, by which its owner tells it from others."""
        return self.text[:_HINT_CHARACTERS]
