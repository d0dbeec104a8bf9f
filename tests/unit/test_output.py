"""How values look in JSON and for eyes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import pytest

from flowledger.cli.output import first_line, local_time, money, plain, status_text, tokens, write_table
from flowledger.domain.status import Status


@dataclass(frozen=True)
class Thing:
    at: datetime
    cost: Decimal
    id: UUID
    status: Status
    inner: tuple[object, ...]


def test_json_has_utc_times_money_as_text_and_words_for_statuses() -> None:
    east = datetime(2026, 11, 26, 12, 0, tzinfo=timezone(timedelta(hours=2)))
    thing = Thing(east, Decimal("0.2371"), UUID(int=1), Status.FAILED, ({"n": 1}, None))
    assert json.loads(json.dumps(plain(thing))) == {
        "at": "2026-11-26T10:00:00Z",
        "cost": "0.2371",
        "id": "00000000-0000-0000-0000-000000000001",
        "status": "failed",
        "inner": [{"n": 1}, None],
    }


def test_each_status_has_its_own_shape_and_its_word() -> None:
    texts = [status_text(status).plain for status in Status]
    assert len({text[0] for text in texts}) == len(Status)
    assert all(text.endswith(str(status)) for text, status in zip(texts, Status, strict=True))


def test_time_is_as_short_as_it_can_be() -> None:
    at = datetime(2026, 11, 26, 12, 34, 56, tzinfo=UTC).astimezone()
    day = at.date()
    assert local_time(None) == ""
    assert local_time(at, today=day) == at.strftime("%H:%M:%S")
    assert local_time(at, today=day + timedelta(days=3)) == at.strftime("%a %H:%M")
    assert local_time(at, today=date(2027, 1, 1)) == at.strftime("%Y-%m-%d %H:%M")


@pytest.mark.parametrize(
    ("cost", "text"), [(None, ""), (Decimal("0.2371"), "$0.2371"), (Decimal("1.5000"), "$1.5"), (Decimal(20), "$20")]
)
def test_money_is_written_without_needless_zeros(cost: Decimal | None, text: str) -> None:
    assert money(cost) == text


def test_tokens_and_first_lines() -> None:
    assert (tokens(None), tokens(1377)) == ("", "1,377")
    assert (first_line(None), first_line("\n one\ntwo")) == ("", "one")


def test_no_cell_breaks_the_columns_of_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    write_table(("A", "B"), [("one\ttwo", "three"), ("four", "")])
    assert capsys.readouterr().out == "one two\tthree\nfour\t\n"
