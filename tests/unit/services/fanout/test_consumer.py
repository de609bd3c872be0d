"""What fan-out delivers to whom, in which calls, and what stops it."""

from __future__ import annotations

import contextlib

import grpc
import pytest
from google.protobuf.message import DecodeError
from roost.event.v1 import event_pb2
from roost.fanout.v1 import fanout_service_pb2 as pb

from services.fanout import append_batcher
from services.fanout.consumer import LARGE_TOPIC
from services.fanout.delivery_status import Receipts
from services.platform.events.log import is_transient
from services.platform.rpc import errors
from services.platform.rpc.errors import RoostError
from services.platform.transport.inprocess_calls import rpc_error
from tests.unit.services.fanout.conftest import World, created, make_fanout

ANN, BOB, STAR = 2, 3, 4


async def test_every_follower_gets_every_tweet(world: World, receipts: Receipts) -> None:
    world.followers = {ANN: [11, 12], BOB: [12, 13]}
    await make_fanout(world, receipts).apply([created(100, ANN), created(101, BOB), created(102, ANN)])
    assert world.homes == {11: {100, 102}, 12: {100, 101, 102}, 13: {101}}


async def test_tweets_of_one_author_share_one_look_at_the_followers(world: World, receipts: Receipts) -> None:
    world.followers = {ANN: [11, 12]}
    fanout = make_fanout(world, receipts)
    await fanout.apply([created(100, ANN), created(101, ANN)])
    assert world.reads == [ANN]
    # And none is kept for the next batch.
    world.followers[ANN] = [13]
    await fanout.apply([created(102, ANN)])
    assert world.homes[13] == {102}
    assert world.reads == [ANN, ANN]


async def test_calls_are_packed_and_bounded(world: World, receipts: Receipts) -> None:
    world.followers = {author: range(1_000, 1_000 + 2_500) for author in range(1, 13)}
    await make_fanout(world, receipts).apply([created(100 + author, author) for author in world.followers])
    assert sum(ids for call in world.calls for _, ids in call) == 12 * 2_500
    for call in world.calls:
        assert sum(ids for _, ids in call) <= append_batcher.IDS_A_CALL
        assert all(0 < ids <= append_batcher.IDS_AN_ENTRY for _, ids in call)
    assert len(world.calls) <= 4
    assert 1 < world.most_in_flight <= append_batcher.CALLS_IN_FLIGHT


async def test_celebrities_are_left_to_their_readers(world: World, receipts: Receipts) -> None:
    world.followers = {ANN: [11], STAR: [11, 12]}
    world.is_excluded_from_fanout = {STAR}
    await make_fanout(world, receipts).apply([created(100, STAR), created(101, ANN)])
    assert world.homes == {11: {101}}
    receipt = receipts.get(100)
    assert receipt is not None
    assert (receipt.state, receipt.followers) == (pb.FANOUT_STATE_PULLED, 0)
    assert receipt.finished_ms


@pytest.mark.parametrize("mode", ["push", "pull"])
async def test_other_modes_push_everybody_and_need_no_tiers(world: World, receipts: Receipts, mode: str) -> None:
    world.followers = {STAR: [11]}
    world.is_excluded_from_fanout = {STAR}
    world.tiers_fresh = False
    await make_fanout(world, receipts, mode).apply([created(100, STAR)])
    assert world.has((11, 100))


async def test_without_tiers_nothing_is_delivered_and_nothing_lost(world: World, receipts: Receipts) -> None:
    world.followers = {ANN: [11]}
    world.tiers_fresh = False
    fanout = make_fanout(world, receipts)
    with pytest.raises(RoostError) as refusal:
        await fanout.apply([created(100, ANN)])
    assert is_transient(refusal.value)
    assert not world.homes
    world.tiers_fresh = True
    await fanout.apply([created(100, ANN)])
    assert world.has((11, 100))


async def test_a_refusing_timeline_service_fails_the_batch_so_that_it_comes_again(
    world: World, receipts: Receipts
) -> None:
    world.followers = {ANN: range(1, 30_000), BOB: [40_000]}
    world.refusals = 1
    fanout = make_fanout(world, receipts, quota=100_000)
    batch = [created(100, ANN), created(101, BOB)]
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await fanout.apply(batch)
    assert is_transient(refusal.value)
    receipt = receipts.get(100)
    assert receipt is not None
    assert receipt.state == pb.FANOUT_STATE_RUNNING
    await fanout.apply(batch)
    assert world.has((1, 100), (29_999, 100), (40_000, 101))
    receipt = receipts.get(100)
    assert receipt is not None
    assert (receipt.state, receipt.followers) == (pb.FANOUT_STATE_DONE, 29_999)


async def test_a_batch_that_failed_goes_on_where_it_was(world: World, receipts: Receipts) -> None:
    world.followers = {author: [10 * author] for author in range(1, 41)} | {50: range(1_000, 30_000)}
    world.refusals = 1
    fanout = make_fanout(world, receipts, quota=100_000)
    batch = [created(100 + author, author) for author in world.followers]
    with pytest.raises(grpc.aio.AioRpcError):
        await fanout.apply(batch)
    done = {tweet_id for call in world.calls for tweet_id, _ in call} - {150}
    world.calls.clear()
    await fanout.apply(batch)
    assert not done & {tweet_id for call in world.calls for tweet_id, _ in call}
    assert world.has(*((10 * author, 100 + author) for author in range(1, 41)), (29_999, 150))
    # Once it is done it is forgotten: what is replayed is delivered again.
    world.homes.clear()
    await fanout.apply(batch)
    assert world.has(*((10 * author, 100 + author) for author in range(1, 41)), (29_999, 150))


async def test_each_try_gets_further_while_graph_fails_for_some(world: World, receipts: Receipts) -> None:
    world.followers = {author: [10 * author] for author in range(1, 41)}
    world.failing = {3, 17}
    fanout = make_fanout(world, receipts)
    batch = [created(100 + author, author) for author in world.followers]
    for left in ({17}, set()):
        with pytest.raises(grpc.aio.AioRpcError):
            await fanout.apply(batch)
        world.failing = left
    world.reads.clear()
    await fanout.apply(batch)
    # The first try ended in the first sixteen, the second in the sixteen after those.
    assert set(world.reads).isdisjoint(set(range(1, 17)) - {3})
    assert world.has(*((10 * author, 100 + author) for author in range(1, 41)))


async def test_calls_become_as_small_as_their_deadline_bears(world: World, receipts: Receipts) -> None:
    world.followers = {author: range(1_000, 4_000) for author in range(1, 9)}
    world.bearable = 2_600
    fanout = make_fanout(world, receipts)
    batch = [created(100 + author, author) for author in world.followers]
    for _ in range(6):
        with contextlib.suppress(grpc.aio.AioRpcError):
            await fanout.apply(batch)
            break
    else:
        pytest.fail("it never ended")
    assert all({100 + author for author in world.followers} <= world.homes[user] for user in range(1_000, 4_000))


def test_calls_grow_again_and_only_deadlines_make_them_smaller() -> None:
    size = append_batcher.AdaptiveBatchSize()
    size.ended(rpc_error(errors.unavailable("not now"), ()))
    assert size.ids == append_batcher.IDS_A_CALL
    for _ in range(10):
        size.ended(rpc_error(errors.deadline_exceeded(), ()))
    assert size.ids == append_batcher.LEAST_A_CALL
    for _ in range(100):
        size.ended(None)
    assert size.ids == append_batcher.IDS_A_CALL


async def test_a_big_account_is_put_off_and_delays_nobody(world: World, receipts: Receipts) -> None:
    world.followers = {ANN: [11], STAR: range(1_000, 6_000)}
    fanout = make_fanout(world, receipts, quota=2_000)
    await fanout.apply([created(100, STAR), created(101, ANN), created(102, STAR)])
    assert world.has((11, 101))
    # Not more of it than the quota was done here.
    assert sum(ids for call in world.calls for tweet_id, ids in call if tweet_id != 101) <= 2_000
    assert [(r.topic, r.key, r.event_id) for r in world.appended] == [
        (LARGE_TOPIC, STAR, 100),
        (LARGE_TOPIC, STAR, 102),
    ]
    states = [receipt.state for tweet_id in (100, 101) if (receipt := receipts.get(tweet_id))]
    assert states == [pb.FANOUT_STATE_RUNNING, pb.FANOUT_STATE_DONE]
    # The other consumer gets the same events, and finishes them.
    again = [created(100, STAR)._replace(payload=record.payload) for record in world.appended]
    await fanout.apply_large(again)
    assert all({100, 102} <= world.homes[user_id] for user_id in range(1_000, 6_000))
    receipt = receipts.get(100)
    assert receipt is not None
    assert (receipt.state, receipt.followers) == (pb.FANOUT_STATE_DONE, 5_000)


async def test_the_quota_counts_entries_not_followers(world: World, receipts: Receipts) -> None:
    world.followers = {ANN: range(1_000, 1_600)}
    fanout = make_fanout(world, receipts, quota=1_000)
    await fanout.apply([created(100, ANN)])
    assert not world.appended
    await fanout.apply([created(101, ANN), created(102, ANN)])
    assert len(world.appended) == 2


async def test_a_restored_tweet_is_delivered_again(world: World, receipts: Receipts) -> None:
    world.followers = {ANN: [11]}
    event = event_pb2.Event()
    event.tweet_restored.tweet_id = 100
    event.tweet_restored.author_id = ANN
    restored = created(100, ANN)._replace(topic="tweet.restored", payload=event.SerializeToString())
    await make_fanout(world, receipts).apply([restored])
    assert world.has((11, 100))


@pytest.mark.parametrize("payload", [b"\xff\xff", event_pb2.Event().SerializeToString()])
async def test_what_is_no_such_event_is_refused_for_good(world: World, receipts: Receipts, payload: bytes) -> None:
    broken = created(100, ANN)._replace(payload=payload)
    with pytest.raises((DecodeError, ValueError)) as refusal:
        await make_fanout(world, receipts).apply([broken])
    assert not is_transient(refusal.value)


async def test_receipts_count_followers_and_warm_homes(world: World, receipts: Receipts) -> None:
    world.followers = {ANN: [11, 12, 13]}
    world.warm = {12}
    await make_fanout(world, receipts).apply([created(100, ANN)])
    receipt = receipts.get(100)
    assert receipt is not None
    assert (receipt.state, receipt.followers, receipt.delivered) == (pb.FANOUT_STATE_DONE, 3, 1)


async def test_an_author_without_followers_is_done(world: World, receipts: Receipts) -> None:
    await make_fanout(world, receipts).apply([created(100, ANN)])
    receipt = receipts.get(100)
    assert receipt is not None
    assert receipt.state == pb.FANOUT_STATE_DONE
    assert not world.calls


def test_only_the_last_receipts_are_kept() -> None:
    receipts = Receipts(lambda: 1.0, kept=2)
    for tweet_id in (1, 2, 1, 3):
        receipts.begin(tweet_id)
    assert [tweet_id for tweet_id in (1, 2, 3) if receipts.get(tweet_id)] == [1, 3]
    receipts.serve(2, 1, 1)
    receipts.end(2, pb.FANOUT_STATE_DONE)
    assert receipts.get(2) is None
