"""Guarantees of the Cassandra engagement store beyond the port: with several processes, with sharded likes, and after
the crash of a process."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from roost.event.v1 import event_pb2

from services.engagement import consumer
from services.engagement.store import ReactionKind
from services.engagement.store.cassandra import count_cache
from services.platform.events.log import ConsumedEvent, Record
from services.platform.ids.snowflake import first_id_at, wall_clock_ms
from services.platform.rpc import errors
from services.platform.sqlite.event_log import EmbeddedLog
from tests.cluster import Namespace
from tests.waiting import wait_until_async

pytestmark = pytest.mark.cluster

TWEET, ANN = 100, 1
_ids = count(first_id_at(wall_clock_ms()))
Open = Callable[..., Any]


class Clock:
    """Unix seconds, which a test can move forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def another(tmp_path: Path, namespace: Namespace, clock: Clock) -> AsyncIterator[Open]:
    """Opens a store on the same servers, as another process would."""
    from services.engagement.store.cassandra.store import CassandraEngagementStore

    log = await EmbeddedLog.open(tmp_path / "log.db")
    cluster = await namespace.cluster()

    async def another() -> CassandraEngagementStore:
        opened.append(await CassandraEngagementStore.open(cluster, log, clock))
        return opened[-1]

    opened: list[CassandraEngagementStore] = []
    yield another
    for store in opened:
        await store.close()
    await log.close()


def event(topic: str, user_id: int, tweet_id: int = TWEET) -> Record:
    event_id = next(_ids)
    body = event_pb2.Event(event_id=event_id, key=user_id)
    (body.tweet_liked if topic == "tweet.liked" else body.tweet_unliked).MergeFrom(
        event_pb2.TweetLiked(tweet_id=tweet_id, user_id=user_id)
        if topic == "tweet.liked"
        else event_pb2.TweetUnliked(tweet_id=tweet_id, user_id=user_id)
    )
    return Record(topic, user_id, event_id, body.SerializeToString())


async def like(store: Any, user_id: int) -> Record:
    record = event("tweet.liked", user_id)
    await store.like(TWEET, user_id, record)
    return record


async def unlike(store: Any, user_id: int) -> Record:
    record = event("tweet.unliked", user_id)
    await store.unlike(TWEET, user_id, record)
    return record


async def counts(store: Any) -> tuple[int, int]:
    answer = await store.batch_get_counts([TWEET])
    return (answer.counts[0].likes, answer.counts[0].bookmarks) if answer.counts else (0, 0)


async def likers(store: Any, limit: int = 100) -> list[int]:
    found: list[int] = []
    below = 0
    while page := await store.list_likers(TWEET, below, limit):
        found += [entry.id for entry in page]
        below = page[-1].reaction_id
    return found


async def recount(store: Any, events: Sequence[Record]) -> None:
    """Passes the events to the consumer, as the log does."""
    apply = consumer.recounting(store.counter.recount_likes)
    await apply([ConsumedEvent(0, 0, *record) for record in events])


async def test_like_sharded_likes_are_listed_and_counted(another: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.engagement.store.cassandra.schema.SHARD_FROM", 5)
    monkeypatch.setattr(consumer, "ROUND_S", 0.01)
    stores = [await another(), await another()]
    events = [await like(stores[user_id % 2], user_id) for user_id in range(1, 31)]
    await recount(stores[0], events)
    assert await counts(stores[1]) == (30, 0)
    assert await likers(stores[0], 7) == list(range(30, 0, -1))
    gone = [await unlike(stores[0], user_id) for user_id in (1, 2, 10, 20, 30)]
    await recount(stores[1], gone)
    # Events delivered a second time change nothing.
    await recount(stores[1], [*gone, *events])
    assert await counts(stores[0]) == (25, 0)
    assert await likers(stores[1]) == [i for i in range(30, 0, -1) if i not in (1, 2, 10, 20, 30)]


async def test_bookmark_sharded_bookmarks_are_counted_immediately(
    another: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.engagement.store.cassandra.schema.SHARD_FROM", 3)
    store = await another()
    for user_id in range(1, 13):
        assert await store.bookmark(TWEET, user_id, next(_ids))
        assert await counts(store) == (0, user_id)
    for left, user_id in enumerate(range(1, 13), -11):
        assert await store.unbookmark(TWEET, user_id)
        assert await counts(store) == (0, -left)


async def test_like_concurrent_processes_publish_one_event(another: Open) -> None:
    stores = [await another() for _ in range(4)]
    for change in (like, unlike) * 3:
        events = await asyncio.gather(*(change(store, ANN) for store in stores))
        assert len(await stores[0].writer.validator.publishable(events)) == 1
        assert await counts(stores[1]) == ((1, 0) if change is like else (0, 0))
    kept = await asyncio.gather(*(store.bookmark(TWEET, ANN, next(_ids)) for store in stores))
    assert sorted(kept) == [False, False, False, True]


async def test_sweep_after_crash_writes_copies_and_publishes(
    another: Open, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying, sweeper = await another(), await another()

    async def die(*_: Any) -> None:
        raise errors.unavailable("gone")

    await like(sweeper, 2)
    monkeypatch.setattr(dying.writer, "_finish", die)
    for change, user_id in ((like, ANN), (unlike, 2)):
        with pytest.raises(errors.RoostError, match="gone"):
            await change(dying, user_id)
    # An event whose transaction is never applied, because the like exists already.
    monkeypatch.setattr(dying.writer, "_read_reaction", lambda *_: asyncio.sleep(0, (None, None, 0)))
    monkeypatch.setattr("services.engagement.store.cassandra.reaction_writer.MAX_TRIES", 1)
    with pytest.raises(errors.RoostError, match="concurrent"):
        await like(dying, ANN)
    assert await likers(sweeper) == [2]
    clock.ahead_s = 30
    assert await sweeper.outbox.sweep() == 2
    assert await likers(sweeper) == [ANN]
    assert await counts(sweeper) == (1, 0)
    assert await sweeper.outbox.sweep() == 0


@pytest.mark.parametrize("kind", list(ReactionKind))
async def test_repeat_after_crash_writes_copies(
    another: Open, kind: ReactionKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying, store = await another(), await another()

    async def die(*_: Any) -> None:
        raise errors.unavailable("gone")

    monkeypatch.setattr(dying.writer, "_finish", die)

    async def make(by: Any) -> None:
        if kind is ReactionKind.LIKE:
            await like(by, ANN)
        else:
            await by.bookmark(TWEET, ANN, next(_ids))

    async def undo(by: Any) -> None:
        await (unlike(by, ANN) if kind is ReactionKind.LIKE else by.unbookmark(TWEET, ANN))

    for change, there in ((make, 1), (undo, 0)):
        with pytest.raises(errors.RoostError, match="gone"):
            await change(dying)
        await change(store)
        assert sum(await counts(store)) == there
        assert len(await store.list_tweets(kind, ANN, 0, 10)) == there


async def test_copy_after_unlike_is_ignored(another: Open) -> None:
    store = await another()
    record = await like(store, ANN)
    await unlike(store, ANN)
    # As a sweeper does that read the note before the unlike.
    assert await store.writer.validator.publishable([record]) == [record]
    assert await counts(store) == (0, 0)
    assert await likers(store) == []
    assert not (await store.batch_get_viewer_states(ANN, [TWEET])).states


async def test_counts_are_shared_until_changed(another: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = await another(), await another()
    assert await counts(here) == (0, 0)
    with monkeypatch.context() as patch:
        patch.setattr(there.counter, "counts", None)
        assert await counts(there) == (0, 0)
    await like(here, ANN)
    assert await counts(there) == (1, 0)


async def test_count_begun_before_change_is_not_cached(another: Open) -> None:
    slow, store = await another(), await another()
    _, storable = await slow._count_cache.frames([TWEET])
    assert storable == {TWEET}
    await like(store, ANN)
    await slow._count_cache.put({TWEET: b""}, (), slow._count_cache.now())
    assert await counts(store) == (1, 0)


async def cached(store: Any) -> bool:
    """Counts, and returns whether the count was cached."""
    await counts(store)
    return bool((await store._count_cache.frames([TWEET]))[0])


async def test_counts_without_redis_are_read_from_cassandra(another: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = await another(), await another()
    # The marker expires soon, so that the next count is cached.
    monkeypatch.setattr(count_cache, "CHANGED_TTL_MS", 20)
    await like(store, ANN)
    await wait_until_async(lambda: cached(other))

    def refuse(_: str) -> None:
        raise errors.unavailable("Redis does not answer", reason="CACHE_UNAVAILABLE")

    assert await counts(other) == (1, 0)
    with monkeypatch.context() as patch:
        # A client of this store alone: the test's stores share one.
        refusing = copy.copy(store._count_cache._redis)
        refusing.node = refuse
        patch.setattr(store._count_cache, "_redis", refusing)
        assert await store.like(TWEET, 2, event("tweet.liked", 2)) == 2
        assert await counts(store) == (2, 0)
        assert await counts(other) == (1, 0)
    # Other processes see the change once Redis takes it.

    async def changed() -> bool:
        return await counts(other) == (2, 0)

    await wait_until_async(changed)


async def test_count_slower_than_bound_is_not_cached(another: Open) -> None:
    store = await another()
    now_s = 1_000.0
    store._count_cache._monotonic = lambda: now_s
    began = store._count_cache.now()
    now_s += count_cache.MAX_COUNTING_S
    await store._count_cache.put({TWEET: b""}, (), began)
    assert (await store._count_cache.frames([TWEET]))[0] == {}
    await store._count_cache.put({TWEET: b""}, (), began + 0.001)
    assert (await store._count_cache.frames([TWEET]))[0] == {TWEET: b""}


async def test_like_after_unlike_is_not_coalesced_with_earlier_like(
    another: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await another()
    counting, may_count = asyncio.Event(), asyncio.Event()
    count_now = store.counter.count_after_change

    async def count_late(tweet_id: int, number: int) -> Any:
        if not counting.is_set():
            counting.set()
            await may_count.wait()
        return await count_now(tweet_id, number)

    monkeypatch.setattr(store.counter, "count_after_change", count_late)
    first = asyncio.create_task(store.like(TWEET, ANN, event("tweet.liked", ANN)))
    await counting.wait()
    assert await store.unlike(TWEET, ANN, event("tweet.unliked", ANN)) == 0
    assert await store.like(TWEET, ANN, event("tweet.liked", ANN)) == 1
    may_count.set()
    assert await first == 1
    assert [entry.id for entry in await store.list_likers(TWEET, 0, 10)] == [ANN]
