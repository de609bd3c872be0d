"""Two people as one value: every act against a model of sets, and a change finished by whoever reads the row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.event.v1 import event_pb2

from services.graph.events import Change
from services.graph.store.cassandra.relationship import FOLLOWERS, FOLLOWING, Act, Edge, EdgeChange, Pair, ends, pair_of
from services.platform.rpc import errors

LOW, HIGH = 3, 8
NOW_US = 1_000

acts = st.lists(st.tuples(st.sampled_from(Act), st.sampled_from([LOW, HIGH])), max_size=30)


def change(number: int) -> Change:
    return Change(5_000 + number, 100 * number, tuple(range(100 * number + 1, 100 * number + 6)), "00-a-b-01")


def columns(pair: Pair) -> tuple[object, ...]:
    """The row as it is read back."""
    return pair.values()


def written(rows: set[tuple[object, ...]], deed: EdgeChange) -> None:
    """Does to a set of rows what the steps do to the lists by user."""
    for statement, values in deed.rows():
        words = statement.split()
        adds = words[0] == "INSERT"
        table = words[2]
        key = values[:-1] if adds else values[1:]
        (rows.add if adds else rows.discard)((table, *key))


@given(acts)
def test_lists_and_counts_follow_from_the_changes_of_the_row(doings):
    pair, rows = Pair(LOW, HIGH), set()
    for number, (act, source) in enumerate(doings, 1):
        kind, makes = act.value
        target = LOW + HIGH - source
        try:
            edges = pair.after(act, source, Edge(change(number).at_ms, number % 3))
        except errors.RoostError:
            assert act is Act.FOLLOW
            tie = pair.relationship(source)
            assert tie.blocking or tie.blocked_by
            continue
        before = pair.relationship(source)
        held = (before.following, before.blocking, before.muting)[kind]
        assert (edges is None) == (held == makes)
        if edges is None:
            continue
        pair = Pair.of(LOW, HIGH, columns(pair.changed(edges, change(number), NOW_US)))
        deed = EdgeChange.of(pair)
        assert deed.change == change(number)
        written(rows, deed)
        written(rows, deed)
        assert pair.change == 100 * number
        assert source in deed.readers()
        assert (target in deed.readers()) == (act not in (Act.MUTE, Act.UNMUTE))
    one, two = pair.relationship(LOW), pair.relationship(HIGH)
    assert (one.following, one.blocking) == (two.followed_by, two.blocked_by)
    assert (two.following, two.blocking) == (one.followed_by, one.blocked_by)
    expected = set()
    for source, target, tie in ((LOW, HIGH, one), (HIGH, LOW, two)):
        for held, table in (
            (tie.following, "following_by_user"),
            (tie.blocking, "blocks_by_user"),
            (tie.muting, "mutes_by_user"),
        ):
            expected |= {(table, source, target)} if held else set()
        expected |= {("followers_by_user", target, source)} if tie.following else set()
    assert {(row[0], row[1], row[-1]) for row in rows} == expected
    assert len(rows) == len(expected)


def test_stamps_only_grow_whatever_the_clock_says():
    pair = Pair(LOW, HIGH)
    stamps = []
    for number, act in enumerate([Act.FOLLOW, Act.UNFOLLOW] * 3, 1):
        pair = pair.changed(pair.after(act, LOW, Edge(1)), change(number), 1_000 - number)
        stamps.append(pair.stamp)
    assert stamps == sorted(set(stamps))


def test_a_block_tells_of_itself_first_and_then_of_each_follow_that_it_ends():
    pair = Pair(LOW, HIGH)
    for number, (act, source) in enumerate([(Act.FOLLOW, LOW), (Act.FOLLOW, HIGH), (Act.BLOCK, HIGH)], 1):
        pair = pair.changed(pair.after(act, source, Edge(number, number)), change(number), NOW_US)
    deed = EdgeChange.of(pair)
    records = deed.facts().records
    assert [record.topic for record in records] == ["user.blocked", "user.unfollowed", "user.unfollowed"]
    assert [record.event_id for record in records] == [301, 302, 303]
    blocked = event_pb2.Event.FromString(records[0].payload).user_blocked
    assert (blocked.user_id, blocked.target_id) == (HIGH, LOW)
    assert {pair_of(record) for record in records} == {(LOW, HIGH)}
    # Each count once a side, and the followers' in the buckets where they lay.
    assert sorted(deed.counted()) == sorted(
        [(LOW, FOLLOWING, 0), (HIGH, FOLLOWERS, 1), (HIGH, FOLLOWING, 0), (LOW, FOLLOWERS, 2)]
    )


@pytest.mark.parametrize("pair", [(1, 2), (2, 1)])
def test_the_key_of_two_people_is_the_same_from_both_sides(pair):
    assert ends(*pair) == (1, 2)
