"""Consumes events: applies changes of tweets and users to the search index, and counts trends.

The index consumer takes only the id of the tweet or user from an event, and reads the current state from the owning
service. So repeated and reordered events do no harm: after the last event of a change the current state is in the
index.
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
# Maximum number of ids per BatchGetUserCounts call, as its proto says.
MAX_COUNTS = 500
# Number of documents built between two yields to the event loop: about 3 ms.
DOCUMENTS_PER_TURN = 50
# If the index was never filled, the consumer begins this many seconds in the past. Older events are not needed: their
# rows were committed before, so the scan of the first build reads them.
MARGIN_S = 60.0
# Seconds of the event log that are replayed at each start: the window of trends, and two half-lives, after which three
# quarters of a baseline are right.
TREND_REPLAY_S = WINDOW_S + 2 * BASELINE_HALF_LIFE_S


class StartPosition(NamedTuple):
    """The position at which a consumer starts: an offset, or if `offset` is None, a time in Unix milliseconds."""

    offset: int | None = None
    time_ms: int | None = None


class PositionedConsumer:
    """A worker that starts a consumer at the position that `start_position` returns, instead of the committed offset of
    its consumer group."""

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
    """Applies events to the search index. `clock` returns Unix seconds."""

    def __init__(self, channel: grpc.aio.Channel, index: SearchIndex, clock: Callable[[], float]) -> None:
        # Any, because the types of generated stubs do not fit the in-process channel.
        self._get_cores: Any = TweetServiceStub(channel).BatchGetTweetCores
        self._get_refs: Any = UserServiceStub(channel).BatchGetUserRefs
        self._followers = FollowerCounts(channel)
        self._index = index
        self._clock = clock

    def start_position(self) -> StartPosition:
        """Returns the offset after the index's position, or if the index was never filled, the time MARGIN_S ago.

        Only an index that stores its position needs this: the committed offset of the consumer group may be ahead of
        the last change that is durable in the index.
        """
        position = self._index.position
        if position is not None:
            return StartPosition(offset=position + 1)
        # The first build reads the existing tweets and users, and later changes arrive as events.
        return StartPosition(time_ms=int((self._clock() - MARGIN_S) * 1000))

    async def apply(self, events: Sequence[ConsumedEvent]) -> None:
        """Reads the current state of the tweets and users in the events, and applies it to the index.

        Raises AioRpcError if tweet, identity or graph does not answer, UNAVAILABLE if the index cannot be written. The
        consumer then retries the batch.
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
        """Reads the tweets from the tweet service and returns a change of the index for each."""
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
        """Reads the users from identity and graph, and returns a change of the index for each."""
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
    """Reads follower counts from graph. Methods raise AioRpcError if graph does not answer."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._get_counts: Any = GraphServiceStub(channel).BatchGetUserCounts

    async def counts(self, user_ids: Sequence[int]) -> dict[int, int]:
        """Returns the number of followers by user id. It is 0 for unknown users too."""
        found = dict.fromkeys(user_ids, 0)
        for start in range(0, len(user_ids), MAX_COUNTS):
            asked = graph.BatchGetUserCountsRequest(ids=user_ids[start : start + MAX_COUNTS])
            counts = (await self._get_counts(asked)).counts
            found |= {user_id: counted.followers for user_id, counted in counts.items()}
        return found


class TrendCounter:
    """Counts who uses hashtags in tweets, and who likes, retweets, quotes or replies to tweets, for trends. `clock`
    returns Unix seconds."""

    def __init__(
        self, channel: grpc.aio.Channel, tags: Trends[str], tweets: Trends[int], clock: Callable[[], float]
    ) -> None:
        self._get_cores: Any = TweetServiceStub(channel).BatchGetTweetCores
        self._tags = tags
        self._tweets = tweets
        self._clock = clock

    def start_position(self) -> StartPosition:
        """Returns the time TREND_REPLAY_S ago, because the counts are in process memory and are made again at each
        start."""
        return StartPosition(time_ms=int((self._clock() - TREND_REPLAY_S) * 1000))

    async def apply(self, events: Sequence[ConsumedEvent]) -> None:
        """Adds new tweets and likes to the counts of hashtags and tweets, and subtracts those that were undone or whose
        user was suspended or deactivated. An event that is delivered twice counts once.

        Raises AioRpcError if the tweet service does not answer. The consumer then retries the batch.
        """
        bodies = [_body(event) for event in events]
        tags_by_tweet = await self._tags_by_tweet(bodies)
        for event, body in zip(events, bodies, strict=True):
            match body:
                case event_pb2.TweetCreated() | event_pb2.TweetEdited() | event_pb2.TweetRestored():
                    at_s = timestamp_ms(body.tweet_id) / 1000
                    # The tweet may have been counted with other hashtags, before an edit.
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
        """Returns the hashtags of the tweets that were created, edited or restored, by tweet id. Leaves out
        retweets."""
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
    """Returns the change of the index for a tweet. Its document is None if searches must not find the tweet."""
    return IndexChange(Collection.TWEETS, core.head.id, tweet_document(core))


def cooperative_batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yields the items in batches of DOCUMENTS_PER_TURN."""
    for start in range(0, len(items), DOCUMENTS_PER_TURN):
        yield items[start : start + DOCUMENTS_PER_TURN]


def tags_of(core: tweet_pb2.TweetCore) -> dict[str, str]:
    """Returns the hashtags of a tweet as a dict: `tag_key` of the hashtag → its first spelling in the tweet, both
    without `#`."""
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
    """Returns the message in the event's oneof, such as TweetCreated. Raises DecodeError if the payload is not an
    event, ValueError if the message does not belong to the topic. The consumer then makes the event a dead letter."""
    found = event_pb2.Event.FromString(event.payload)
    name = found.WhichOneof("body")
    if name is None or name.replace("_", ".", 1) != event.topic:
        raise ValueError(f"the record of topic {event.topic} has the body {name}, which belongs to another topic")
    return getattr(found, name)
