"""Contract: what each edge write changes, what it publishes, and how it is read back."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from roost.event.v1 import event_pb2
from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store import Listing, Position
from services.platform.rpc import errors
from tests.waiting import wait_until_async

ANN, BEN, CAT, DAN = 11, 22, 33, 44


async def test_follow_shows_on_both_sides_and_in_counts(stores, stamp):
    outcome = await stores.edges.follow(ANN, BEN, stamp())
    assert outcome.changed
    assert outcome.relationship == pb.Relationship(user_id=BEN, following=True)
    assert await stores.edges.relationships(BEN, [ANN]) == [pb.Relationship(user_id=ANN, followed_by=True)]
    assert await stores.counts.batch_get([ANN, BEN, CAT]) == {
        ANN: pb.UserCounts(following=1),
        BEN: pb.UserCounts(followers=1),
    }


@pytest.mark.parametrize("verb", ["follow", "block", "mute"])
async def test_edge_write_repeated_changes_and_publishes_nothing(stores, stamp, published, verb):
    write, undo = getattr(stores.edges, verb), getattr(stores.edges, "un" + verb)
    first = await write(ANN, BEN, stamp())
    events, version = await published(), await stores.visibility.relation_version(ANN)
    reopen = await write(ANN, BEN, stamp())
    assert (reopen.changed, reopen.relationship) == (False, first.relationship)
    assert (await published(), await stores.visibility.relation_version(ANN)) == (events, version)

    assert (await undo(ANN, BEN, stamp())).relationship == pb.Relationship(user_id=BEN)
    events, version = await published(), await stores.visibility.relation_version(ANN)
    assert not (await undo(ANN, BEN, stamp())).changed
    assert (await published(), await stores.visibility.relation_version(ANN)) == (events, version)


async def test_follow_repeated_keeps_first_time(stores, stamp):
    await stores.edges.follow(ANN, BEN, stamp(at_ms=1_000))
    await stores.edges.follow(ANN, BEN, stamp(at_ms=2_000))
    assert await stores.lists.page(Listing.FOLLOWERS, BEN, None, 10) == [Position(1_000, ANN)]
    await stores.edges.unfollow(ANN, BEN, stamp())
    await stores.edges.follow(ANN, BEN, stamp(at_ms=3_000))
    assert await stores.lists.page(Listing.FOLLOWERS, BEN, None, 10) == [Position(3_000, ANN)]
    assert await stores.lists.page(Listing.FOLLOWING, ANN, None, 10) == [Position(3_000, BEN)]


async def test_edge_write_publishes_event_with_its_stamp(backend, stores, stamp):
    stamp.traceparent = "00-aa-bb-01"
    change = stamp(at_ms=1_234_567)
    await stores.edges.follow(ANN, BEN, change)
    (record,) = await backend.published(stores)
    event = event_pb2.Event.FromString(record.payload)
    assert (record.topic, record.key, record.event_id) == ("user.followed", ANN, event.event_id)
    assert event.event_id in change.event_ids
    assert record.traceparent == event.traceparent == "00-aa-bb-01"
    assert event.occurred_at.ToMilliseconds() == 1_234_567
    assert event.user_followed == event_pb2.UserFollowed(follower_id=ANN, followee_id=BEN)


async def test_block_removes_follows_in_both_directions(backend, stores, stamp, published):
    await stores.edges.follow(ANN, BEN, stamp())
    await stores.edges.follow(BEN, ANN, stamp())
    assert (await stores.edges.block(ANN, BEN, stamp())).relationship == pb.Relationship(user_id=BEN, blocking=True)
    assert await stores.edges.relationships(BEN, [ANN]) == [pb.Relationship(user_id=ANN, blocked_by=True)]
    assert await stores.counts.batch_get([ANN, BEN]) == {}
    for listing in (Listing.FOLLOWERS, Listing.FOLLOWING):
        assert await stores.lists.page(listing, ANN, None, 10) == await stores.lists.page(listing, BEN, None, 10) == []
    assert (await published())[2:] == ["user.blocked", "user.unfollowed", "user.unfollowed"]
    ids = [record.event_id for record in await backend.published(stores)]
    assert len(set(ids)) == len(ids)


async def test_block_without_follows_publishes_one_event(stores, stamp, published):
    await stores.edges.block(ANN, BEN, stamp())
    await stores.edges.unblock(ANN, BEN, stamp())
    assert await published() == ["user.blocked", "user.unblocked"]


async def test_follow_across_block_is_denied(stores, stamp, published):
    await stores.edges.block(ANN, BEN, stamp())
    for follower, followee in ((ANN, BEN), (BEN, ANN)):
        with pytest.raises(errors.RoostError) as refusal:
            await stores.edges.follow(follower, followee, stamp())
        assert refusal.value.code == grpc.StatusCode.PERMISSION_DENIED
    assert await stores.counts.batch_get([ANN, BEN]) == {}
    assert await published() == ["user.blocked"]


async def test_unblock_restores_no_follow_and_allows_new_follow(stores, stamp):
    await stores.edges.follow(ANN, BEN, stamp())
    await stores.edges.block(BEN, ANN, stamp())
    assert (await stores.edges.unblock(BEN, ANN, stamp())).relationship == pb.Relationship(user_id=ANN)
    assert (await stores.edges.follow(ANN, BEN, stamp())).changed


async def test_mutual_blocks_are_independent(stores, stamp):
    await stores.edges.block(ANN, BEN, stamp())
    await stores.edges.block(BEN, ANN, stamp())
    await stores.edges.unblock(ANN, BEN, stamp())
    assert await stores.edges.relationships(ANN, [BEN]) == [pb.Relationship(user_id=BEN, blocked_by=True)]


async def test_mute_keeps_follow_and_is_hidden_from_target(stores, stamp):
    await stores.edges.follow(ANN, BEN, stamp())
    version = await stores.visibility.relation_version(BEN)
    outcome = await stores.edges.mute(ANN, BEN, stamp())
    assert outcome.relationship == pb.Relationship(user_id=BEN, following=True, muting=True)
    assert await stores.edges.relationships(BEN, [ANN]) == [pb.Relationship(user_id=ANN, followed_by=True)]
    assert await stores.visibility.relation_version(BEN) == version


async def test_relationships_keep_requested_order(stores, stamp):
    await stores.edges.follow(ANN, CAT, stamp())
    found = await stores.edges.relationships(ANN, [DAN, CAT, BEN])
    assert found == [
        pb.Relationship(user_id=DAN),
        pb.Relationship(user_id=CAT, following=True),
        pb.Relationship(user_id=BEN),
    ]


@pytest.mark.parametrize("verb", ["follow", "unfollow", "block", "unblock"])
async def test_edge_write_changes_relation_version_of_both_sides(stores, stamp, verb):
    if verb.startswith("un"):
        await getattr(stores.edges, verb.removeprefix("un"))(ANN, BEN, stamp())
    before = {user: await stores.visibility.relation_version(user) for user in (ANN, BEN, CAT)}
    await getattr(stores.edges, verb)(ANN, BEN, stamp())
    after = {user: await stores.visibility.relation_version(user) for user in (ANN, BEN, CAT)}
    assert after[ANN] not in before.values()
    assert after[BEN] not in before.values()
    assert after[CAT] == before[CAT]


LISTS = [
    (Listing.FOLLOWING, "follow", False),
    (Listing.FOLLOWERS, "follow", True),
    (Listing.BLOCKS, "block", False),
    (Listing.MUTES, "mute", False),
]


@pytest.mark.parametrize(("listing", "verb", "turned"), LISTS)
async def test_page_is_newest_first_without_gap_or_repeat(stores, stamp, listing, verb, turned):
    # Three edges share a millisecond across a page boundary.
    times = {101: 5_000, 102: 7_000, 103: 6_000, 104: 6_000, 105: 6_000, 106: 4_000}
    for other, at_ms in times.items():
        pair = (other, ANN) if turned else (ANN, other)
        await getattr(stores.edges, verb)(*pair, stamp(at_ms=at_ms))
    found: list[Position] = []
    below = None
    while page := await stores.lists.page(listing, ANN, below, 2):
        assert len(page) <= 2
        found += page
        below = page[-1]
    assert [entry.user_id for entry in found] == [102, 105, 104, 103, 101, 106]
    assert {entry.user_id: entry.at_ms for entry in found} == times


@pytest.mark.parametrize(
    ("kind", "verb"), [(pb.EDGE_KIND_FOLLOW, "follow"), (pb.EDGE_KIND_BLOCK, "block"), (pb.EDGE_KIND_MUTE, "mute")]
)
async def test_scan_returns_every_edge_of_kind_in_order(stores, stamp, kind, verb):
    pairs = [(CAT, ANN), (ANN, CAT), (BEN, ANN), (ANN, BEN), (ANN, DAN)]
    for number, pair in enumerate(pairs):
        await getattr(stores.edges, verb)(*pair, stamp(at_ms=1_000 + number))
    await getattr(stores.edges, "mute" if verb != "mute" else "follow")(DAN, ANN, stamp())
    found: list[pb.Edge] = []
    after = (0, 0)
    while edges := await stores.lists.scan(kind, after, 2):
        assert len(edges) <= 2
        found += edges
        after = (edges[-1].from_id, edges[-1].to_id)
    assert [(e.from_id, e.to_id) for e in found] == sorted(pairs)
    assert {(e.from_id, e.to_id): e.created_at_ms for e in found} == {p: 1_000 + n for n, p in enumerate(pairs)}


async def test_store_reopened_keeps_everything(reopenable, stores, stamp):
    await stores.edges.follow(ANN, BEN, stamp())
    await stores.edges.block(ANN, CAT, stamp())
    version = await stores.visibility.relation_version(ANN)
    stores = await reopenable.reopen()
    assert (await stores.edges.relationships(ANN, [BEN, CAT])) == [
        pb.Relationship(user_id=BEN, following=True),
        pb.Relationship(user_id=CAT, blocking=True),
    ]
    assert await stores.visibility.relation_version(ANN) == version
    assert await stores.counts.batch_get([BEN]) == {BEN: pb.UserCounts(followers=1)}


async def test_suggestions_are_unfollowed_followees_of_followees(stores, stamp):
    for pair in [
        (ANN, BEN),
        (ANN, CAT),
        (BEN, 1),
        (CAT, 1),
        (CAT, 2),
        (BEN, 3),
        (CAT, 3),
        (BEN, 4),
        (CAT, 5),
        (BEN, CAT),
    ]:
        await stores.edges.follow(*pair, stamp())
    await stores.edges.follow(CAT, ANN, stamp())
    await stores.edges.mute(ANN, 4, stamp())
    await stores.edges.block(5, ANN, stamp())
    assert await stores.lists.suggestions(ANN, 10) == [1, 3, 2]
    assert await stores.lists.suggestions(ANN, 2) == [1, 3]
    assert await stores.lists.suggestions(DAN, 10) == []


async def test_popular_orders_by_followers_then_id(stores, stamp):
    assert await stores.lists.popular(10) == []
    for pair in [(ANN, BEN), (CAT, BEN), (DAN, BEN), (ANN, 7), (ANN, 5), (BEN, 7), (BEN, CAT)]:
        await stores.edges.follow(*pair, stamp())
    await stores.edges.unfollow(BEN, CAT, stamp())
    assert await stores.lists.popular(10) == [BEN, 7, 5]
    assert await stores.lists.popular(2) == [BEN, 7]


async def test_edge_write_cancelled_caller_is_visible_to_next_read(stores, stamp):
    request = pb.GetVisibilityFilterRequest(user_id=ANN)
    await stores.visibility.filter(request)
    write = asyncio.create_task(stores.edges.block(ANN, BEN, stamp()))
    await asyncio.sleep(0)
    write.cancel()
    await stores.edges.block(ANN, CAT, stamp())

    async def shows_both() -> bool:
        return sorted((await stores.visibility.filter(request)).blocked_ids) == [BEN, CAT]

    await wait_until_async(shows_both)


@pytest.mark.cluster
async def test_popular_with_many_users_is_cached_for_a_minute(stores, stamp, monkeypatch):
    from services.graph.store.cassandra import popular_users

    monkeypatch.setattr(popular_users, "SMALL", 2)
    now = 1_000.0
    found = popular_users.PopularUsers(stores.keyspace, stores.counts._follow_counts, lambda: now)
    for pair in [(ANN, BEN), (CAT, BEN), (DAN, CAT)]:
        await stores.edges.follow(*pair, stamp())
    assert await found.best(10) == [BEN, CAT]
    for pair in [(ANN, CAT), (BEN, CAT)]:
        await stores.edges.follow(*pair, stamp())
    now += popular_users.CACHED_S - 1
    assert await found.best(10) == [BEN, CAT]
    now += 1
    assert await found.best(10) == [CAT, BEN]
