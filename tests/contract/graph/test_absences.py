"""Contract: users who become inactive are excluded from all counts, and included again when they come back."""

from __future__ import annotations

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store import Listing, Position
from services.platform.ids.snowflake import wall_clock_ms

ANN, BEN, CAT = 11, 22, 33


def counts(followers: int = 0, following: int = 0) -> pb.UserCounts:
    return pb.UserCounts(followers=followers, following=following)


def now_us() -> int:
    return wall_clock_ms() * 1000


async def follow_all(stores, stamp):
    for follower, followee in ((ANN, CAT), (BEN, CAT), (CAT, ANN), (ANN, BEN)):
        await stores.edges.follow(follower, followee, stamp())


async def test_set_absent_excludes_user_from_counts_until_back(stores, stamp):
    await follow_all(stores, stamp)
    before = await stores.counts.batch_get([ANN, BEN, CAT])
    at_us = now_us()
    for _ in range(2):
        await stores.counts.set_absent(ANN, True, at_us)
        assert await stores.counts.batch_get([BEN, CAT]) == {BEN: counts(following=1), CAT: counts(followers=1)}
    # Edges and lists stay.
    assert [entry.user_id for entry in await stores.lists.page(Listing.FOLLOWERS, CAT, None, 10)] == [BEN, ANN]
    for _ in range(2):
        await stores.counts.set_absent(ANN, False, at_us + 1)
        assert await stores.counts.batch_get([ANN, BEN, CAT]) == before


async def test_set_absent_older_decision_changes_nothing(stores, stamp):
    await follow_all(stores, stamp)
    before = await stores.counts.batch_get([ANN, BEN, CAT])
    at_us = now_us()
    await stores.counts.set_absent(ANN, True, at_us)
    await stores.counts.set_absent(ANN, False, at_us + 2)
    await stores.counts.set_absent(ANN, True, at_us + 1)
    assert await stores.counts.batch_get([ANN, BEN, CAT]) == before


async def test_set_absent_edges_removed_meanwhile_stay_excluded(stores, stamp):
    await follow_all(stores, stamp)
    at_us = now_us()
    await stores.counts.set_absent(ANN, True, at_us)
    await stores.edges.unfollow(CAT, ANN, stamp())
    await stores.edges.block(BEN, ANN, stamp())
    assert await stores.counts.batch_get([BEN, CAT]) == {BEN: counts(following=1), CAT: counts(followers=1)}
    await stores.counts.set_absent(ANN, False, now_us() + 1)
    assert await stores.counts.batch_get([ANN, BEN, CAT]) == {
        ANN: counts(following=1),
        BEN: counts(following=1),
        CAT: counts(followers=2),
    }
    await stores.edges.unfollow(ANN, CAT, stamp())
    assert await stores.counts.batch_get([CAT]) == {CAT: counts(followers=1)}


async def test_set_absent_mutual_followers_both_absent_and_back(stores, stamp):
    await stores.edges.follow(ANN, BEN, stamp())
    await stores.edges.follow(BEN, ANN, stamp())
    at_us = now_us()
    await stores.counts.set_absent(ANN, True, at_us)
    await stores.counts.set_absent(BEN, True, at_us)
    assert await stores.counts.batch_get([ANN, BEN]) == {}
    await stores.counts.set_absent(ANN, False, at_us + 1)
    assert await stores.counts.batch_get([ANN, BEN]) == {BEN: counts(1, 1)}
    await stores.counts.set_absent(BEN, False, at_us + 1)
    assert await stores.counts.batch_get([ANN, BEN]) == {ANN: counts(1, 1), BEN: counts(1, 1)}


async def test_set_absent_with_more_edges_than_a_batch_excludes_all(stores, stamp, monkeypatch):
    monkeypatch.setattr(f"{type(stores.counts).__module__}.ABSENCE_STEP", 3)
    others = range(100, 108)
    for other in others:
        await stores.edges.follow(ANN, other, stamp())
    at_us = now_us()
    await stores.counts.set_absent(ANN, True, at_us)
    assert await stores.counts.batch_get(others) == {}
    assert await stores.lists.page(Listing.FOLLOWERS, 100, None, 1) == [Position(stamp.now_ms - 7, ANN)]
    await stores.counts.set_absent(ANN, False, at_us + 1)
    assert await stores.counts.batch_get(others) == {other: counts(followers=1) for other in others}
