"""Events in, documents and trends out.

An event says that something changed; what stands now is asked of its owner. So it does not matter how often or in which order events
come: the last one to be applied finds the last state.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import grpc
from roost.event.v1 import event_pb2
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from roost.identity.v1 import user_pb2
from roost.identity.v1 import user_service_pb2 as identity
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as tweet
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceStub

from services.platform.events.log import ConsumedEvent, Consumer
from services.platform.ids.snowflake import timestamp_ms
from services.search.documents import tweet_document, user_document
from services.search.store import MAX_CHANGES, Change, Collection, SearchIndex
from services.search.tokenizer import tag_key
from services.search.trends import USUAL_HALF_LIFE_S, WINDOW_S, Trends

INDEX_TOPICS = (
    "tweet.created",
    "tweet.edited",
    "tweet.deleted",
    "tweet.restored",
    "user.created",
    "user.updated",
    "user.suspended",
    "user.reinstated",
    "user.deleted",
    # People are ordered by their followers.
    "user.followed",
    "user.unfollowed",
)
TREND_TOPICS = (
    "tweet.created",
    "tweet.edited",
    "tweet.restored",
    "tweet.deleted",
    "tweet.liked",
    "tweet.unliked",
    "user.suspended",
    "user.deleted",
)
# The contract's bound of counts asked at once.
MAX_COUNTS = 500
# Documents made in one turn of the loop: some 3 ms.
DOCUMENTS_A_TURN = 50
# How far events of a first start may lie back, whose rows a scan that begins now might still miss: none should, for rows commit first.
MARGIN_S = 60.0
# How much of the log tells what is usual now.
TREND_REPLAY_S = WINDOW_S + 2 * USUAL_HALF_LIFE_S


class Place(NamedTuple):
    """Where a consumer begins: at an offset, or else at a time (milliseconds since 1970)."""

    offset: int | None = None
    time_ms: int | None = None


class PositionedConsumer:
    """A worker: a consumer that at every start goes on from a place of its own, not from where the log saw it last."""

    def __init__(self, consumer: Consumer, place: Callable[[], Place]) -> None:
        self._consumer = consumer
        self._place = place

    async def start(self) -> None:
        """Asks for the place, and begins there."""
        place = self._place()
        await self._consumer.seek(offset=place.offset, time_ms=place.time_ms)
        await self._consumer.start()

    async def stop(self) -> None:
        """Ends after the batch at hand."""
        await self._consumer.stop()


class Indexer:
    """Applies events to the index. `clock` gives unix seconds."""

    def __init__(self, channel: grpc.aio.Channel, index: SearchIndex, clock: Callable[[], float]) -> None:
        # Any: the generated stubs' types know the socket's call class only.
        self._get_cores: Any = TweetServiceStub(channel).BatchGetTweetCores
        self._get_refs: Any = UserServiceStub(channel).BatchGetUserRefs
        self._followers = Followers(channel)
        self._index = index
        self._clock = clock

    def place(self) -> Place:
        """Behind what is durable in the index: the log's own offset is ahead of that. For an index that keeps a position."""
        position = self._index.position
        if position is not None:
            return Place(offset=position + 1)
        # The index is filled from the owners; what changes from now on comes as events.
        return Place(time_ms=int((self._clock() - MARGIN_S) * 1000))

    async def apply(self, events: Sequence[ConsumedEvent]) -> None:
        """Indexes what the events tell of, as it stands now. Raises what the owners and the index answer: the batch comes again."""
        tweet_ids: dict[int, None] = {}
        user_ids: dict[int, None] = {}
        for event in events:
            body = _body(event)
            if isinstance(body, event_pb2.TweetCreated) and body.retweet_of_id:
                continue
            if event.topic.startswith("tweet."):
                tweet_ids[body.tweet_id] = None
            elif isinstance(body, event_pb2.UserFollowed | event_pb2.UserUnfollowed):
                user_ids[body.followee_id] = None
            else:
                user_ids[body.user_id] = None
        changes = [*await self._tweets(list(tweet_ids)), *await self._users(list(user_ids))]
        for start in range(0, len(changes), MAX_CHANGES):
            await self._index.apply(changes[start : start + MAX_CHANGES])
        await self._index.apply((), events[-1].offset)

    async def _tweets(self, ids: Sequence[int]) -> list[Change]:
        if not ids:
            return []
        cores = (await self._get_cores(tweet.BatchGetTweetCoresRequest(ids=ids))).cores
        # Purged ones are not answered: they are removed.
        changes = {tweet_id: Change(Collection.TWEETS, tweet_id, None) for tweet_id in ids}
        for part in cooperative_batches(cores):
            for core in part:
                changes[core.head.id] = tweet_change(core)
            await asyncio.sleep(0)
        return list(changes.values())

    async def _users(self, ids: Sequence[int]) -> list[Change]:
        if not ids:
            return []
        refs = (await self._get_refs(identity.BatchGetUserRefsRequest(ids=ids))).refs
        followers = await self._followers.counts(ids)
        changes = {user_id: Change(Collection.USERS, user_id, None) for user_id in ids}
        for entry in refs:
            user = user_pb2.UserRef.FromString(entry.ref)
            document = user_document(user, entry.state, entry.version, followers[entry.user_id])
            changes[entry.user_id] = Change(Collection.USERS, entry.user_id, document)
        return list(changes.values())


class Followers:
    """How many follow people. Raises AioRpcError where graph cannot answer."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._get_counts: Any = GraphServiceStub(channel).BatchGetUserCounts

    async def counts(self, user_ids: Sequence[int]) -> dict[int, int]:
        """Of each the number of followers, 0 of those whom nobody follows."""
        found = dict.fromkeys(user_ids, 0)
        for start in range(0, len(user_ids), MAX_COUNTS):
            asked = graph.BatchGetUserCountsRequest(ids=user_ids[start : start + MAX_COUNTS])
            counts = (await self._get_counts(asked)).counts
            found |= {user_id: counted.followers for user_id, counted in counts.items()}
        return found


class TrendCounter:
    """Counts what people do under tags and tweets. `clock` gives unix seconds."""

    def __init__(
        self, channel: grpc.aio.Channel, tags: Trends[str], tweets: Trends[int], clock: Callable[[], float]
    ) -> None:
        self._get_cores: Any = TweetServiceStub(channel).BatchGetTweetCores
        self._tags = tags
        self._tweets = tweets
        self._clock = clock

    def place(self) -> Place:
        """Some hours back: what was counted is gone with the process that did."""
        return Place(time_ms=int((self._clock() - TREND_REPLAY_S) * 1000))

    async def apply(self, events: Sequence[ConsumedEvent]) -> None:
        """Counts the events. Raises what the owner of tweets answers: the batch comes again, and counts once."""
        bodies = [_body(event) for event in events]
        tagged = await self._tagged(bodies)
        for event, body in zip(events, bodies, strict=True):
            match body:
                case event_pb2.TweetCreated() | event_pb2.TweetEdited() | event_pb2.TweetRestored():
                    at_s = timestamp_ms(body.tweet_id) / 1000
                    # Whatever was counted before: the tags are those that stand now.
                    self._tags.forget(body.tweet_id)
                    self._tags.add(body.tweet_id, body.author_id, tagged.get(body.tweet_id, {}), at_s)
                    if isinstance(body, event_pb2.TweetCreated):
                        acted_upon = dict.fromkeys(_acted_upon(body), "")
                        self._tweets.add(body.tweet_id, body.author_id, acted_upon, at_s)
                case event_pb2.TweetDeleted():
                    self._tags.forget(body.tweet_id)
                    self._tweets.forget(body.tweet_id)
                case event_pb2.TweetLiked():
                    self._tweets.add(
                        (body.user_id, body.tweet_id), body.user_id, {body.tweet_id: ""}, event.appended_ms / 1000
                    )
                case event_pb2.TweetUnliked():
                    self._tweets.forget((body.user_id, body.tweet_id))
                case event_pb2.UserSuspended() | event_pb2.UserDeleted():
                    self._tags.forget_actor(body.user_id)
                    self._tweets.forget_actor(body.user_id)

    async def _tagged(self, bodies: Iterable[Any]) -> dict[int, dict[str, str]]:
        """The tags of the tweets that were posted, edited or restored, by tweet."""
        ids = [
            body.tweet_id
            for body in bodies
            if isinstance(body, event_pb2.TweetEdited | event_pb2.TweetRestored)
            or (isinstance(body, event_pb2.TweetCreated) and not body.retweet_of_id)
        ]
        if not ids:
            return {}
        found: dict[int, dict[str, str]] = {}
        cores = (await self._get_cores(tweet.BatchGetTweetCoresRequest(ids=ids))).cores
        for part in cooperative_batches(cores):
            for core in part:
                found[core.head.id] = tags_of(core)
            await asyncio.sleep(0)
        return found


def tweet_change(core: tweet_pb2.TweetCore) -> Change:
    """The tweet as it stands."""
    return Change(Collection.TWEETS, core.head.id, tweet_document(core))


def cooperative_batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The items in parts small enough for one turn of the loop."""
    for start in range(0, len(items), DOCUMENTS_A_TURN):
        yield items[start : start + DOCUMENTS_A_TURN]


def tags_of(core: tweet_pb2.TweetCore) -> dict[str, str]:
    """The hashtags of a tweet that stands, without their signs, by what all spellings of each share; the first spelling counts."""
    tags = tweet_pb2.Tweet.FromString(core.core).entities.hashtags
    found: dict[str, str] = {}
    for entity in tags:
        found.setdefault(tag_key(entity.tag), unicodedata.normalize("NFC", entity.tag))
    return found


def _acted_upon(body: event_pb2.TweetCreated) -> Iterator[int]:
    """The tweets that the new one retweets, quotes or answers, but the author's own."""
    for tweet_id, author_id in (
        (body.retweet_of_id, body.retweet_of_author_id),
        (body.quote_of_id, body.quote_of_author_id),
        (body.reply_to_id, body.reply_to_author_id),
    ):
        if tweet_id and author_id != body.author_id:
            yield tweet_id


def _body(event: ConsumedEvent) -> Any:
    """The fact. Raises DecodeError or ValueError for what is no such event: the log sets it aside."""
    found = event_pb2.Event.FromString(event.payload)
    name = found.WhichOneof("body")
    if name is None or name.replace("_", ".", 1) != event.topic:
        raise ValueError(f"{event.topic} carries {name}")
    return getattr(found, name)
