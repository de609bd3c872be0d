"""Tests what fan-out delivers to whom, in which calls, and what stops it."""

from __future__ import annotations

import contextlib

import grpc
import pytest
from google.protobuf.message import DecodeError
from roost.event.v1 import event_pb2
from roost.fanout.v1 import fanout_service_pb2 as pb

from services.fanout import append_batcher
from services.fanout.consumer import LARGE_TOPIC
from services.fanout.delivery_status import DeliveryTracker
from services.platform.events.log import is_transient
from services.platform.rpc import errors
from services.platform.rpc.errors import RoostError
from services.platform.transport.inprocess_calls import rpc_error
from tests.unit.services.fanout.conftest import World, created, make_fanout

ANN, BOB, STAR = 2, 3, 4


async def test_apply_delivers_every_tweet_to_every_follower(world: World, tracker: DeliveryTracker) -> None:
    world.followers = {ANN: [11, 12], BOB: [12, 13]}
    await make_fanout(world, tracker).apply([created(100, ANN), created(101, BOB), created(102, ANN)])
    assert world.homes == {11: {100, 102}, 12: {100, 101, 102}, 13: {101}}


async def test_apply_reads_followers_once_per_author(world: World, tracker: DeliveryTracker) -> None:
    world.followers = {ANN: [11, 12]}
    fanout = make_fanout(world, tracker)
    await fanout.apply([created(100, ANN), created(101, ANN)])
    assert world.reads == [ANN]
    # And nothing is cached for the next batch.
    world.followers[ANN] = [13]
    await fanout.apply([created(102, ANN)])
    assert world.homes[13] == {102}
    assert world.reads == [ANN, ANN]


async def test_append_calls_are_filled_and_bounded(world: World, tracker: DeliveryTracker) -> None:
    world.followers = {author: range(1_000, 1_000 + 2_500) for author in range(1, 13)}
    await make_fanout(world, tracker).apply([created(100 + author, author) for author in world.followers])
    assert sum(ids for call in world.calls for _, ids in call) == 12 * 2_500
    for call in world.calls:
        assert sum(ids for _, ids in call) <= append_batcher.IDS_PER_CALL
        assert all(0 < ids <= append_batcher.IDS_PER_ENTRY for _, ids in call)
    assert len(world.calls) <= 4
    assert 1 < world.most_in_flight <= append_batcher.CALLS_IN_FLIGHT


async def test_apply_skips_celebrities(world: World, tracker: DeliveryTracker) -> None:
    world.followers = {ANN: [11], STAR: [11, 12]}
    world.is_excluded_from_fanout = {STAR}
    await make_fanout(world, tracker).apply([created(100, STAR), created(101, ANN)])
    assert world.homes == {11: {101}}
    receipt = tracker.get(100)
    assert receipt is not None
    assert (receipt.state, receipt.followers) == (pb.FANOUT_STATE_PULLED, 0)
    assert receipt.finished_ms


@pytest.mark.parametrize("mode", ["push", "pull"])
async def test_apply_other_modes_push_all_authors_without_tiers(
    world: World, tracker: DeliveryTracker, mode: str
) -> None:
    world.followers = {STAR: [11]}
    world.is_excluded_from_fanout = {STAR}
    world.tiers_fresh = False
    await make_fanout(world, tracker, mode).apply([created(100, STAR)])
    assert world.has((11, 100))


async def test_apply_without_tiers_fails_and_loses_nothing(world: World, tracker: DeliveryTracker) -> None:
    world.followers = {ANN: [11]}
    world.tiers_fresh = False
    fanout = make_fanout(world, tracker)
    with pytest.raises(RoostError) as refusal:
        await fanout.apply([created(100, ANN)])
    assert is_transient(refusal.value)
    assert not world.homes
    world.tiers_fresh = True
    await fanout.apply([created(100, ANN)])
    assert world.has((11, 100))


async def test_apply_timeline_unavailable_fails_batch_for_retry(world: World, tracker: DeliveryTracker) -> None:
    world.followers = {ANN: range(1, 30_000), BOB: [40_000]}
    world.refusals = 1
    fanout = make_fanout(world, tracker, quota=100_000)
    batch = [created(100, ANN), created(101, BOB)]
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await fanout.apply(batch)
    assert is_transient(refusal.value)
    receipt = tracker.get(100)
    assert receipt is not None
    assert receipt.state == pb.FANOUT_STATE_RUNNING
    await fanout.apply(batch)
    assert world.has((1, 100), (29_999, 100), (40_000, 101))
    receipt = tracker.get(100)
    assert receipt is not None
    assert (receipt.state, receipt.followers) == (pb.FANOUT_STATE_DONE, 29_999)


async def test_apply_retry_continues_after_delivered_tweets(world: World, tracker: DeliveryTracker) -> None:
    world.followers = {author: [10 * author] for author in range(1, 41)} | {50: range(1_000, 30_000)}
    world.refusals = 1
    fanout = make_fanout(world, tracker, quota=100_000)
    batch = [created(100 + author, author) for author in world.followers]
    with pytest.raises(grpc.aio.AioRpcError):
        await fanout.apply(batch)
    done = {tweet_id for call in world.calls for tweet_id, _ in call} - {150}
    world.calls.clear()
    await fanout.apply(batch)
    assert not done & {tweet_id for call in world.calls for tweet_id, _ in call}
    assert world.has(*((10 * author, 100 + author) for author in range(1, 41)), (29_999, 150))
    # A finished batch is not remembered: a replay delivers it again.
    world.homes.clear()
    await fanout.apply(batch)
    assert world.has(*((10 * author, 100 + author) for author in range(1, 41)), (29_999, 150))


async def test_apply_retry_progresses_while_graph_fails_for_some(world: World, tracker: DeliveryTracker) -> None:
    world.followers = {author: [10 * author] for author in range(1, 41)}
    world.failing = {3, 17}
    fanout = make_fanout(world, tracker)
    batch = [created(100 + author, author) for author in world.followers]
    for left in ({17}, set()):
        with pytest.raises(grpc.aio.AioRpcError):
            await fanout.apply(batch)
        world.failing = left
    world.reads.clear()
    await fanout.apply(batch)
    # The first attempt ended in the first sixteen, the second in the next sixteen.
    assert set(world.reads).isdisjoint(set(range(1, 17)) - {3})
    assert world.has(*((10 * author, 100 + author) for author in range(1, 41)))


async def test_batch_size_shrinks_until_calls_meet_deadline(world: World, tracker: DeliveryTracker) -> None:
    world.followers = {author: range(1_000, 4_000) for author in range(1, 9)}
    world.max_ids_in_time = 2_600
    fanout = make_fanout(world, tracker)
    batch = [created(100 + author, author) for author in world.followers]
    for _ in range(6):
        with contextlib.suppress(grpc.aio.AioRpcError):
            await fanout.apply(batch)
            break
    else:
        pytest.fail("it never ended")
    assert all({100 + author for author in world.followers} <= world.homes[user] for user in range(1_000, 4_000))


def test_batch_size_grows_back_and_shrinks_on_deadline_only() -> None:
    size = append_batcher.AdaptiveBatchSize()
    size.record_outcome(rpc_error(errors.unavailable("not now"), ()))
    assert size.ids == append_batcher.IDS_PER_CALL
    for _ in range(10):
        size.record_outcome(rpc_error(errors.deadline_exceeded(), ()))
    assert size.ids == append_batcher.MIN_IDS_PER_CALL
    for _ in range(100):
        size.record_outcome(None)
    assert size.ids == append_batcher.IDS_PER_CALL


async def test_apply_large_author_is_deferred_to_large_topic(world: World, tracker: DeliveryTracker) -> None:
    world.followers = {ANN: [11], STAR: range(1_000, 6_000)}
    fanout = make_fanout(world, tracker, quota=2_000)
    await fanout.apply([created(100, STAR), created(101, ANN), created(102, STAR)])
    assert world.has((11, 101))
    # No more than the quota was delivered here.
    assert sum(ids for call in world.calls for tweet_id, ids in call if tweet_id != 101) <= 2_000
    assert [(r.topic, r.key, r.event_id) for r in world.appended] == [
        (LARGE_TOPIC, STAR, 100),
        (LARGE_TOPIC, STAR, 102),
    ]
    states = [receipt.state for tweet_id in (100, 101) if (receipt := tracker.get(tweet_id))]
    assert states == [pb.FANOUT_STATE_RUNNING, pb.FANOUT_STATE_DONE]
    # The other consumer gets the same events and finishes them.
    again = [created(100, STAR)._replace(payload=record.payload) for record in world.appended]
    await fanout.apply_large(again)
    assert all({100, 102} <= world.homes[user_id] for user_id in range(1_000, 6_000))
    receipt = tracker.get(100)
    assert receipt is not None
    assert (receipt.state, receipt.followers) == (pb.FANOUT_STATE_DONE, 5_000)


async def test_quota_counts_entries_not_followers(world: World, tracker: DeliveryTracker) -> None:
    world.followers = {ANN: range(1_000, 1_600)}
    fanout = make_fanout(world, tracker, quota=1_000)
    await fanout.apply([created(100, ANN)])
    assert not world.appended
    await fanout.apply([created(101, ANN), created(102, ANN)])
    assert len(world.appended) == 2


async def test_apply_restored_tweet_is_delivered_again(world: World, tracker: DeliveryTracker) -> None:
    world.followers = {ANN: [11]}
    event = event_pb2.Event()
    event.tweet_restored.tweet_id = 100
    event.tweet_restored.author_id = ANN
    restored = created(100, ANN)._replace(topic="tweet.restored", payload=event.SerializeToString())
    await make_fanout(world, tracker).apply([restored])
    assert world.has((11, 100))


@pytest.mark.parametrize("payload", [b"\xff\xff", event_pb2.Event().SerializeToString()])
async def test_apply_malformed_event_raises_permanent_error(
    world: World, tracker: DeliveryTracker, payload: bytes
) -> None:
    broken = created(100, ANN)._replace(payload=payload)
    with pytest.raises((DecodeError, ValueError)) as refusal:
        await make_fanout(world, tracker).apply([broken])
    assert not is_transient(refusal.value)


async def test_tracker_counts_followers_and_warm_homes(world: World, tracker: DeliveryTracker) -> None:
    world.followers = {ANN: [11, 12, 13]}
    world.warm = {12}
    await make_fanout(world, tracker).apply([created(100, ANN)])
    receipt = tracker.get(100)
    assert receipt is not None
    assert (receipt.state, receipt.followers, receipt.delivered) == (pb.FANOUT_STATE_DONE, 3, 1)


async def test_apply_author_without_followers_is_done(world: World, tracker: DeliveryTracker) -> None:
    await make_fanout(world, tracker).apply([created(100, ANN)])
    receipt = tracker.get(100)
    assert receipt is not None
    assert receipt.state == pb.FANOUT_STATE_DONE
    assert not world.calls


def test_tracker_keeps_latest_tweets_only() -> None:
    tracker = DeliveryTracker(lambda: 1.0, max_tracked=2)
    for tweet_id in (1, 2, 1, 3):
        tracker.begin(tweet_id)
    assert [tweet_id for tweet_id in (1, 2, 3) if tracker.get(tweet_id)] == [1, 3]
    tracker.record_delivered(2, 1, 1)
    tracker.end(2, pb.FANOUT_STATE_DONE)
    assert tracker.get(2) is None
