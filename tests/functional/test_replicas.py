"""Two processes on the same cluster, each with all services and its own caches: a change through one shows on the next read of
the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from cassandra.cluster import Session
from roost.engagement.v1 import engagement_service_pb2 as engagement
from roost.engagement.v1.engagement_service_pb2_grpc import EngagementServiceStub
from roost.graph.v1 import graph_service_pb2 as graph
from roost.identity.v1 import user_service_pb2 as identity
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub
from roost.tweet.v1 import reply_service_pb2, tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as tweet
from roost.tweet.v1.reply_service_pb2_grpc import ReplyServiceStub
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceStub

from services.platform.redis.connection import RedisConnection
from services.shared.hydration.cache import HydrationCache
from services.shared.hydration.hydrator import Hydrator
from tests.cluster import backend
from tests.conftest import SETTLE_WITHIN_S, Mesh, MeshFactory
from tests.versions import UnknownVersions

pytestmark = pytest.mark.cluster


class Replicas:
    """Ann and Bob, whom Cat follows; each posted a tweet, Ann also a reply to Bob and a quote and a retweet of his tweet. Changes go
    to `writer`, and Cat reads from `reader`, which has cached the page before each change."""

    def __init__(self, writer: Mesh, reader: Mesh) -> None:
        self.writer = writer
        self.reader = reader
        self.uncached = Hydrator(reader.process.channel("timeline"), HydrationCache(UnknownVersions()))

    async def begin(self, number: int) -> None:
        """Makes people and tweets that no earlier change concerns."""
        self.ann, self.bob, self.cat = await self.writer.people(f"ann_{number}", f"bob_{number}", f"cat_{number}")
        for author in (self.ann, self.bob):
            await self.writer.follow(self.cat, author)
        self.bobs = await self.writer.post(self.bob, "from bob")
        self.anns = await self.writer.post(self.ann, "from ann")
        self.quote = await self.writer.post(self.ann, "look", quote_of_id=self.bobs)
        channel = self.writer.process.channel("")
        with self.writer.as_user(self.ann):
            reply = reply_service_pb2.CreateReplyRequest(tweet_id=self.bobs, text="yes")
            self.reply = (await ReplyServiceStub(channel).CreateReply(reply)).tweet.id
            retweet = tweet.RetweetRequest(tweet_id=self.bobs)
            self.retweet = (await self.writer.tweets.Retweet(retweet)).tweet.id
        self.engagement = EngagementServiceStub(channel)
        moderation = self.writer.process.channel("moderation")
        self.moderated_users, self.moderated_tweets = UserServiceStub(moderation), TweetServiceStub(moderation)

    async def page(self) -> dict[int, tweet_pb2.Tweet]:
        """Returns Cat's home from the reader, after comparing it with what the reader hydrates without a cache."""
        found = await self.reader.home(self.cat)
        # Leaves the whole page in the cache of the reader: the first read had to load what was changed.
        await self.reader.home(self.cat)
        ids = [entry.id for entry in found]
        with self.reader.as_user(self.cat):
            fresh = await self.uncached.visible(self.cat, ids, len(ids), hide_muted=True)
        assert [tweet_pb2.Tweet.FromString(entry.data) for entry in fresh] == found
        return {entry.id: entry for entry in found}


async def _like(on: Replicas) -> None:
    with on.writer.as_user(on.cat):
        await on.engagement.LikeTweet(engagement.LikeTweetRequest(tweet_id=on.anns))


async def _bookmark(on: Replicas) -> None:
    with on.writer.as_user(on.cat):
        await on.engagement.BookmarkTweet(engagement.BookmarkTweetRequest(tweet_id=on.bobs))


async def _like_of_another(on: Replicas) -> None:
    with on.writer.as_user(on.ann):
        await on.engagement.LikeTweet(engagement.LikeTweetRequest(tweet_id=on.bobs))


async def _retweet(on: Replicas) -> None:
    with on.writer.as_user(on.cat):
        await on.writer.tweets.Retweet(tweet.RetweetRequest(tweet_id=on.anns))


async def _edit(on: Replicas) -> None:
    with on.writer.as_user(on.bob):
        await on.writer.tweets.UpdateTweet(tweet.UpdateTweetRequest(tweet_id=on.bobs, text="edited"))


async def _delete(on: Replicas) -> None:
    await on.writer.delete(on.bob, on.bobs)


async def _remove(on: Replicas) -> None:
    await on.moderated_tweets.RemoveTweet(tweet.RemoveTweetRequest(tweet_id=on.bobs, action_id=5))


async def _post(on: Replicas) -> None:
    await on.writer.post(on.cat, "from cat")


async def _unfollow(on: Replicas) -> None:
    with on.writer.as_user(on.cat):
        await on.writer.graph.Unfollow(graph.UnfollowRequest(user_id=on.bob))


async def _block(on: Replicas) -> None:
    with on.writer.as_user(on.bob):
        await on.writer.graph.Block(graph.BlockRequest(user_id=on.cat))


async def _mute(on: Replicas) -> None:
    with on.writer.as_user(on.cat):
        await on.writer.graph.Mute(graph.MuteRequest(user_id=on.bob))


async def _rename(on: Replicas) -> None:
    with on.writer.as_user(on.bob):
        await on.writer.users.UpdateUser(identity.UpdateUserRequest(user_id=on.bob, display_name="Robert"))


async def _suspend(on: Replicas) -> None:
    await on.moderated_users.SuspendUser(identity.SuspendUserRequest(user_id=on.bob, action_id=6))


CHANGES: dict[
    str, tuple[Callable[[Replicas], Awaitable[None]], Callable[[Replicas, dict[int, tweet_pb2.Tweet]], bool]]
] = {
    "like": (_like, lambda on, page: page[on.anns].viewer.liked and page[on.anns].metrics.likes == 1),
    "bookmark": (_bookmark, lambda on, page: page[on.bobs].viewer.bookmarked),
    "like of another": (_like_of_another, lambda on, page: page[on.quote].quoted_tweet.metrics.likes == 1),
    "retweet": (_retweet, lambda on, page: page[on.anns].viewer.retweeted),
    "edit": (_edit, lambda on, page: page[on.retweet].retweeted_tweet.text == "edited"),
    "delete": (_delete, lambda on, page: page.keys() == {on.anns, on.quote} and page[on.quote].quoted_tweet.deleted),
    "remove": (_remove, lambda on, page: page.keys() == {on.anns, on.quote}),
    "post": (_post, lambda on, page: max(page) not in (on.anns, on.retweet)),
    "unfollow": (_unfollow, lambda on, page: on.bobs not in page and on.reply not in page),
    "block": (_block, lambda on, page: page.keys() == {on.anns, on.quote} and page[on.quote].quoted_tweet.deleted),
    "mute": (_mute, lambda on, page: on.bobs not in page and on.retweet not in page),
    "rename": (_rename, lambda on, page: page[on.retweet].retweeted_tweet.author.display_name == "Robert"),
    "suspend": (_suspend, lambda on, page: page.keys() == {on.anns, on.quote}),
}


async def test_change_through_one_process_shows_on_next_read_of_another(
    start_mesh: MeshFactory, tmp_path: Path
) -> None:
    settings = backend.of(tmp_path / "replicas").settings
    writer, reader = [await start_mesh(**settings) for _ in range(2)]
    for number, (change, (deed, shows)) in enumerate(CHANGES.items()):
        on = Replicas(writer, reader)
        await on.begin(number)
        assert not shows(on, await on.page()), change
        await on.page()
        await deed(on)
        assert shows(on, await on.page()), change


class Trips:
    """Counts what the calls of this context ask of Redis and Cassandra. Commands that are sent before the replies to
    earlier ones have arrived are one round trip."""

    def __init__(self) -> None:
        self.redis = self.cassandra = self._pending = 0

    def sent_to_redis(self, reply: asyncio.Future[list[Any]]) -> None:
        self.redis += not self._pending
        self._pending += 1
        reply.add_done_callback(lambda _: self._replied())

    def _replied(self) -> None:
        self._pending -= 1


counted: ContextVar[Trips | None] = ContextVar("counted", default=None)


@pytest.fixture
def count_trips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the Trips in `counted` count. Background work has another context and is not counted."""
    send, execute = RedisConnection.execute, Session.execute_async

    def counting_send(connection: RedisConnection, payload: bytes, replies: int) -> asyncio.Future[list[Any]]:
        reply = send(connection, payload, replies)
        if (trips := counted.get()) is not None:
            trips.sent_to_redis(reply)
        return reply

    def counting_execute(session: Session, *args: Any, **options: Any) -> Any:
        if (trips := counted.get()) is not None:
            trips.cassandra += 1
        return execute(session, *args, **options)

    monkeypatch.setattr(RedisConnection, "execute", counting_send)
    monkeypatch.setattr(Session, "execute_async", counting_execute)


async def test_warm_page_takes_two_trips_to_redis_and_no_statement(
    start_mesh: MeshFactory, tmp_path: Path, count_trips: None
) -> None:
    mesh = await start_mesh(**backend.of(tmp_path / "trips").settings, clock_margin_s=0.1)
    on = Replicas(mesh, mesh)
    await on.begin(0)
    # Tweets with reactions and an own retweet have viewer states, which are read from Cassandra unless they are cached.
    for change in ("like", "bookmark", "retweet"):
        await CHANGES[change][0](on)
    await mesh.settled()

    async def trips_of_page() -> tuple[int, int]:
        counted.set(Trips())
        assert {tweet.id for tweet in await mesh.home(on.cat)} >= {on.anns, on.bobs, on.quote, on.retweet}
        trips = counted.get()
        counted.set(None)
        assert trips is not None
        return trips.redis, trips.cassandra

    assert (await trips_of_page())[1] > 0, "the first page loads the tweets"
    # The margin must pass, or the new followees are pulled in addition.
    async with asyncio.timeout(SETTLE_WITHIN_S):
        while await trips_of_page() != (2, 0):
            await asyncio.sleep(0.05)
    assert await trips_of_page() == (2, 0)
