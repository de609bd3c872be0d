"""Contract: users with very many followers, whose counts are taken at intervals and whose followers are sharded. Bounds
are lowered."""

from __future__ import annotations

import asyncio
import time

import pytest
from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store import Listing, Position
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster

CELEBRITY_ID = 7


@pytest.fixture
def small_bounds(monkeypatch):
    """Counts are large from 3 on, and followers are sharded from 6 on."""
    from services.graph.store.cassandra import follow_counts, lists, user_index

    monkeypatch.setattr(follow_counts, "SMALL", 3)
    monkeypatch.setattr(follow_counts, "SHARD_FROM", 6)
    monkeypatch.setattr(user_index, "PAGE_ROWS", 2)
    monkeypatch.setattr(user_index, "RANGES_A_READ", 1)
    monkeypatch.setattr(lists, "SCAN_SOURCES", 2)
    monkeypatch.setattr(lists, "SCAN_ROWS", 2)
    monkeypatch.setattr(lists, "SHARE_FACTOR", 0)
    return follow_counts


async def test_large_count_is_read_at_most_once_per_second_and_exact(small_bounds, backend, stores, stamp, monkeypatch):
    from services.graph.store.cassandra import schema

    now_s = time.time()
    backend.clock = lambda: now_s
    counted = 0
    read_each = stores.keyspace.read_each

    async def count(cql, keys):
        nonlocal counted
        # Bucket 0 holds the large count; the other buckets are small and are counted at every read.
        counted += cql == schema.COUNT_FOLLOWERS and (CELEBRITY_ID, 0) in keys
        return await read_each(cql, keys)

    for follower in range(100, 105):
        await stores.edges.follow(follower, CELEBRITY_ID, stamp())
    monkeypatch.setattr(stores.keyspace, "read_each", count)
    for follower in range(105, 115):
        await stores.edges.follow(follower, CELEBRITY_ID, stamp())
    # The follow before these took the count in the same second.
    assert counted == 0
    now_s += small_bounds.RECOUNT_EVERY_MS / 1000
    for _ in range(3):
        assert await stores.counts.batch_get([CELEBRITY_ID]) == {CELEBRITY_ID: pb.UserCounts(followers=15)}
    assert counted == 1


async def test_last_follow_of_burst_is_classified_after_recount(small_bounds, reopenable, stamp, monkeypatch):
    # Longer than the burst of follows takes.
    monkeypatch.setattr(small_bounds, "RECOUNT_EVERY_MS", 3_000)
    monkeypatch.setattr("services.graph.store.cassandra.edge_writer.RECOUNT_EVERY_MS", 3_000)
    stores = await reopenable.reopen(threshold=12)
    published_ids: list[int] = []
    stores.tiers.on_change(lambda entries: published_ids.extend(entry.user_id for entry in entries))
    for follower in range(100, 104):
        await stores.edges.follow(follower, CELEBRITY_ID, stamp())
    await asyncio.gather(*(stores.edges.follow(follower, CELEBRITY_ID, stamp()) for follower in range(104, 113)))
    await wait_until(lambda: published_ids == [CELEBRITY_ID])


async def test_sharded_followers_are_one_list_and_one_count(small_bounds, backend, reopenable, stores, stamp):
    ahead_s = 0.0
    backend.clock = lambda: time.time() + ahead_s
    followers: dict[int, int] = {}

    async def gain(first: int, last: int) -> None:
        for follower in range(first, last):
            followers[follower] = 5_000 + follower % 3
            await stores.edges.follow(follower, CELEBRITY_ID, stamp(at_ms=followers[follower]))

    await gain(100, 107)
    # The count is taken again, and later followers are sharded.
    ahead_s += small_bounds.RECOUNT_EVERY_MS / 1000
    await stores.counts.batch_get([CELEBRITY_ID])
    await gain(107, 140)
    for follower in (101, 108, 120, 139):
        del followers[follower]
        await stores.edges.unfollow(follower, CELEBRITY_ID, stamp())
    buckets = await stores.keyspace.read("SELECT bucket FROM counts WHERE user_id = ? AND side = 0", CELEBRITY_ID)
    assert len(buckets) > 10

    expected = sorted((Position(at_ms, follower) for follower, at_ms in followers.items()), reverse=True)
    # Also in a process that has not read yet that the user is sharded.
    stores = await reopenable.reopen()
    for size in (1, 7, 100):
        found: list[Position] = []
        while page := await stores.lists.page(Listing.FOLLOWERS, CELEBRITY_ID, found[-1] if found else None, size):
            found += page
        assert found == expected
    ahead_s += small_bounds.RECOUNT_EVERY_MS / 1000
    assert await stores.counts.batch_get([CELEBRITY_ID]) == {CELEBRITY_ID: pb.UserCounts(followers=len(expected))}
    followed = sorted(followers)[:5]
    ties = await stores.edges.relationships(CELEBRITY_ID, followed)
    assert all(tie.followed_by for tie in ties)


async def test_scan_covers_several_ranges_and_long_lists(small_bounds, stores, stamp):
    user_index = [3, 5, 1 << 49, (1 << 49) + 1, 1 << 60]
    pairs = [(source, target) for source in user_index for target in user_index if source != target]
    for pair in reversed(pairs):
        await stores.edges.follow(*pair, stamp())
    found: list[tuple[int, int]] = []
    after = (0, 0)
    while edges := await stores.lists.scan(pb.EDGE_KIND_FOLLOW, after, 3):
        found += [(edge.from_id, edge.to_id) for edge in edges]
        after = found[-1]
    assert found == pairs
    judged = 0
    last_id = 0
    while last := (await stores.tiers.reclassify_batch(last_id, 2, stamp())).last_id:
        assert last > last_id
        judged, last_id = judged + 1, last
    assert (judged, last_id) == (3, 1 << 60)
