"""Search consumers: repeated, late and reordered events lead to the same index and trends."""

from __future__ import annotations

import random
from typing import Any, cast

import grpc
import pytest
from roost.event.v1.event_pb2 import (
    TweetCreated,
    TweetDeleted,
    TweetEdited,
    TweetLiked,
    TweetRestored,
    TweetUnliked,
    UserCreated,
    UserDeleted,
    UserFollowed,
    UserReinstated,
    UserSuspended,
    UserUnfollowed,
    UserUpdated,
)
from roost.identity.v1 import user_pb2

from services.platform.events.log import ConsumedEvent, Consumer
from services.platform.ids.snowflake import first_id_at
from services.platform.transport.inprocess import InProcessChannel
from services.search.consumer import MARGIN_S, TREND_REPLAY_S, Indexer, PositionedConsumer, StartPosition, TrendCounter
from services.search.store import SearchIndex
from services.search.trends import Trends
from tests.unit.services.search.conftest import MemoryIndex, Owners, event

NOW_S = 1_800_000_000.0


@pytest.fixture
def indexer(channel: InProcessChannel, memory: MemoryIndex) -> Indexer:
    return Indexer(channel, cast(SearchIndex, memory), lambda: NOW_S)


async def test_indexer_any_event_indexes_current_state(indexer: Indexer, owners: Owners, memory: MemoryIndex) -> None:
    owners.post(1, "edited text", edited_ms=5)
    owners.delete(2)
    owners.post(4, "restored")
    owners.sign_up(8, "ann", version=3)
    owners.sign_up(9, "bob", user_pb2.USER_STATE_SUSPENDED)
    await indexer.apply(
        [
            event(1, tweet_created=TweetCreated(tweet_id=1)),
            event(2, tweet_created=TweetCreated(tweet_id=2)),
            event(3, tweet_created=TweetCreated(tweet_id=3)),
            event(4, tweet_deleted=TweetDeleted(tweet_id=4)),
            event(5, user_created=UserCreated(user_id=8)),
            event(6, user_created=UserCreated(user_id=9)),
            event(7, user_created=UserCreated(user_id=10)),
        ]
    )
    assert memory.words() == {1: ("edited", "text"), 4: ("restored",)}
    assert memory.people() == {8}
    assert memory.position == 7


async def test_indexer_reordered_and_repeated_events_same_index(
    indexer: Indexer, owners: Owners, memory: MemoryIndex
) -> None:
    """Applies random histories while they happen: each batch reads the owners' current state, which may be ahead of
    its events.
    """
    rng = random.Random(5)
    for _ in range(30):
        owners.tweets.clear()
        owners.people.clear()
        memory.documents.clear()
        happened: list[dict[str, Any]] = []
        for step in range(12):
            key = rng.randint(1, 3)
            match rng.choice(["post", "edit", "delete", "suspend", "reinstate"]):
                case "post":
                    owners.post(key, f"text {step}")
                    happened.append({"tweet_created": TweetCreated(tweet_id=key)})
                case "edit" if key in owners.tweets and not owners.tweets[key].head.deleted:
                    owners.post(key, f"edit {step}", edited_ms=step + 1)
                    happened.append({"tweet_edited": TweetEdited(tweet_id=key)})
                case "delete":
                    owners.delete(key)
                    happened.append({"tweet_deleted": TweetDeleted(tweet_id=key)})
                case "suspend":
                    owners.sign_up(key, f"user{key}", user_pb2.USER_STATE_SUSPENDED, version=step)
                    happened.append({"user_suspended": UserSuspended(user_id=key)})
                case "reinstate":
                    owners.sign_up(key, f"user{key}", version=step)
                    happened.append({"user_reinstated": UserReinstated(user_id=key)})
            if happened and rng.random() < 0.5:
                batch = rng.choices(happened, k=4)
                await indexer.apply([event(n, **body) for n, body in enumerate(batch, 1)])
        rng.shuffle(happened)
        if not happened:
            continue
        await indexer.apply([event(n, **body) for n, body in enumerate(happened, 1)])
        texts = {i: core.core for i, core in owners.tweets.items() if not core.head.deleted}
        assert memory.words().keys() == texts.keys()
        assert all(" ".join(words).encode() in texts[key] for key, words in memory.words().items())
        assert memory.people() == {i for i, one in owners.people.items() if one.state == user_pb2.USER_STATE_ACTIVE}


async def test_indexer_follow_events_update_user_ranks(indexer: Indexer, owners: Owners, memory: MemoryIndex) -> None:
    owners.sign_up(8, "ann")
    owners.sign_up(9, "bob")
    owners.followers = {8: 40}
    await indexer.apply(
        [
            event(1, user_followed=UserFollowed(follower_id=9, followee_id=8)),
            event(2, user_updated=UserUpdated(user_id=9)),
        ]
    )
    assert memory.ranks() == {8: 40, 9: 0}
    owners.followers = {8: 39}
    await indexer.apply([event(3, user_unfollowed=UserUnfollowed(follower_id=9, followee_id=8))])
    assert memory.ranks() == {8: 39, 9: 0}


async def test_indexer_retweet_makes_no_document(indexer: Indexer, owners: Owners, memory: MemoryIndex) -> None:
    owners.post(2, "", retweet_of_id=1)
    await indexer.apply([event(1, tweet_created=TweetCreated(tweet_id=2, retweet_of_id=1))])
    await indexer.apply([event(2, tweet_restored=TweetRestored(tweet_id=2))])
    assert memory.words() == {}
    assert memory.position == 2


async def test_indexer_owner_unavailable_keeps_position(indexer: Indexer, owners: Owners, memory: MemoryIndex) -> None:
    owners.post(1, "text")
    owners.failures = 1
    batch = [event(1, tweet_created=TweetCreated(tweet_id=1)), event(2, user_updated=UserUpdated(user_id=1))]
    with pytest.raises(grpc.aio.AioRpcError):
        await indexer.apply(batch)
    assert memory.position is None
    await indexer.apply(batch)
    assert (memory.words(), memory.position) == ({1: ("text",)}, 2)


async def test_indexer_malformed_event_raises(indexer: Indexer) -> None:
    for topic, payload in (("tweet.created", b"\xff"), ("tweet.created", b""), ("user.created", None)):
        made = event(1, tweet_created=TweetCreated(tweet_id=1))
        broken = made._replace(topic=topic, payload=made.payload if payload is None else payload)
        with pytest.raises(Exception, match=r"belongs to another topic|parsing|decode"):
            await indexer.apply([broken])


class RecordingConsumer(Consumer):
    """Records its calls."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def seek(self, *, offset: int | None = None, time_ms: int | None = None) -> None:
        self.asked.append(StartPosition(offset, time_ms))

    async def start(self) -> None:
        self.asked.append("start")

    async def stop(self) -> None:
        self.asked.append("stop")


async def test_positioned_consumer_start_seeks_index_position(indexer: Indexer, memory: MemoryIndex) -> None:
    consumer = RecordingConsumer()
    worker = PositionedConsumer(consumer, indexer.start_position)
    await worker.start()
    await worker.stop()
    memory.position = 41
    await worker.start()
    first = StartPosition(time_ms=int((NOW_S - MARGIN_S) * 1000))
    assert consumer.asked == [first, "start", "stop", StartPosition(offset=42), "start"]


class Counting:
    """A TrendCounter with a minimum of one user, and its rankings."""

    def __init__(self, channel: InProcessChannel) -> None:
        self.tags: Trends[str] = Trends(lambda: NOW_S, 1)
        self.tweets: Trends[int] = Trends(lambda: NOW_S, 1)
        self.counter = TrendCounter(channel, self.tags, self.tweets, lambda: NOW_S)

    async def apply(self, *events: ConsumedEvent) -> None:
        await self.counter.apply(events)

    def tag_counts(self) -> dict[Any, int]:
        return {trend.key: trend.actors for trend in self.tags.ranking()}

    def tweet_counts(self) -> dict[Any, int]:
        return {trend.key: trend.actors for trend in self.tweets.ranking()}


@pytest.fixture
def counting(channel: InProcessChannel) -> Counting:
    return Counting(channel)


def test_trend_counter_start_position_is_hours_ago(counting: Counting) -> None:
    assert counting.counter.start_position() == StartPosition(time_ms=int((NOW_S - TREND_REPLAY_S) * 1000))


def now_id(number: int) -> int:
    return first_id_at(int(NOW_S * 1000)) + number


async def test_trend_counter_deleted_tweet_removes_its_tags(owners: Owners, counting: Counting) -> None:
    one, two, three = now_id(1), now_id(2), now_id(3)
    owners.post(one, "", "Tag", "tag", author=1)
    owners.post(two, "", "TAG", "other", author=2)
    owners.delete(three)
    created = [
        event(n, tweet_created=TweetCreated(tweet_id=i, author_id=n)) for n, i in ((1, one), (2, two), (3, three))
    ]
    await counting.apply(*created)
    await counting.apply(*created)
    assert counting.tag_counts() == {"tag": 2, "other": 1}
    await counting.apply(event(4, tweet_deleted=TweetDeleted(tweet_id=one, author_id=1)))
    assert counting.tag_counts() == {"tag": 1, "other": 1}
    await counting.apply(event(5, tweet_restored=TweetRestored(tweet_id=one, author_id=1)))
    assert counting.tag_counts() == {"tag": 2, "other": 1}
    await counting.apply(event(6, user_suspended=UserSuspended(user_id=2)))
    assert counting.tag_counts() == {"tag": 1}


async def test_trend_counter_edited_tweet_counts_new_tags(owners: Owners, counting: Counting) -> None:
    for number in (1, 2, 3):
        owners.post(now_id(number), "", "typo", author=number)
        await counting.apply(event(number, tweet_created=TweetCreated(tweet_id=now_id(number), author_id=number)))
    assert counting.tag_counts() == {"typo": 3}
    for number in (1, 2, 3):
        owners.post(now_id(number), "", "fixed", author=number)
        edited = event(number + 3, tweet_edited=TweetEdited(tweet_id=now_id(number), author_id=number))
        await counting.apply(edited)
        await counting.apply(edited)
    assert counting.tag_counts() == {"fixed": 3}
    # A tweet that had no tag before the edit, and a tweet that has none after it.
    owners.post(now_id(4), "", author=4)
    await counting.apply(event(7, tweet_created=TweetCreated(tweet_id=now_id(4), author_id=4)))
    owners.post(now_id(4), "", "fixed", author=4)
    owners.post(now_id(1), "", author=1)
    await counting.apply(
        event(8, tweet_edited=TweetEdited(tweet_id=now_id(4), author_id=4)),
        event(9, tweet_edited=TweetEdited(tweet_id=now_id(1), author_id=1)),
    )
    assert counting.tag_counts() == {"fixed": 3}


async def test_trend_counter_tag_spellings_returns_most_used(owners: Owners, counting: Counting) -> None:
    for number, (author, spelling) in enumerate(
        [(1, "photooftheday"), (1, "photooftheday"), (1, "photooftheday"), (2, "PhotoOfTheDay"), (3, "PhotoOfTheDay")]
    ):
        owners.post(now_id(number), "", spelling, author=author)
        await counting.apply(event(number, tweet_created=TweetCreated(tweet_id=now_id(number), author_id=author)))
    (trend,) = counting.tags.ranking()
    assert (trend.key, trend.spelling, trend.actors, trend.acts) == ("photooftheday", "PhotoOfTheDay", 3, 5)
    await counting.apply(
        event(7, tweet_deleted=TweetDeleted(tweet_id=now_id(3))),
        event(8, tweet_deleted=TweetDeleted(tweet_id=now_id(4))),
    )
    assert [trend.spelling for trend in counting.tags.ranking()] == ["photooftheday"]


async def test_trend_counter_reactions_count_each_user_once_without_author(counting: Counting) -> None:
    at_ms = int(NOW_S * 1000)
    acted = [
        event(1, at_ms, tweet_liked=TweetLiked(tweet_id=7, user_id=2)),
        event(2, tweet_created=TweetCreated(tweet_id=now_id(2), author_id=2, retweet_of_id=7, retweet_of_author_id=1)),
        event(3, tweet_created=TweetCreated(tweet_id=now_id(3), author_id=3, quote_of_id=7, quote_of_author_id=1)),
        event(4, tweet_created=TweetCreated(tweet_id=now_id(4), author_id=4, reply_to_id=7, reply_to_author_id=1)),
        event(5, tweet_created=TweetCreated(tweet_id=now_id(5), author_id=1, reply_to_id=7, reply_to_author_id=1)),
    ]
    await counting.apply(*acted)
    await counting.apply(*acted)
    assert counting.tweet_counts() == {7: 3}
    await counting.apply(event(6, tweet_unliked=TweetUnliked(tweet_id=7, user_id=2)))
    assert counting.tweet_counts() == {7: 3}, "the retweet of the same person stands"
    await counting.apply(event(7, tweet_deleted=TweetDeleted(tweet_id=now_id(2))))
    await counting.apply(event(8, user_deleted=UserDeleted(user_id=3)))
    assert counting.tweet_counts() == {7: 1}
