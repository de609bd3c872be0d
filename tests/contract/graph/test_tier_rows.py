"""Tiers as the store keeps them: they follow the counts in the same transaction."""

from __future__ import annotations

from roost.event.v1 import event_pb2
from roost.graph.v1 import graph_service_pb2 as pb

STAR = 7
NORMAL, CELEBRITY = pb.TIER_NORMAL, pb.TIER_CELEBRITY


async def tier_of(store, user_id: int = STAR) -> int:
    return next((entry.tier for entry in await store.tiers(0) if entry.user_id == user_id), NORMAL)


async def gain(store, stamp, followers: int, star: int = STAR, first: int = 100) -> None:
    for follower in range(first, first + followers):
        await store.follow(follower, star, stamp())


async def test_the_threshold_makes_a_celebrity_and_less_than_four_fifths_ends_it(store, stamp, published):
    told: list[tuple[int, int]] = []
    store.on_tier_change(lambda entries: told.extend((entry.user_id, entry.tier) for entry in entries))
    await gain(store, stamp, 4)
    assert (await tier_of(store), told) == (NORMAL, [])
    await gain(store, stamp, 1, first=200)
    # Told by the time the write returned.
    assert (await tier_of(store), told) == (CELEBRITY, [(STAR, CELEBRITY)])
    await store.unfollow(100, STAR, stamp())
    assert await tier_of(store) == CELEBRITY
    await store.unfollow(101, STAR, stamp())
    assert (await tier_of(store), told) == (NORMAL, [(STAR, CELEBRITY), (STAR, NORMAL)])
    assert [topic for topic in await published() if topic == "user.tier_changed"] == ["user.tier_changed"] * 2


async def test_the_event_says_which_way(backend, store, stamp):
    await gain(store, stamp, 5)
    event = event_pb2.Event.FromString((await backend.published(store))[-1].payload)
    assert (event.key, event.user_tier_changed) == (STAR, event_pb2.UserTierChanged(user_id=STAR, celebrity=True))


async def test_a_block_can_end_a_tier(store, stamp):
    await gain(store, stamp, 5)
    await store.block(STAR, 100, stamp())
    await store.block(101, STAR, stamp())
    assert await tier_of(store) == NORMAL


async def test_a_block_can_end_two_tiers_at_once(opened, stamp):
    store = await opened.again(threshold=1)
    await store.follow(1, 2, stamp())
    await store.follow(2, 1, stamp())
    await store.block(1, 2, stamp())
    assert {entry.user_id: entry.tier for entry in await store.tiers(0)} == {1: NORMAL, 2: NORMAL}


async def test_times_of_changes_only_grow(store, stamp):
    await gain(store, stamp, 4)
    await store.follow(200, STAR, stamp(at_ms=9_000))
    await store.unfollow(100, STAR, stamp(at_ms=8_000))
    await store.unfollow(101, STAR, stamp(at_ms=8_000))
    assert await store.tiers(0) == [pb.TierEntry(user_id=STAR, tier=NORMAL, changed_at_ms=9_001)]
    assert await store.tiers(9_002) == []
    await gain(store, stamp, 2)
    assert [entry.tier for entry in await store.tiers(1 << 60)] == [CELEBRITY]


async def test_a_decree_stands_whatever_the_count(store, stamp, published):
    assert await store.reclassify(STAR, pb.TIER_CHOICE_CELEBRITY, stamp()) == (CELEBRITY, True)
    assert await store.reclassify(STAR, pb.TIER_CHOICE_CELEBRITY, stamp()) == (CELEBRITY, False)
    await gain(store, stamp, 1)
    await store.unfollow(100, STAR, stamp())
    assert await tier_of(store) == CELEBRITY
    assert await store.reclassify(STAR, pb.TIER_CHOICE_NORMAL, stamp()) == (NORMAL, True)
    await gain(store, stamp, 6)
    assert await tier_of(store) == NORMAL
    assert await store.reclassify(STAR, pb.TIER_CHOICE_AUTOMATIC, stamp()) == (CELEBRITY, True)
    assert (await published()).count("user.tier_changed") == 3


async def test_a_decree_that_moves_nobody_still_holds(store, stamp, published):
    assert await store.reclassify(STAR, pb.TIER_CHOICE_NORMAL, stamp()) == (NORMAL, False)
    await gain(store, stamp, 6)
    assert await tier_of(store) == NORMAL
    assert "user.tier_changed" not in await published()


async def test_automatic_moves_nobody_who_is_automatic(store, stamp):
    await gain(store, stamp, 5)
    await store.unfollow(100, STAR, stamp())
    assert await store.reclassify(STAR, pb.TIER_CHOICE_AUTOMATIC, stamp()) == (CELEBRITY, False)


async def test_judging_afresh_goes_through_everybody_in_batches(opened, stamp):
    store = await opened.again(threshold=100)
    for star, followers in ((1, 2), (2, 1), (3, 2), (4, 3)):
        await gain(store, stamp, followers, star)
    await store.reclassify(3, pb.TIER_CHOICE_NORMAL, stamp())
    await store.reclassify(2, pb.TIER_CHOICE_CELEBRITY, stamp())
    store = await opened.again(threshold=2)
    assert await store.judge_afresh(0, 3, stamp()) == (1, 3)
    assert {entry.user_id for entry in await store.tiers(1 << 60)} == {1, 2}
    assert await store.judge_afresh(3, 3, stamp()) == (1, 101)
    assert await store.judge_afresh(101, 3, stamp()) == (0, 102)
    assert await store.judge_afresh(102, 3, stamp()) == (0, 0)
    assert {entry.user_id for entry in await store.tiers(1 << 60)} == {1, 2, 4}


async def test_the_threshold_last_judged_by_is_remembered(opened, store):
    assert await store.threshold() == 0
    await store.set_threshold(5)
    await store.set_threshold(9)
    assert await (await opened.again()).threshold() == 9
