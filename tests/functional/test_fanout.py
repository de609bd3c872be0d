"""Fan-out and homes on the whole mesh, over both kinds of channel."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from roost.fanout.v1 import fanout_service_pb2 as fanout
from roost.graph.v1 import graph_service_pb2 as graph
from roost.timeline.v1 import timeline_service_pb2 as timeline

from tests.conftest import SETTLE_WITHIN_S, Mesh, MeshFactory

# The promise is a second; the test's machine may be busy.
WITHIN_S = 5.0


async def ids(mesh: Mesh, reader: int) -> list[int]:
    return [tweet.id for tweet in await mesh.home(reader)]


async def label(mesh: Mesh, reader: int) -> str:
    with mesh.as_user(reader):
        call = mesh.timelines.ListHomeTimeline(timeline.ListHomeTimelineRequest())
        await call
        return str(dict(await call.trailing_metadata())["roost-timeline"])


async def old_and_warm(mesh: Mesh, *readers: int) -> None:
    """Past the margin every follow is old, so that only pushes bring followees' tweets."""
    await asyncio.sleep(mesh.process.settings.clock_margin_s + 0.05)
    for reader in readers:
        await mesh.operator_timelines.RebuildHomeTimeline(timeline.RebuildHomeTimelineRequest(user_id=reader))


@pytest.fixture(params=["inprocess", "grpc"])
async def quick(request: pytest.FixtureRequest, start_mesh: MeshFactory) -> Mesh:
    """A mesh with next to no margin to wait for."""
    return await start_mesh(wire=request.param, clock_margin_s=0.2, celebrity_threshold=3)


async def test_fanout_post_is_pushed_to_follower(quick: Mesh) -> None:
    ann, bob = await quick.people("ann_a", "bob_b")
    await quick.follow(bob, ann)
    await old_and_warm(quick, bob)
    tweet_id = await quick.post(ann, "hello")
    async with asyncio.timeout(WITHIN_S):
        while await ids(quick, bob) != [tweet_id]:
            await asyncio.sleep(0.01)
    assert await label(quick, bob) == "warm"
    await quick.settled()
    status = await quick.fanout.GetFanoutStatus(fanout.GetFanoutStatusRequest(tweet_id=tweet_id))
    assert (status.state, status.followers, status.delivered) == (fanout.FANOUT_STATE_DONE, 1, 1)


async def test_fanout_paused_shows_own_posts_and_delivers_others_after_resume(quick: Mesh) -> None:
    ann, bob = await quick.people("ann_a", "bob_b")
    await quick.follow(bob, ann)
    await old_and_warm(quick, ann, bob)
    await quick.fanout.PauseFanout(fanout.PauseFanoutRequest())
    posts = [await quick.post(ann, f"tweet {n}") for n in range(3)]
    assert await ids(quick, ann) == posts[::-1]
    assert await ids(quick, bob) == []
    assert await lag_of(quick, 3)
    await quick.fanout.ResumeFanout(fanout.ResumeFanoutRequest())
    await quick.settled()
    assert await ids(quick, bob) == posts[::-1]


async def test_fanout_replay_leaves_homes_unchanged(quick: Mesh) -> None:
    ann, bob = await quick.people("ann_a", "bob_b")
    await quick.follow(bob, ann)
    await old_and_warm(quick, bob)
    posts = [await quick.post(ann, f"tweet {n}") for n in range(10)]
    await quick.delete(ann, posts[4])
    await quick.settled()
    before = await ids(quick, bob)
    answer = await quick.fanout.ReplayFanout(fanout.ReplayFanoutRequest(offset=0))
    assert answer.events >= 10
    await quick.settled()
    assert await ids(quick, bob) == before
    assert len(before) == 9


async def test_fanout_author_changes_tier_both_ways_keeps_homes_complete(quick: Mesh) -> None:
    star, *fans = await quick.people("star", "fan_1", "fan_2", "fan_3", "fan_4")
    await quick.follow(fans[0], star)
    await quick.follow(fans[1], star)
    await old_and_warm(quick, *fans)
    posts = [await quick.post(star, "few followers")]
    await quick.follow(fans[2], star)
    await asyncio.sleep(0.3)
    posts.append(await quick.post(star, "a celebrity"))
    await quick.settled()
    status = await quick.fanout.GetFanoutStatus(fanout.GetFanoutStatusRequest(tweet_id=posts[-1]))
    assert status.state == fanout.FANOUT_STATE_PULLED
    for fan in fans[:3]:
        assert await ids(quick, fan) == posts[::-1]
    for fan in fans[1:3]:
        with quick.as_user(fan):
            await quick.graph.Unfollow(graph.UnfollowRequest(user_id=star))
    await asyncio.sleep(0.3)
    posts.append(await quick.post(star, "few again"))
    await quick.settled()
    status = await quick.fanout.GetFanoutStatus(fanout.GetFanoutStatusRequest(tweet_id=posts[-1]))
    assert status.state == fanout.FANOUT_STATE_DONE
    assert await ids(quick, fans[0]) == posts[::-1]
    assert await label(quick, fans[0]) == "warm"
    assert await ids(quick, fans[1]) == []


async def test_fanout_account_over_quota_is_delivered_by_second_consumer(quick: Mesh) -> None:
    consumer: Any = quick.process.services["fanout"].workers[1]
    # The main consumer's rules with room for two entries of an author a round.
    consumer._apply.__self__._quota = 2
    ann, *fans = await quick.people("ann_a", "fan_1", "fan_2")
    for fan in fans:
        await quick.follow(fan, ann)
    await old_and_warm(quick, *fans)
    await quick.fanout.PauseFanout(fanout.PauseFanoutRequest())
    posts = [await quick.post(ann, f"tweet {n}") for n in range(5)]
    await quick.fanout.ResumeFanout(fanout.ResumeFanoutRequest())
    await quick.settled()
    for fan in fans:
        assert await ids(quick, fan) == posts[::-1]
    status = await quick.fanout.GetFanoutStatus(fanout.GetFanoutStatusRequest(tweet_id=posts[0]))
    assert (status.state, status.followers) == (fanout.FANOUT_STATE_DONE, 2)


async def lag_of(mesh: Mesh, events: int) -> bool:
    """Waits until fan-out is paused and so many events behind. One on its way from the outbox to the log may count twice."""
    async with asyncio.timeout(SETTLE_WITHIN_S):
        while True:
            lag = await mesh.fanout.GetFanoutLag(fanout.GetFanoutLagRequest())
            if (lag.events, lag.paused) == (events, True):
                return True
            await asyncio.sleep(0.005)
