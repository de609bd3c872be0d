"""Consumers of the search service: they index the tweets and users that events name, and count trends.

An event only names the tweet or user that changed; the consumers read its current state from the owning service. So
repeated and reordered events do no harm: when the last event is applied, the last state is read.
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
from services.search.store import MAX_CHANGES, Collection, IndexChange, SearchIndex
from services.search.tokenizer import tag_key
from services.search.trends import BASELINE_HALF_LIFE_S, WINDOW_S, Trends

# Consumer group that applies events to the index.
GROUP = "search"
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
    # The order of user search results depends on follower counts.
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
# The maximum of ids in one BatchGetUserCounts call.
MAX_COUNTS = 500
# Documents built before the event loop gets control again: about 3 ms.
DOCUMENTS_PER_TURN = 50
# At a first start, the consumer begins this many seconds in the past. A scan that begins now reads all rows whose
# events are older, because rows commit before their events are published.
MARGIN_S = 60.0
# Seconds of the event log that are replayed at each start, so that the baselines of trends are right.
TREND_REPLAY_S = WINDOW_S + 2 * BASELINE_HALF_LIFE_S


class StartPosition(NamedTuple):
    """The position where a consumer starts: at an offset, or else at a time (Unix milliseconds)."""

    offset: int | None = None
    time_ms: int | None = None


class PositionedConsumer:
    """A worker that starts its consumer at a given position instead of the consumer group's committed offset."""

    def __init__(self, consumer: Consumer, start_position: Callable[[], StartPosition]) -> None:
        self._consumer = consumer
        self._start_position = start_position

    async def start(self) -> None:
        """Seeks to the start position and starts the consumer."""
        position = self._start_position()
        await self._consumer.seek(offset=position.offset, time_ms=position.time_ms)
        await self._consumer.start()

    async def stop(self) -> None:
        """Stops the consumer after the batch in progress."""
        await self._consumer.stop()


class Indexer:
    """Applies events to the index. `clock` returns Unix seconds."""

    def __init__(self, channel: grpc.aio.Channel, index: SearchIndex, clock: Callable[[], float]) -> None:
        # Any, because the generated stub types only know the call class of a gRPC channel, not the in-process
        # channel's.
        self._get_cores: Any = TweetServiceStub(channel).BatchGetTweetCores
        self._get_refs: Any = UserServiceStub(channel).BatchGetUserRefs
        self._followers = FollowerCounts(channel)
        self._index = index
        self._clock = clock

    def start_position(self) -> StartPosition:
        """Returns the offset after the last one that is durable in the index; if the index was never filled, a time
        MARGIN_S ago.

        An index that stores its own position needs this, because the committed offset of the consumer group may be
        ahead of the last change that is durable in the index.
        """
        position = self._index.position
        if position is not None:
            return StartPosition(offset=position + 1)
        # The first build reads existing rows; later changes arrive as events.
        return StartPosition(time_ms=int((self._clock() - MARGIN_S) * 1000))

    async def apply(self, events: Sequence[ConsumedEvent]) -> None:
        """Indexes the current state of all tweets and users that the events name.

        Raises grpc.aio.AioRpcError if a call of tweet, identity or graph fails, and UNAVAILABLE if the index cannot be
        written. The event log then delivers the batch again.
        """
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

    async def _tweets(self, ids: Sequence[int]) -> list[IndexChange]:
        """Returns the index changes that put the current state of these tweets, read from the tweet service, into the
        index."""
        if not ids:
            return []
        cores = (await self._get_cores(tweet.BatchGetTweetCoresRequest(ids=ids))).cores
        # A purged tweet is missing from the response, so its change stays None, which removes it from the index.
        changes = {tweet_id: IndexChange(Collection.TWEETS, tweet_id, None) for tweet_id in ids}
        for part in cooperative_batches(cores):
            for core in part:
                changes[core.head.id] = tweet_change(core)
            await asyncio.sleep(0)
        return list(changes.values())

    async def _users(self, ids: Sequence[int]) -> list[IndexChange]:
        """Returns the index changes that put the current state of these users, read from identity and graph, into the
        index."""
        if not ids:
            return []
        refs = (await self._get_refs(identity.BatchGetUserRefsRequest(ids=ids))).refs
        followers = await self._followers.counts(ids)
        changes = {user_id: IndexChange(Collection.USERS, user_id, None) for user_id in ids}
        for entry in refs:
            user = user_pb2.UserRef.FromString(entry.ref)
            document = user_document(user, entry.state, entry.version, followers[entry.user_id])
            changes[entry.user_id] = IndexChange(Collection.USERS, entry.user_id, document)
        return list(changes.values())


class FollowerCounts:
    """Reads follower counts from graph. Methods raise grpc.aio.AioRpcError if the call of graph fails."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._get_counts: Any = GraphServiceStub(channel).BatchGetUserCounts

    async def counts(self, user_ids: Sequence[int]) -> dict[int, int]:
        """Returns the number of followers for each of the user ids; 0 for users without any."""
        found = dict.fromkeys(user_ids, 0)
        for start in range(0, len(user_ids), MAX_COUNTS):
            asked = graph.BatchGetUserCountsRequest(ids=user_ids[start : start + MAX_COUNTS])
            counts = (await self._get_counts(asked)).counts
            found |= {user_id: counted.followers for user_id, counted in counts.items()}
        return found


class TrendCounter:
    """Counts the tags of tweets, and reactions to tweets, for trends. `clock` returns Unix seconds."""

    def __init__(
        self, channel: grpc.aio.Channel, tags: Trends[str], tweets: Trends[int], clock: Callable[[], float]
    ) -> None:
        self._get_cores: Any = TweetServiceStub(channel).BatchGetTweetCores
        self._tags = tags
        self._tweets = tweets
        self._clock = clock

    def start_position(self) -> StartPosition:
        """Returns the time TREND_REPLAY_S ago: counts live in memory, so every start counts again."""
        return StartPosition(time_ms=int((self._clock() - TREND_REPLAY_S) * 1000))

    async def apply(self, events: Sequence[ConsumedEvent]) -> None:
        """Adds posts and reactions to the counts of tags and tweets, and subtracts deletions, unlikes and users who are
        no longer active. An event that is delivered twice counts once.

        Raises grpc.aio.AioRpcError if the call of the tweet service fails. The event log then delivers the batch again.
        """
        bodies = [_body(event) for event in events]
        tags_by_tweet = await self._tags_by_tweet(bodies)
        for event, body in zip(events, bodies, strict=True):
            match body:
                case event_pb2.TweetCreated() | event_pb2.TweetEdited() | event_pb2.TweetRestored():
                    at_s = timestamp_ms(body.tweet_id) / 1000
                    # Removes the counts of the tweet's earlier version, because an edit may change the tags.
                    self._tags.remove(body.tweet_id)
                    self._tags.add(body.tweet_id, body.author_id, tags_by_tweet.get(body.tweet_id, {}), at_s)
                    if isinstance(body, event_pb2.TweetCreated):
                        engaged = dict.fromkeys(_engaged_tweets(body), "")
                        self._tweets.add(body.tweet_id, body.author_id, engaged, at_s)
                case event_pb2.TweetDeleted():
                    self._tags.remove(body.tweet_id)
                    self._tweets.remove(body.tweet_id)
                case event_pb2.TweetLiked():
                    self._tweets.add(
                        (body.user_id, body.tweet_id), body.user_id, {body.tweet_id: ""}, event.appended_ms / 1000
                    )
                case event_pb2.TweetUnliked():
                    self._tweets.remove((body.user_id, body.tweet_id))
                case event_pb2.UserSuspended() | event_pb2.UserDeleted():
                    self._tags.remove_actor(body.user_id)
                    self._tweets.remove_actor(body.user_id)

    async def _tags_by_tweet(self, bodies: Iterable[Any]) -> dict[int, dict[str, str]]:
        """Returns the tags of each posted, edited or restored tweet, by tweet id."""
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


def tweet_change(core: tweet_pb2.TweetCore) -> IndexChange:
    """Returns the index change for a tweet record: its document, or None if the tweet must not be found."""
    return IndexChange(Collection.TWEETS, core.head.id, tweet_document(core))


def cooperative_batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yields the items in batches of DOCUMENTS_PER_TURN."""
    for start in range(0, len(items), DOCUMENTS_PER_TURN):
        yield items[start : start + DOCUMENTS_PER_TURN]


def tags_of(core: tweet_pb2.TweetCore) -> dict[str, str]:
    """Returns the hashtags of a tweet: `tag_key` → first spelling in the tweet, both without `#`."""
    tags = tweet_pb2.Tweet.FromString(core.core).entities.hashtags
    found: dict[str, str] = {}
    for entity in tags:
        found.setdefault(tag_key(entity.tag), unicodedata.normalize("NFC", entity.tag))
    return found


def _engaged_tweets(body: event_pb2.TweetCreated) -> Iterator[int]:
    """Yields the ids of the tweets that the new tweet retweets, quotes or replies to, except tweets of the same
    author.
    """
    for tweet_id, author_id in (
        (body.retweet_of_id, body.retweet_of_author_id),
        (body.quote_of_id, body.quote_of_author_id),
        (body.reply_to_id, body.reply_to_author_id),
    ):
        if tweet_id and author_id != body.author_id:
            yield tweet_id


def _body(event: ConsumedEvent) -> Any:
    """Returns the body of the event, such as TweetCreated.

    Raises DecodeError if the payload is not an event, and ValueError if its body is not one of the topic. The consumer
    then moves the record to the dead letters.
    """
    found = event_pb2.Event.FromString(event.payload)
    name = found.WhichOneof("body")
    if name is None or name.replace("_", ".", 1) != event.topic:
        raise ValueError(f"the record of topic {event.topic} has the body {name}, which belongs to another topic")
    return getattr(found, name)
