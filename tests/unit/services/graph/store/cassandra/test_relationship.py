"""Tests the edges of two users as one value: every action against a model of sets, and changes finished by another
process."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.event.v1 import event_pb2

from services.graph.events import WriteStamp
from services.graph.store.cassandra.relationship import (
    FOLLOWERS,
    FOLLOWING,
    Edge,
    EdgeAction,
    EdgeChange,
    Pair,
    pair_key,
    pair_key_of,
)
from services.platform.rpc import errors

LOW, HIGH = 3, 8
NOW_US = 1_000

acts = st.lists(st.tuples(st.sampled_from(EdgeAction), st.sampled_from([LOW, HIGH])), max_size=30)


def change(number: int) -> WriteStamp:
    return WriteStamp(5_000 + number, 100 * number, tuple(range(100 * number + 1, 100 * number + 6)), "00-a-b-01")


def columns(pair: Pair) -> tuple[object, ...]:
    """Returns the row as a read would return it."""
    return pair.values()


def written(rows: set[tuple[object, ...]], edge_change: EdgeChange) -> None:
    """Applies the statements of a change to a set of rows."""
    for statement, values in edge_change.rows():
        words = statement.split()
        adds = words[0] == "INSERT"
        table = words[2]
        key = values[:-1] if adds else values[1:]
        (rows.add if adds else rows.discard)((table, *key))


@given(acts)
def test_edge_change_rows_and_counts_agree_with_model(doings):
    pair, rows = Pair(LOW, HIGH), set()
    for number, (action, source) in enumerate(doings, 1):
        kind, makes = action.value
        target = LOW + HIGH - source
        try:
            edges = pair.after(action, source, Edge(change(number).at_ms, number % 3))
        except errors.RoostError:
            assert action is EdgeAction.FOLLOW
            tie = pair.relationship(source)
            assert tie.blocking or tie.blocked_by
            continue
        before = pair.relationship(source)
        paused_reads = (before.following, before.blocking, before.muting)[kind]
        assert (edges is None) == (paused_reads == makes)
        if edges is None:
            continue
        pair = Pair.of(LOW, HIGH, columns(pair.changed(edges, change(number), NOW_US)))
        edge_change = EdgeChange.of(pair)
        assert edge_change.change == change(number)
        written(rows, edge_change)
        written(rows, edge_change)
        assert pair.change == 100 * number
        assert source in edge_change.readers()
        assert (target in edge_change.readers()) == (action not in (EdgeAction.MUTE, EdgeAction.UNMUTE))
    one, two = pair.relationship(LOW), pair.relationship(HIGH)
    assert (one.following, one.blocking) == (two.followed_by, two.blocked_by)
    assert (two.following, two.blocking) == (one.followed_by, one.blocked_by)
    expected = set()
    for source, target, tie in ((LOW, HIGH, one), (HIGH, LOW, two)):
        for paused_reads, table in (
            (tie.following, "following_by_user"),
            (tie.blocking, "blocks_by_user"),
            (tie.muting, "mutes_by_user"),
        ):
            expected |= {(table, source, target)} if paused_reads else set()
        expected |= {("followers_by_user", target, source)} if tie.following else set()
    assert {(row[0], row[1], row[-1]) for row in rows} == expected
    assert len(rows) == len(expected)


def test_pair_changed_clock_set_back_increases_stamp():
    pair = Pair(LOW, HIGH)
    stamps = []
    for number, action in enumerate([EdgeAction.FOLLOW, EdgeAction.UNFOLLOW] * 3, 1):
        pair = pair.changed(pair.after(action, LOW, Edge(1)), change(number), 1_000 - number)
        stamps.append(pair.stamp)
    assert stamps == sorted(set(stamps))


def test_edge_change_block_publishes_block_before_unfollows():
    pair = Pair(LOW, HIGH)
    for number, (action, source) in enumerate(
        [(EdgeAction.FOLLOW, LOW), (EdgeAction.FOLLOW, HIGH), (EdgeAction.BLOCK, HIGH)], 1
    ):
        pair = pair.changed(pair.after(action, source, Edge(number, number)), change(number), NOW_US)
    edge_change = EdgeChange.of(pair)
    records = edge_change.events().records
    assert [record.topic for record in records] == ["user.blocked", "user.unfollowed", "user.unfollowed"]
    assert [record.event_id for record in records] == [301, 302, 303]
    blocked = event_pb2.Event.FromString(records[0].payload).user_blocked
    assert (blocked.user_id, blocked.target_id) == (HIGH, LOW)
    assert {pair_key_of(record) for record in records} == {(LOW, HIGH)}
    # One dirty count per side, and the followers' counts in the buckets that held the edges.
    assert sorted(edge_change.changed_counts()) == sorted(
        [(LOW, FOLLOWING, 0), (HIGH, FOLLOWERS, 1), (HIGH, FOLLOWING, 0), (LOW, FOLLOWERS, 2)]
    )


@pytest.mark.parametrize("pair", [(1, 2), (2, 1)])
def test_pair_key_is_independent_of_order(pair):
    assert pair_key(*pair) == (1, 2)
