"""The database as source text: `schema/` as it is, `migrations/` as it came to be, `queries/` as the ledger asks.

A query file holds blocks, one for each query; a block opens with `-- name: its_name` and one sentence.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import LiteralString, cast

_BLOCK = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def query(file: str, name: str) -> LiteralString:
    """The text of one named query of `queries/<file>.sql`. Raises KeyError for a name that is not there."""
    return _queries(file)[name]


@cache
def _queries(file: str) -> dict[str, LiteralString]:
    text = (files(__name__) / "queries" / f"{file}.sql").read_text()
    _, *parts = _BLOCK.split(text)
    # Files of this package are as trusted as the source beside them.
    return {name: cast(LiteralString, body.strip()) for name, body in zip(parts[::2], parts[1::2], strict=True)}
