"""Fan-out and home timelines over both kinds of channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from roost.fanout.v1 import fanout_service_pb2 as fanout
from roost.graph.v1 import graph_service_pb2 as graph
from roost.timeline.v1 import timeline_service_pb2 as timeline

from tests.conftest import SETTLE_WITHIN_S, WIRES, Mesh
from tests.functional.conftest import module_mesh, unique


async def ids(mesh: Mesh, reader: int) -> list[int]:
    return [tweet.id for tweet in await mesh.home(reader)]


async def label(mesh: Mesh, reader: int) -> str:
    with mesh.as_user(reader):
        call = mesh.timelines.ListHomeTimeline(timeline.ListHomeTimelineRequest())
        await call
        return str(dict(await call.trailing_metadata())["roost-timeline"])


async def old_and_warm(mesh: Mesh, *readers: int) -> None:
    """Waits until all follows are older than the clock margin, then rebuilds the home timelines: from then on only fan-out adds tweets."""
    await asyncio.sleep(mesh.process.settings.clock_margin_s + 0.05)
    for reader in readers:
        await mesh.operator_timelines.RebuildHomeTimeline(timeline.RebuildHomeTimelineRequest(user_id=reader))


async def users(mesh: Mesh, *names: str) -> list[int]:
    return await mesh.people(*map(unique, names))


async def state_of(mesh: Mesh, tweet_id: int) -> Any:
    """Returns a tweet's delivery state once fan-out has handled all events."""
    await mesh.settled()
    return (await mesh.fanout.GetFanoutStatus(fanout.GetFanoutStatusRequest(tweet_id=tweet_id))).state


async def post_until(mesh: Mesh, author: int, state: Any) -> list[int]:
    """Posts until a tweet has this delivery state, since a change of the author's tier reaches fan-out later. Returns the tweets' ids."""
    posted: list[int] = []
    async with asyncio.timeout(SETTLE_WITHIN_S):
        while not posted or await state_of(mesh, posted[-1]) != state:
            posted.append(await mesh.post(author, f"tweet {len(posted)}"))
    return posted


@asynccontextmanager
async def paused(mesh: Mesh) -> AsyncIterator[None]:
    """Pauses fan-out within it, once all earlier events are handled."""
    await mesh.settled()
    await mesh.fanout.PauseFanout(fanout.PauseFanoutRequest())
    try:
        yield
    finally:
        await mesh.fanout.ResumeFanout(fanout.ResumeFanoutRequest())


# Not over two processes: PauseFanout pauses the consumer of the process that is called, and not of its siblings.
@pytest_asyncio.fixture(scope="module", loop_scope="module", params=WIRES)
async def shared_quick(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """A mesh with a clock margin of 0.2 s, and celebrities from three followers on."""
    folder = tmp_path_factory.mktemp("quick")
    async with module_mesh(folder, request.param, clock_margin_s=0.2, celebrity_threshold=3) as mesh:
        yield mesh


async def test_fanout_post_is_pushed_to_follower(shared_quick: Mesh) -> None:
    ann, bob = await users(shared_quick, "ann_a", "bob_b")
    await shared_quick.follow(bob, ann)
    await old_and_warm(shared_quick, bob)
    tweet_id = await shared_quick.post(ann, "hello")
    async with asyncio.timeout(SETTLE_WITHIN_S):
        while await ids(shared_quick, bob) != [tweet_id]:
            await asyncio.sleep(0.01)
    assert await label(shared_quick, bob) == "warm"
    await shared_quick.settled()
    status = await shared_quick.fanout.GetFanoutStatus(fanout.GetFanoutStatusRequest(tweet_id=tweet_id))
    assert (status.state, status.followers, status.delivered) == (fanout.FANOUT_STATE_DONE, 1, 1)


async def test_fanout_paused_shows_own_posts_and_delivers_others_after_resume(shared_quick: Mesh) -> None:
    ann, bob = await users(shared_quick, "ann_a", "bob_b")
    await shared_quick.follow(bob, ann)
    await old_and_warm(shared_quick, ann, bob)
    async with paused(shared_quick):
        posts = [await shared_quick.post(ann, f"tweet {n}") for n in range(3)]
        assert await ids(shared_quick, ann) == posts[::-1]
        assert await ids(shared_quick, bob) == []
        assert await lag_of(shared_quick, 3)
    await shared_quick.settled()
    assert await ids(shared_quick, bob) == posts[::-1]


async def test_fanout_replay_leaves_homes_unchanged(shared_quick: Mesh) -> None:
    ann, bob = await users(shared_quick, "ann_a", "bob_b")
    await shared_quick.follow(bob, ann)
    await old_and_warm(shared_quick, bob)
    posts = [await shared_quick.post(ann, f"tweet {n}") for n in range(10)]
    await shared_quick.delete(ann, posts[4])
    await shared_quick.settled()
    before = await ids(shared_quick, bob)
    answer = await shared_quick.fanout.ReplayFanout(fanout.ReplayFanoutRequest(offset=0))
    assert answer.events >= 10
    await shared_quick.settled()
    assert await ids(shared_quick, bob) == before
    assert len(before) == 9


async def test_fanout_author_changes_tier_both_ways_keeps_homes_complete(shared_quick: Mesh) -> None:
    star, *fans = await users(shared_quick, "star", "fan_1", "fan_2", "fan_3", "fan_4")
    await shared_quick.follow(fans[0], star)
    await shared_quick.follow(fans[1], star)
    await old_and_warm(shared_quick, *fans)
    posts = [await shared_quick.post(star, "few followers")]
    await shared_quick.follow(fans[2], star)
    posts += await post_until(shared_quick, star, fanout.FANOUT_STATE_PULLED)
    for fan in fans[:3]:
        assert await ids(shared_quick, fan) == posts[::-1]
    for fan in fans[1:3]:
        with shared_quick.as_user(fan):
            await shared_quick.graph.Unfollow(graph.UnfollowRequest(user_id=star))
    posts += await post_until(shared_quick, star, fanout.FANOUT_STATE_DONE)
    assert await ids(shared_quick, fans[0]) == posts[::-1]
    assert await label(shared_quick, fans[0]) == "warm"
    assert await ids(shared_quick, fans[1]) == []


async def test_fanout_account_over_quota_is_delivered_by_second_consumer(
    shared_quick: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer: Any = shared_quick.process.services["fanout"].workers[1]
    # The main consumer may append two entries per author and batch; the rest goes to the other consumer.
    monkeypatch.setattr(consumer._apply.__self__, "_quota", 2)
    ann, *fans = await users(shared_quick, "ann_a", "fan_1", "fan_2")
    for fan in fans:
        await shared_quick.follow(fan, ann)
    await old_and_warm(shared_quick, *fans)
    async with paused(shared_quick):
        posts = [await shared_quick.post(ann, f"tweet {n}") for n in range(5)]
    await shared_quick.settled()
    for fan in fans:
        assert await ids(shared_quick, fan) == posts[::-1]
    status = await shared_quick.fanout.GetFanoutStatus(fanout.GetFanoutStatusRequest(tweet_id=posts[0]))
    assert (status.state, status.followers) == (fanout.FANOUT_STATE_DONE, 2)


async def lag_of(mesh: Mesh, events: int) -> bool:
    """Waits until fan-out is paused and its lag is `events`. An event between the outbox and the log counts twice for a moment."""
    async with asyncio.timeout(SETTLE_WITHIN_S):
        while True:
            lag = await mesh.fanout.GetFanoutLag(fanout.GetFanoutLagRequest())
            if (lag.events, lag.paused) == (events, True):
                return True
            await asyncio.sleep(0.005)
