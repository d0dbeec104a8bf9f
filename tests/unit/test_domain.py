"""What things are: statuses, spans of time, keys."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from uuid import uuid4

import psycopg
import pytest

from flowledger.database.embedded import EmbeddedPostgres
from flowledger.domain.duration import format_duration, parse_duration, parse_moment
from flowledger.domain.execution import EXECUTION_KEY_LENGTH, NewExecution, execution_key
from flowledger.domain.mode import Mode
from flowledger.domain.status import TRANSITIONS, Status
from flowledger.domain.usage import Usage
from flowledger.errors import InvalidInput

SHAPE = re.compile(r"(?P<flow>.+)-(?P<stamp>\d{8}T\d{9}Z)-[0-9A-HJKMNP-TV-Z]{16}")


def test_statuses_are_the_six_of_the_table() -> None:
    assert list(Status) == ["pending", "running", "completed", "failed", "cancelled", "timeout"]
    assert list(Mode) == ["manual", "scheduled", "triggered"]


def test_four_statuses_are_terminal_and_nothing_returns_to_pending() -> None:
    assert {status for status in Status if status.is_terminal} == {
        Status.COMPLETED,
        Status.FAILED,
        Status.CANCELLED,
        Status.TIMEOUT,
    }
    assert not any(Status.PENDING in targets for targets in TRANSITIONS.values())
    assert TRANSITIONS.keys() == set(Status)


def test_steps_in_python_are_the_steps_in_the_database(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.url("flowledger")) as owner:
        for before in Status:
            for after in Status:
                row = owner.execute("select flowledger.edge_is_legal(%s, %s)", (str(before), str(after))).fetchone()
                assert row == (after in TRANSITIONS[before],), (before, after)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("7d", 604_800),
        ("250ms", 0.25),
        (" 2W ", 1_209_600),
    ],
)
def test_span_of_time_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5 minutes", "-5", "1h30", "h", "1e3", "∞", "5m 3s"])
def test_what_is_no_span_of_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no span of time"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (None, ""),
        (0, "0 ms"),
        (999, "999 ms"),
        (1000, "1.0 s"),
        (59_949, "59.9 s"),
        (59_999, "1 min 0 s"),
        (96_000, "1 min 36 s"),
        (3_599_999, "1 h 0 min"),
        (7_500_000, "2 h 5 min"),
    ],
)
def test_span_of_time_is_written_for_eyes(milliseconds: int | None, text: str) -> None:
    assert format_duration(milliseconds) == text


@pytest.mark.parametrize("flow_key", ["good", "x" * 63, "x" * 64, "y" * 100, "überflow" * 9])
def test_execution_key_has_one_shape_in_python_and_in_sql(postgres: EmbeddedPostgres, flow_key: str) -> None:
    now = datetime.now(UTC)
    ours = execution_key(flow_key, now)
    with psycopg.connect(postgres.url("flowledger")) as owner:
        row = owner.execute("select flowledger.execution_key(%s)", (flow_key,)).fetchone()
    assert row is not None
    for key in (ours, row[0]):
        assert len(key) <= EXECUTION_KEY_LENGTH
        shape = SHAPE.fullmatch(key)
        assert shape is not None, key
        at = datetime.strptime(shape["stamp"], "%Y%m%dT%H%M%S%fZ").replace(tzinfo=UTC)
        assert abs(at - now) < timedelta(seconds=30)
    assert SHAPE.fullmatch(ours)["flow"] == SHAPE.fullmatch(row[0])["flow"]  # type: ignore[index]


def test_execution_key_is_in_utc_sorts_by_time_and_never_repeats() -> None:
    noon = datetime(2026, 11, 26, 12, 0, 0, 7_000, tzinfo=timezone(timedelta(hours=5)))
    assert execution_key("f", noon).startswith("f-20261126T070000007Z-")
    assert execution_key("f", noon) < execution_key("f", noon + timedelta(milliseconds=1))
    assert len({execution_key("f", noon) for _ in range(1000)}) == 1000


def test_key_longer_than_the_column_is_refused_before_anything_starts() -> None:
    NewExecution("good", execution_key="k" * 100)
    with pytest.raises(InvalidInput, match="execution_key: has 101 characters, the limit is 100"):
        NewExecution("good", execution_key="k" * 101)


@pytest.mark.parametrize("seconds", [0, -1, 2_147_484, float("inf"), float("nan")])
def test_timeout_that_no_row_could_hold_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidInput, match="timeout"):
        NewExecution("good", timeout_seconds=seconds, board_meeting_id=uuid4())


def test_tokens_are_counted_once() -> None:
    total = Usage(10, 4, 2, 5, 3) + Usage(1, 1, 0, 1, 0)
    assert (total, total.total) == (Usage(11, 5, 2, 6, 3), 17)


def test_a_moment_is_a_date_in_its_zone_or_a_span_ago() -> None:
    assert parse_moment("2026-11-26", UTC) == datetime(2026, 11, 26, tzinfo=UTC)
    assert parse_moment("2026-11-26T08:00+02:00", UTC) == datetime(2026, 11, 26, 6, tzinfo=UTC)
    assert parse_moment("2026-11-26").tzinfo is not None
    two_hours_ago = parse_moment("2h")
    assert timedelta(hours=2) <= datetime.now(UTC) - two_hours_ago < timedelta(hours=2, minutes=1)


@pytest.mark.parametrize("text", ["", "yesterday", "99999999999d", "2026-13-01", "1e5"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_moment(text, UTC)
