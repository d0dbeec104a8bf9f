"""One question, two who ask it: users ask the tables for their own rows, operators the views that show every row."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from flowledger.sql import query

FILES = sorted(path.name.removesuffix(".sql") for path in (files("flowledger.sql") / "queries").iterdir())
TWICE = [
    (file, *names)
    for file in FILES
    for names in re.findall(
        r"^-- name: (\w+), (\w+)$", (files("flowledger.sql") / "queries" / f"{file}.sql").read_text(), re.MULTILINE
    )
]


def test_there_are_questions_that_both_ask() -> None:
    assert ("executions", "find_of_user", "find_of_all") in TWICE


@pytest.mark.parametrize(("file", "of_user", "of_all"), TWICE)
def test_a_user_names_whose_rows_and_an_operator_asks_the_views(file: str, of_user: str, of_all: str) -> None:
    own, every = query(file, of_user), query(file, of_all)
    assert "= %(user)s -- own" in own
    assert "%(user)s" not in every
    assert "public.crewai_flow_executions" not in every
    assert "flowledger.ended_executions" not in every
    # What is asked is otherwise the same.
    assert len(every.splitlines()) == len(own.splitlines()) - own.count("-- own")


def test_a_name_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        query("executions", "nonsense")
