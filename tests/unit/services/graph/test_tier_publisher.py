"""The tier rule, and the board that tells of changes."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from roost.graph.v1 import graph_service_pb2 as pb

from services.graph import tier_publisher
from services.graph.tier_publisher import KEEP_CEASED_MS, TierPublisher, TierRule, TierWatch, settle_threshold
from services.platform.rpc import errors

NORMAL, CELEBRITY = pb.TIER_NORMAL, pb.TIER_CELEBRITY
AUTOMATIC = pb.TIER_CHOICE_AUTOMATIC
NOW_MS = 1_800_000_000_000


def entry(user_id: int, tier: pb.Tier.ValueType = CELEBRITY, at_ms: int = NOW_MS) -> pb.TierEntry:
    return pb.TierEntry(user_id=user_id, tier=tier, changed_at_ms=at_ms)


@pytest.fixture
def board() -> TierPublisher:
    return TierPublisher(lambda: NOW_MS / 1000)


@pytest.mark.parametrize(
    ("followers", "standing", "expected"),
    [
        (999, NORMAL, NORMAL),
        (1_000, NORMAL, CELEBRITY),
        (999, CELEBRITY, CELEBRITY),
        (800, CELEBRITY, CELEBRITY),
        (799, CELEBRITY, NORMAL),
        (800, NORMAL, NORMAL),
        (0, CELEBRITY, NORMAL),
    ],
)
def test_one_enters_at_the_threshold_and_leaves_below_four_fifths(followers, standing, expected):
    assert TierRule(1_000).tier(followers, standing) == expected


@pytest.mark.parametrize("threshold", [1, 2, 3, 5, 7, 1_001])
def test_the_bounds_are_exact_for_every_threshold(threshold):
    rule = TierRule(threshold)
    for followers in range(threshold + 2):
        assert (rule.tier(followers, NORMAL) == CELEBRITY) == (followers >= threshold)
        assert (rule.tier(followers, CELEBRITY) == NORMAL) == (followers < threshold * 4 / 5)
        # One follower more or less never moves to and fro.
        if rule.tier(followers, NORMAL) == CELEBRITY:
            assert rule.tier(followers, CELEBRITY) == CELEBRITY


@pytest.mark.parametrize("standing", [NORMAL, CELEBRITY])
@pytest.mark.parametrize("followers", [0, 9, 10, 11])
def test_a_decree_decides_alone(standing, followers):
    assert TierRule(10).tier(followers, standing, pb.TIER_CHOICE_CELEBRITY) == CELEBRITY
    assert TierRule(10).tier(followers, standing, pb.TIER_CHOICE_NORMAL) == NORMAL


def test_afresh_knows_no_past():
    assert TierRule(10).from_count_alone(9) == NORMAL
    assert TierRule(10).from_count_alone(10) == CELEBRITY


def test_the_board_keeps_the_newest_entry_of_each_user(board):
    board.post([entry(1, NORMAL, 200), entry(1, CELEBRITY, 100), entry(2, CELEBRITY, NOW_MS)])
    board.post([entry(2, NORMAL, NOW_MS - 1)])
    assert [e.user_id for e in board.entries()] == [2]
    assert board.entries()[0].tier == CELEBRITY


def test_the_board_forgets_those_who_ceased_long_ago_and_no_celebrity(board):
    board.post(
        [
            entry(1, NORMAL, NOW_MS - KEEP_CEASED_MS - 1),
            entry(2, NORMAL, NOW_MS - KEEP_CEASED_MS),
            entry(3, CELEBRITY, 1),
        ]
    )
    assert {e.user_id for e in board.entries()} == {2, 3}


async def test_a_subscriber_gets_what_stands_and_then_each_change_once(board):
    board.post([entry(1)])
    with board.subscribe() as first, board.subscribe() as second:
        assert first.snapshot == second.snapshot == [entry(1)]
        board.post([entry(2)])
        board.post([entry(2), entry(1, NORMAL, NOW_MS + 1)])
        for subscription in (first, second):
            assert await subscription.next(1) == [entry(2), entry(1, NORMAL, NOW_MS + 1)]
            assert await subscription.next(0.001) == []


async def test_a_waiting_subscriber_is_woken(board):
    with board.subscribe() as subscription:
        waiting = asyncio.create_task(subscription.next(10))
        await asyncio.sleep(0)
        board.post([entry(1)])
        assert await asyncio.wait_for(waiting, 30) == [entry(1)]


async def test_messages_are_bounded(board, monkeypatch):
    monkeypatch.setattr(tier_publisher, "MAX_ENTRIES", 2)
    with board.subscribe() as subscription:
        board.post([entry(number) for number in (1, 2, 3)])
        assert await subscription.next(1) == [entry(1), entry(2)]
        assert await subscription.next(1) == [entry(3)]


async def test_a_slow_subscriber_is_ended_and_the_others_go_on(board, monkeypatch):
    monkeypatch.setattr(tier_publisher, "MAX_WAITING", 3)
    with board.subscribe() as slow, board.subscribe() as quick:
        for number in range(1, 5):
            board.post([entry(number)])
            assert await quick.next(1) == [entry(number)]
        with pytest.raises(errors.RoostError) as ended:
            await slow.next(1)
        assert ended.value.code == grpc.StatusCode.UNAVAILABLE
        board.post([entry(9)])
        assert await quick.next(1) == [entry(9)]
    with board.subscribe() as again:
        assert len(again.snapshot) == 5


async def test_stopping_ends_every_subscription(board):
    await board.start()
    with board.subscribe() as subscription:
        waiting = asyncio.create_task(subscription.next(10))
        await asyncio.sleep(0)
        await board.stop()
        with pytest.raises(errors.RoostError, match="UNAVAILABLE"):
            await waiting


async def test_a_changed_threshold_judges_everybody_and_an_unchanged_one_nobody(graph, monkeypatch):
    monkeypatch.setattr(tier_publisher, "RECLASSIFY_BATCH", 2)
    stamp = graph.service.stamp
    assert await settle_threshold(graph.store, TierRule(3), stamp) == 0
    for star, followers in ((50, 3), (51, 2), (52, 1), (53, 2)):
        for follower in range(1, followers + 1):
            await graph.store.follow(follower, star, await stamp())
    assert {e.user_id for e in graph.board.entries()} == {50}

    # The store's own rule goes with the setting: both come from one place in server.py.
    graph.store._rule = TierRule(2)
    assert await settle_threshold(graph.store, TierRule(2), stamp) == 2
    assert {e.user_id for e in await graph.store.tiers(1 << 60)} == {50, 51, 53}
    assert await graph.store.threshold() == 2
    assert await settle_threshold(graph.store, TierRule(2), stamp) == 0


class Rows:
    """A store of tiers that others write, and that may be away."""

    def __init__(self) -> None:
        self.entries: list[pb.TierEntry] = []
        self.away = False

    async def tiers(self, since_ms: int) -> list[pb.TierEntry]:
        assert since_ms == NOW_MS - KEEP_CEASED_MS
        if self.away:
            raise errors.unavailable("away")
        return self.entries


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_watch_brings_to_the_board_what_others_changed(board):
    rows = Rows()
    watch = TierWatch(rows, board, lambda: NOW_MS / 1000, every_s=0.005)
    await watch.start()
    with board.subscribe() as subscription:
        rows.entries = [entry(7)]
        assert await subscription.next(10) == [entry(7)]
        rows.entries = [entry(7, NORMAL, NOW_MS + 1)]
        assert await subscription.next(10) == [entry(7, NORMAL, NOW_MS + 1)]
    await watch.stop()


async def test_a_board_that_may_miss_changes_tells_nobody_anything_until_it_sees_again(board, monkeypatch):
    monkeypatch.setattr(tier_publisher, "BLIND_AFTER_S", 0.05)
    rows = Rows()
    watch = TierWatch(rows, board, lambda: NOW_MS / 1000, every_s=0.005)
    await watch.start()
    subscription = board.subscribe()
    rows.away = True
    await asyncio.sleep(0.02)
    # A moment without an answer is no reason yet.
    board.subscribe()
    with pytest.raises(errors.RoostError, match="UNAVAILABLE"):
        await subscription.next(10)
    with pytest.raises(errors.RoostError, match="UNAVAILABLE"):
        board.subscribe()
    rows.away = False

    def sees() -> bool:
        try:
            board.subscribe()
        except errors.RoostError:
            return False
        return True

    await until(sees)
    await watch.stop()
