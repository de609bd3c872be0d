"""Contract: stored tiers follow the counts in the same transaction."""

from __future__ import annotations

from roost.event.v1 import event_pb2
from roost.graph.v1 import graph_service_pb2 as pb

CELEBRITY_ID = 7
NORMAL, CELEBRITY = pb.TIER_NORMAL, pb.TIER_CELEBRITY


async def tier_of(stores, user_id: int = CELEBRITY_ID) -> int:
    return next((entry.tier for entry in await stores.tiers.list_since(0) if entry.user_id == user_id), NORMAL)


async def gain(stores, stamp, followers: int, user_id: int = CELEBRITY_ID, first: int = 100) -> None:
    for follower in range(first, first + followers):
        await stores.edges.follow(follower, user_id, stamp())


async def test_tier_promoted_at_threshold_and_demoted_below_four_fifths(stores, stamp, published):
    told: list[tuple[int, int]] = []
    stores.tiers.on_change(lambda entries: told.extend((entry.user_id, entry.tier) for entry in entries))
    await gain(stores, stamp, 4)
    assert (await tier_of(stores), told) == (NORMAL, [])
    await gain(stores, stamp, 1, first=200)
    # The hook was called before the write returned.
    assert (await tier_of(stores), told) == (CELEBRITY, [(CELEBRITY_ID, CELEBRITY)])
    await stores.edges.unfollow(100, CELEBRITY_ID, stamp())
    assert await tier_of(stores) == CELEBRITY
    await stores.edges.unfollow(101, CELEBRITY_ID, stamp())
    assert (await tier_of(stores), told) == (NORMAL, [(CELEBRITY_ID, CELEBRITY), (CELEBRITY_ID, NORMAL)])
    assert [topic for topic in await published() if topic == "user.tier_changed"] == ["user.tier_changed"] * 2


async def test_tier_changed_event_holds_new_tier(backend, stores, stamp):
    await gain(stores, stamp, 5)
    event = event_pb2.Event.FromString((await backend.published(stores))[-1].payload)
    assert (event.key, event.user_tier_changed) == (
        CELEBRITY_ID,
        event_pb2.UserTierChanged(user_id=CELEBRITY_ID, celebrity=True),
    )


async def test_block_can_demote_a_celebrity(stores, stamp):
    await gain(stores, stamp, 5)
    await stores.edges.block(CELEBRITY_ID, 100, stamp())
    await stores.edges.block(101, CELEBRITY_ID, stamp())
    assert await tier_of(stores) == NORMAL


async def test_block_can_demote_both_users(reopenable, stamp):
    stores = await reopenable.reopen(threshold=1)
    await stores.edges.follow(1, 2, stamp())
    await stores.edges.follow(2, 1, stamp())
    await stores.edges.block(1, 2, stamp())
    assert {entry.user_id: entry.tier for entry in await stores.tiers.list_since(0)} == {1: NORMAL, 2: NORMAL}


async def test_tier_change_times_increase(stores, stamp):
    await gain(stores, stamp, 4)
    await stores.edges.follow(200, CELEBRITY_ID, stamp(at_ms=9_000))
    await stores.edges.unfollow(100, CELEBRITY_ID, stamp(at_ms=8_000))
    await stores.edges.unfollow(101, CELEBRITY_ID, stamp(at_ms=8_000))
    assert await stores.tiers.list_since(0) == [pb.TierEntry(user_id=CELEBRITY_ID, tier=NORMAL, changed_at_ms=9_001)]
    assert await stores.tiers.list_since(9_002) == []
    await gain(stores, stamp, 2)
    assert [entry.tier for entry in await stores.tiers.list_since(1 << 60)] == [CELEBRITY]


async def test_operator_choice_overrides_count(stores, stamp, published):
    assert await stores.tiers.reclassify(CELEBRITY_ID, pb.TIER_CHOICE_CELEBRITY, stamp()) == (CELEBRITY, True)
    assert await stores.tiers.reclassify(CELEBRITY_ID, pb.TIER_CHOICE_CELEBRITY, stamp()) == (CELEBRITY, False)
    await gain(stores, stamp, 1)
    await stores.edges.unfollow(100, CELEBRITY_ID, stamp())
    assert await tier_of(stores) == CELEBRITY
    assert await stores.tiers.reclassify(CELEBRITY_ID, pb.TIER_CHOICE_NORMAL, stamp()) == (NORMAL, True)
    await gain(stores, stamp, 6)
    assert await tier_of(stores) == NORMAL
    assert await stores.tiers.reclassify(CELEBRITY_ID, pb.TIER_CHOICE_AUTOMATIC, stamp()) == (CELEBRITY, True)
    assert (await published()).count("user.tier_changed") == 3


async def test_operator_choice_without_tier_change_is_stored(stores, stamp, published):
    assert await stores.tiers.reclassify(CELEBRITY_ID, pb.TIER_CHOICE_NORMAL, stamp()) == (NORMAL, False)
    await gain(stores, stamp, 6)
    assert await tier_of(stores) == NORMAL
    assert "user.tier_changed" not in await published()


async def test_automatic_choice_of_automatic_user_changes_nothing(stores, stamp):
    await gain(stores, stamp, 5)
    await stores.edges.unfollow(100, CELEBRITY_ID, stamp())
    assert await stores.tiers.reclassify(CELEBRITY_ID, pb.TIER_CHOICE_AUTOMATIC, stamp()) == (CELEBRITY, False)


async def test_reclassify_batch_covers_all_users(reopenable, stamp):
    stores = await reopenable.reopen(threshold=100)
    for user_id, followers in ((1, 2), (2, 1), (3, 2), (4, 3)):
        await gain(stores, stamp, followers, user_id)
    await stores.tiers.reclassify(3, pb.TIER_CHOICE_NORMAL, stamp())
    await stores.tiers.reclassify(2, pb.TIER_CHOICE_CELEBRITY, stamp())
    stores = await reopenable.reopen(threshold=2)
    assert await stores.tiers.reclassify_batch(0, 3, stamp()) == (1, 3)
    assert {entry.user_id for entry in await stores.tiers.list_since(1 << 60)} == {1, 2}
    assert await stores.tiers.reclassify_batch(3, 3, stamp()) == (1, 101)
    assert await stores.tiers.reclassify_batch(101, 3, stamp()) == (0, 102)
    assert await stores.tiers.reclassify_batch(102, 3, stamp()) == (0, 0)
    assert {entry.user_id for entry in await stores.tiers.list_since(1 << 60)} == {1, 2, 4}


async def test_threshold_is_stored(reopenable, stores):
    assert await stores.tiers.threshold() == 0
    await stores.tiers.set_threshold(5)
    await stores.tiers.set_threshold(9)
    assert await (await reopenable.reopen()).tiers.threshold() == 9
