"""Pauses between tries, and when there is no further one."""

from __future__ import annotations

import pytest

from flowledger.client.retries import Attempts, Patience, Pauses, wanted_pause


def test_pauses_double_up_to_the_longest_and_vary():
    pauses = Pauses(first=1, longest=8)
    told = [pauses.next() for _ in range(6)]
    for pause, most in zip(told, (1, 2, 4, 8, 8, 8), strict=True):
        assert most / 2 <= pause <= most
    assert len({Pauses().next() for _ in range(20)}) > 10
    pauses.reset()
    assert pauses.next() <= 1


def test_no_try_begins_after_its_time():
    now = 0.0
    attempts = Attempts(10, clock=lambda: now)
    assert attempts.pause() is not None
    assert attempts.pause(wanted=9) == 9
    assert attempts.pause(wanted=11) is None
    now = 9.99
    assert attempts.pause() is None
    assert Attempts(0).pause() is None


def test_patience_ends_or_does_not():
    now = 0.0
    patience = Patience(2, clock=lambda: now)
    assert patience.left == 2
    now = 3.0
    assert patience.left == 0
    assert Patience(None).left == float("inf")


@pytest.mark.parametrize(
    ("told", "seconds"), [(None, None), ("7", 7), (" 7 ", 7), ("Fri, 27 Nov 2026 03:00:00 GMT", None), ("-1", None)]
)
def test_retry_after_is_read_as_seconds(told, seconds):
    assert wanted_pause(told) == seconds
