"""Topics, and positions that survive a trip through text; what is not ours is told apart."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowledger.domain.change import Position, Snapshot, Topics
from flowledger.errors import InvalidInput

ONE = UUID("00000000-0000-4000-8000-000000000001")


def test_topics_are_read_as_they_are_written():
    topics = Topics.parse(f" executions,execution:{ONE} , flows,")
    assert topics == Topics(frozenset({ONE}), executions=True, flows=True)
    assert Topics.parse(str(topics)) == topics


@pytest.mark.parametrize("text", ["", ",", "execution", "execution:7", "flow", ",".join(["flows"] * 33)])
def test_a_topic_that_is_none_is_named(text):
    with pytest.raises(InvalidInput, match="topics"):
        Topics.parse(text)


snapshots = st.builds(
    lambda numbers, more: Snapshot(max(numbers) + more, tuple(sorted(numbers)[:-1])),
    st.sets(st.integers(1, 2**60), min_size=1, max_size=20),
    st.integers(0, 1000),
)
withins = st.none() | st.tuples(st.integers(1, 2**60), st.integers(1, 2**60))


@given(st.builds(Position, snapshots, withins, st.sampled_from(["", "0f3a"])))
def test_a_position_is_read_as_it_is_written(position):
    assert Position.parse(str(position)) == position


@given(st.text(alphabet="0123456789:,/.;a-+ é", max_size=40))
def test_what_is_no_position_is_none_and_never_an_error(text):
    read = Position.parse(text)
    assert read is None or str(read) == text


def test_a_snapshot_ends_at_a_transaction_and_still_shows_what_it_showed_below():
    snapshot = Snapshot(100, (40, 60, 80))
    assert str(snapshot) == "40:100:40,60,80"
    assert str(snapshot.up_to(70)) == "40:71:40,60,70"
    assert str(snapshot.up_to(30)) == "30:31:30"
