"""Tests the tier rule, the publisher of tier changes and the poller."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from roost.graph.v1 import graph_service_pb2 as pb

from services.graph import tier_publisher
from services.graph.store.sqlite.stores import stores_on
from services.graph.tier_publisher import (
    FORMER_CELEBRITY_RETENTION_MS,
    STALE_AFTER_S,
    TierPoller,
    TierPublisher,
    TierRule,
    apply_threshold,
)
from services.platform.rpc import errors
from services.platform.versions import MemoryVersions
from tests.waiting import wait_until

NORMAL, CELEBRITY = pb.TIER_NORMAL, pb.TIER_CELEBRITY
AUTOMATIC = pb.TIER_CHOICE_AUTOMATIC
NOW_MS = 1_800_000_000_000


def entry(user_id: int, tier: pb.Tier.ValueType = CELEBRITY, at_ms: int = NOW_MS) -> pb.TierEntry:
    return pb.TierEntry(user_id=user_id, tier=tier, changed_at_ms=at_ms)


@pytest.fixture
def publisher() -> TierPublisher:
    return TierPublisher(lambda: NOW_MS / 1000)


@pytest.mark.parametrize(
    ("followers", "current", "expected"),
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
def test_tier_rule_promotes_at_threshold_and_demotes_below_four_fifths(followers, current, expected):
    assert TierRule(1_000).tier(followers, current) == expected


@pytest.mark.parametrize("threshold", [1, 2, 3, 5, 7, 1_001])
def test_tier_rule_bounds_are_exact_for_every_threshold(threshold):
    rule = TierRule(threshold)
    for followers in range(threshold + 2):
        assert (rule.tier(followers, NORMAL) == CELEBRITY) == (followers >= threshold)
        assert (rule.tier(followers, CELEBRITY) == NORMAL) == (followers < threshold * 4 / 5)
        # One follower more or less never changes the tier twice.
        if rule.tier(followers, NORMAL) == CELEBRITY:
            assert rule.tier(followers, CELEBRITY) == CELEBRITY


@pytest.mark.parametrize("current", [NORMAL, CELEBRITY])
@pytest.mark.parametrize("followers", [0, 9, 10, 11])
def test_tier_rule_operator_choice_overrides_count(current, followers):
    assert TierRule(10).tier(followers, current, pb.TIER_CHOICE_CELEBRITY) == CELEBRITY
    assert TierRule(10).tier(followers, current, pb.TIER_CHOICE_NORMAL) == NORMAL


def test_tier_rule_from_count_alone_ignores_current_tier():
    assert TierRule(10).from_count_alone(9) == NORMAL
    assert TierRule(10).from_count_alone(10) == CELEBRITY


def test_publisher_keeps_newest_entry_of_each_user(publisher):
    publisher.publish([entry(1, NORMAL, 200), entry(1, CELEBRITY, 100), entry(2, CELEBRITY, NOW_MS)])
    publisher.publish([entry(2, NORMAL, NOW_MS - 1)])
    assert [e.user_id for e in publisher.entries()] == [2]
    assert publisher.entries()[0].tier == CELEBRITY


def test_publisher_drops_old_demotions_but_no_celebrity(publisher):
    publisher.publish(
        [
            entry(1, NORMAL, NOW_MS - FORMER_CELEBRITY_RETENTION_MS - 1),
            entry(2, NORMAL, NOW_MS - FORMER_CELEBRITY_RETENTION_MS),
            entry(3, CELEBRITY, 1),
        ]
    )
    assert {e.user_id for e in publisher.entries()} == {2, 3}


async def test_subscription_returns_snapshot_then_each_change_once(publisher):
    publisher.publish([entry(1)])
    with publisher.subscribe() as first, publisher.subscribe() as second:
        assert first.snapshot == second.snapshot == [entry(1)]
        publisher.publish([entry(2)])
        publisher.publish([entry(2), entry(1, NORMAL, NOW_MS + 1)])
        for subscription in (first, second):
            assert await subscription.next(1) == [entry(2), entry(1, NORMAL, NOW_MS + 1)]
            assert await subscription.next(0.001) == []


async def test_subscription_waiting_is_woken_by_publish(publisher):
    with publisher.subscribe() as subscription:
        waiting = asyncio.create_task(subscription.next(10))
        await asyncio.sleep(0)
        publisher.publish([entry(1)])
        assert await asyncio.wait_for(waiting, 30) == [entry(1)]


async def test_subscription_next_returns_at_most_max_entries(publisher, monkeypatch):
    monkeypatch.setattr(tier_publisher, "MAX_ENTRIES", 2)
    with publisher.subscribe() as subscription:
        publisher.publish([entry(number) for number in (1, 2, 3)])
        assert await subscription.next(1) == [entry(1), entry(2)]
        assert await subscription.next(1) == [entry(3)]


async def test_slow_subscription_is_ended_and_others_continue(publisher, monkeypatch):
    monkeypatch.setattr(tier_publisher, "MAX_PENDING", 3)
    with publisher.subscribe() as slow, publisher.subscribe() as quick:
        for number in range(1, 5):
            publisher.publish([entry(number)])
            assert await quick.next(1) == [entry(number)]
        with pytest.raises(errors.RoostError) as ended:
            await slow.next(1)
        assert ended.value.code == grpc.StatusCode.UNAVAILABLE
        publisher.publish([entry(9)])
        assert await quick.next(1) == [entry(9)]
    with publisher.subscribe() as again:
        assert len(again.snapshot) == 5


async def test_publisher_stop_ends_every_subscription(publisher):
    await publisher.start()
    with publisher.subscribe() as subscription:
        waiting = asyncio.create_task(subscription.next(10))
        await asyncio.sleep(0)
        await publisher.stop()
        with pytest.raises(errors.RoostError, match="UNAVAILABLE"):
            await waiting


async def test_apply_threshold_classifies_users_only_if_threshold_changed(graph, monkeypatch):
    monkeypatch.setattr(tier_publisher, "RECLASSIFY_BATCH", 2)
    stamp = graph.service.stamp
    assert await apply_threshold(graph.stores.tiers, TierRule(3), stamp) == 0
    for star, followers in ((50, 3), (51, 2), (52, 1), (53, 2)):
        for follower in range(1, followers + 1):
            await graph.stores.edges.follow(follower, star, await stamp())
    assert {e.user_id for e in graph.publisher.entries()} == {50}

    # The store's rule must change together with the setting, as in server.py.
    tiers = stores_on(graph.stores.db, TierRule(2), MemoryVersions()).tiers
    assert await apply_threshold(tiers, TierRule(2), stamp) == 2
    assert {e.user_id for e in await tiers.list_since(1 << 60)} == {50, 51, 53}
    assert await tiers.threshold() == 2
    assert await apply_threshold(tiers, TierRule(2), stamp) == 0


class Rows:
    """A store of tiers that others write, and that may be away."""

    def __init__(self) -> None:
        self.entries: list[pb.TierEntry] = []
        self.away = False
        self.reads = 0

    async def list_since(self, since_ms: int) -> list[pb.TierEntry]:
        assert since_ms == NOW_MS - FORMER_CELEBRITY_RETENTION_MS
        self.reads += 1
        if self.away:
            raise errors.unavailable("away")
        return self.entries


async def test_poller_publishes_changes_of_other_processes(publisher):
    rows = Rows()
    poller = TierPoller(rows, publisher, lambda: NOW_MS / 1000, every_s=0.005)
    await poller.start()
    with publisher.subscribe() as subscription:
        rows.entries = [entry(7)]
        assert await subscription.next(10) == [entry(7)]
        rows.entries = [entry(7, NORMAL, NOW_MS + 1)]
        assert await subscription.next(10) == [entry(7, NORMAL, NOW_MS + 1)]
    await poller.stop()


async def test_publisher_stale_refuses_subscriptions_until_next_poll(publisher):
    rows, now_s = Rows(), 0.0
    poller = TierPoller(rows, publisher, lambda: NOW_MS / 1000, every_s=0.005, monotonic=lambda: now_s)
    await poller.start()
    subscription = publisher.subscribe()
    rows.away = True
    reads = rows.reads
    await wait_until(lambda: rows.reads > reads + 1)
    # A failed poll does not make the publisher stale yet.
    publisher.subscribe()
    now_s = STALE_AFTER_S + 1
    with pytest.raises(errors.RoostError, match="UNAVAILABLE"):
        await subscription.next(10)
    with pytest.raises(errors.RoostError, match="UNAVAILABLE"):
        publisher.subscribe()
    rows.away = False

    def sees() -> bool:
        try:
            publisher.subscribe()
        except errors.RoostError:
            return False
        return True

    await wait_until(sees)
    await poller.stop()
