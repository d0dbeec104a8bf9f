"""The database as source text: `schema/` as it is, `migrations/` as it came to be, `queries/` as the ledger asks.

A query file holds blocks, one for each query; a block opens with `-- name: its_name` and one sentence. A block that
opens with `-- name: its_of_user, its_of_all` is one question with two who ask it: users, of the tables; operators, of
the views that show every row. A line that ends in `-- own` is for users only: it names their rows, so that the planner
turns the policies into one-time filters.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import LiteralString, cast

_BLOCK = re.compile(r"^-- name: (\w+)(?:, (\w+))?$", re.MULTILINE)
_OWN = re.compile(r"^.*-- own\n", re.MULTILINE)
_EVERY = {
    "public.crewai_flow_executions": "flowledger.every_execution",
    "flowledger.ended_executions": "flowledger.every_ended_execution",
}


def query(file: str, name: str) -> LiteralString:
    """The text of one named query of `queries/<file>.sql`. Raises KeyError for a name that is not there."""
    return _queries(file)[name]


@cache
def _queries(file: str) -> dict[str, LiteralString]:
    text = (files(__name__) / "queries" / f"{file}.sql").read_text()
    _, *parts = _BLOCK.split(text)
    queries = {}
    for name, name_for_operators, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        queries[name] = body.strip()
        if name_for_operators:
            queries[name_for_operators] = _of_every_row(body).strip()
    # Files of this package are as trusted as the source beside them.
    return cast(dict[str, LiteralString], queries)


def _of_every_row(text: str) -> str:
    text = _OWN.sub("", text)
    for table, view in _EVERY.items():
        text = text.replace(table, view)
    return text
