"""Where a setting comes from: a flag, the environment, the project's pyproject.toml, the default."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowledger.cli.flags import moment, seconds, settings
from flowledger.errors import InvalidInput
from flowledger.settings import Settings


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FLOWLEDGER_{name.upper()}", raising=False)
    return tmp_path


def test_flag_comes_before_environment_before_pyproject_before_default(
    somewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings().slots == 4
    (somewhere / "pyproject.toml").write_text("[tool.flowledger]\nslots = 5\n")
    assert settings().slots == 5
    monkeypatch.setenv("FLOWLEDGER_SLOTS", "6")
    assert settings().slots == 6
    assert settings(slots=7).slots == 7
    assert settings(slots=None).slots == 6


@pytest.mark.parametrize(
    ("name", "value"),
    [("slots", "0"), ("slots", "many"), ("timeout_seconds", "-1"), ("user_id", "ada"), ("log_format", "xml")],
)
def test_wrong_setting_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"FLOWLEDGER_{name.upper()}", value)
    with pytest.raises(InvalidInput) as told:
        settings()
    assert name in told.value.field


def test_every_setting_is_described_and_its_default_valid() -> None:
    assert all(field.description for field in Settings.model_fields.values())
    assert Settings().model_dump() == Settings().model_validate(Settings().model_dump()).model_dump()


def test_password_in_the_database_url_is_not_shown() -> None:
    assert "hunter22" not in repr(settings(database_url="postgresql://ada:hunter22@db/x"))


def test_moment_is_a_date_or_how_long_ago() -> None:
    assert moment(None, "--since") is None
    date, span = moment("2026-11-26T10:00:00+00:00", "--since"), moment("24h", "--since")
    assert date is not None
    assert span is not None
    assert (date.hour, date.utcoffset() is not None) == (date.astimezone().hour, True)
    with pytest.raises(InvalidInput, match="--since"):
        moment("last week", "--since")


def test_span_on_the_command_line_names_its_option() -> None:
    assert (seconds("5m", "--timeout"), seconds(None, "--timeout")) == (300, None)
    with pytest.raises(InvalidInput, match="--timeout"):
        seconds("soon", "--timeout")
