"""Users with very many followers: counts that are taken now and then, and followers in buckets. With bounds of a few."""

from __future__ import annotations

import asyncio
import time

import pytest
from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store import Listing, Position

pytestmark = pytest.mark.cluster

STAR = 7
SOON_S = 10.0


@pytest.fixture
def few(monkeypatch):
    """Counts are large from 3 on, and followers are spread from 6 on."""
    from services.graph.store.cassandra import follow_counts, user_index
    from services.graph.store.cassandra import store as cassandra

    monkeypatch.setattr(follow_counts, "SMALL", 3)
    monkeypatch.setattr(follow_counts, "SHARD_FROM", 6)
    monkeypatch.setattr(user_index, "PAGE_ROWS", 2)
    monkeypatch.setattr(user_index, "RANGES_A_READ", 1)
    monkeypatch.setattr(cassandra, "SCAN_SOURCES", 2)
    monkeypatch.setattr(cassandra, "SCAN_ROWS", 2)
    monkeypatch.setattr(cassandra, "SHARE_FACTOR", 0)
    return follow_counts


async def test_a_large_count_is_taken_once_a_second_and_is_exact_then(few, store, stamp, monkeypatch):
    counted = 0
    read_each = store.keyspace.read_each

    async def count(cql, keys):
        nonlocal counted
        counted += "count(*)" in cql
        return await read_each(cql, keys)

    for follower in range(100, 105):
        await store.follow(follower, STAR, stamp())
    monkeypatch.setattr(store.keyspace, "read_each", count)
    begun = time.monotonic()
    for follower in range(105, 115):
        await store.follow(follower, STAR, stamp())
    assert counted <= 2 + (time.monotonic() - begun) * 2
    await asyncio.sleep(few.RECOUNT_EVERY_MS / 1000)
    assert await store.counts([STAR]) == {STAR: pb.UserCounts(followers=15)}


async def test_the_last_of_a_rush_is_judged_a_moment_later(few, opened, stamp, monkeypatch):
    # Longer than the rush takes.
    monkeypatch.setattr(few, "RECOUNT_EVERY_MS", 3_000)
    monkeypatch.setattr("services.graph.store.cassandra.edge_writer.RECOUNT_EVERY_MS", 3_000)
    store = await opened.again(threshold=12)
    told: list[int] = []
    store.on_tier_change(lambda entries: told.extend(entry.user_id for entry in entries))
    for follower in range(100, 104):
        await store.follow(follower, STAR, stamp())
    await asyncio.gather(*(store.follow(follower, STAR, stamp()) for follower in range(104, 113)))
    async with asyncio.timeout(SOON_S):
        while told != [STAR]:
            await asyncio.sleep(0.02)


async def test_followers_in_buckets_are_one_list_and_one_count(few, opened, store, stamp):
    followers: dict[int, int] = {}

    async def gain(first: int, last: int) -> None:
        for follower in range(first, last):
            followers[follower] = 5_000 + follower % 3
            await store.follow(follower, STAR, stamp(at_ms=followers[follower]))

    await gain(100, 107)
    # By then it was counted again, and the next ones are spread.
    await asyncio.sleep(few.RECOUNT_EVERY_MS / 1000)
    await store.counts([STAR])
    await gain(107, 140)
    for follower in (101, 108, 120, 139):
        del followers[follower]
        await store.unfollow(follower, STAR, stamp())
    buckets = await store.keyspace.read("SELECT bucket FROM counts WHERE user_id = ? AND side = 0", STAR)
    assert len(buckets) > 10

    expected = sorted((Position(at_ms, follower) for follower, at_ms in followers.items()), reverse=True)
    # Also by a process that has not learned yet that the user is spread.
    store = await opened.again()
    for size in (1, 7, 100):
        found: list[Position] = []
        while page := await store.page(Listing.FOLLOWERS, STAR, found[-1] if found else None, size):
            found += page
        assert found == expected
    await asyncio.sleep(few.RECOUNT_EVERY_MS / 1000)
    assert await store.counts([STAR]) == {STAR: pb.UserCounts(followers=len(expected))}
    followed = sorted(followers)[:5]
    ties = await store.relationships(STAR, followed)
    assert all(tie.followed_by for tie in ties)


async def test_a_scan_goes_through_ranges_of_ids_and_long_lists(few, store, stamp):
    user_index = [3, 5, 1 << 49, (1 << 49) + 1, 1 << 60]
    pairs = [(source, target) for source in user_index for target in user_index if source != target]
    for pair in reversed(pairs):
        await store.follow(*pair, stamp())
    found: list[tuple[int, int]] = []
    after = (0, 0)
    while edges := await store.scan(pb.EDGE_KIND_FOLLOW, after, 3):
        found += [(edge.from_id, edge.to_id) for edge in edges]
        after = found[-1]
    assert found == pairs
    judged = 0
    last_id = 0
    while last := (await store.judge_afresh(last_id, 2, stamp())).last_id:
        assert last > last_id
        judged, last_id = judged + 1, last
    assert (judged, last_id) == (3, 1 << 60)
