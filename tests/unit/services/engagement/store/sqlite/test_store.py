"""The caches of the embedded engagement store: overlapping reads and writes leave nothing stale."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from services.engagement.store.sqlite import cache
from services.engagement.store.sqlite import store as sqlite_store
from services.engagement.store.sqlite.store import SqliteEngagementStore
from services.platform.events.log import Record
from services.platform.versions import MemoryVersions

ANN, BEN = 1, 2
TWEET = 100


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteEngagementStore]:
    store = await SqliteEngagementStore.open(tmp_path / "engagement.db", MemoryVersions())
    yield store
    await store.close()


async def like(store: SqliteEngagementStore, tweet_id: int, user_id: int, reaction_id: int = 1) -> int:
    return await store.like(tweet_id, user_id, Record("tweet.liked", user_id, reaction_id, b""))


async def likes(store: SqliteEngagementStore, tweet_id: int) -> int:
    counts = (await store.batch_get_counts([tweet_id])).counts
    return counts[0].likes if counts else 0


async def liked(store: SqliteEngagementStore, user_id: int, *ids: int) -> list[int]:
    return [one.tweet_id for one in (await store.batch_get_viewer_states(user_id, ids)).states if one.liked]


def overtake(store: Any, monkeypatch: pytest.MonkeyPatch, write: Callable[[], Awaitable[Any]]) -> None:
    """Makes the next read return only after a write, which it did not see, has returned."""
    read = store.db.read

    async def overtaken(unit: Any) -> Any:
        monkeypatch.setattr(store.db, "read", read)
        found = await read(unit)
        await write()
        return found

    monkeypatch.setattr(store.db, "read", overtaken)


async def test_viewer_states_overtaken_by_write_are_not_cached(
    store: SqliteEngagementStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    overtake(store, monkeypatch, lambda: like(store, TWEET, ANN))
    await liked(store, ANN, TWEET)
    assert await liked(store, ANN, TWEET) == [TWEET]


async def test_counts_overtaken_by_write_are_not_cached(
    store: SqliteEngagementStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "NEWEST_COUNTS", 1)
    monkeypatch.setattr(cache, "_SLACK", 1)
    for reaction_id, tweet_id in enumerate((TWEET, 200, 300, 400)):
        await like(store, tweet_id, ANN, reaction_id)
    overtake(store, monkeypatch, lambda: like(store, TWEET, BEN, 9))
    await likes(store, TWEET)
    assert await likes(store, TWEET) == 2


async def test_like_cancelled_after_commit_updates_caches(
    store: SqliteEngagementStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = store.db.write
    committed, may_return = asyncio.Event(), asyncio.Event()

    async def slow(unit: Any) -> Any:
        outcome = await write(unit)
        committed.set()
        await may_return.wait()
        return outcome

    monkeypatch.setattr(store.db, "write", slow)
    assert await liked(store, ANN, TWEET) == []
    task = asyncio.ensure_future(like(store, TWEET, ANN))
    await committed.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    may_return.set()
    async with asyncio.timeout(30):
        while not await likes(store, TWEET):
            await asyncio.sleep(0)
    assert await liked(store, ANN, TWEET) == [TWEET]


async def test_counts_of_new_unliked_tweets_need_no_read(
    store: SqliteEngagementStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await like(store, TWEET, ANN)

    async def refuse(unit: Any) -> Any:
        raise AssertionError("the tables were asked")

    await liked(store, BEN, TWEET)
    monkeypatch.setattr(store.db, "read", refuse)
    answer = await store.batch_get_counts([*range(500, 600), TWEET])
    assert [(one.tweet_id, one.likes) for one in answer.counts] == [(TWEET, 1)]
    assert await liked(store, BEN, *range(500, 600)) == []


async def test_viewer_states_beyond_cache_bound_are_read_from_tables(
    store: SqliteEngagementStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (cache, sqlite_store):
        monkeypatch.setattr(module, "MAX_CACHED_PER_USER", 3)
    for tweet_id in range(1, 4):
        await like(store, tweet_id, ANN, tweet_id)
    assert await liked(store, ANN, 1, 2, 9) == [1, 2]
    await like(store, 4, ANN, 4)
    assert await liked(store, ANN, 1, 4, 9) == [1, 4]
    await store.unlike(4, ANN, Record("tweet.unliked", ANN, 5, b""))
    assert await liked(store, ANN, 1, 4, 9) == [1]


async def test_counts_after_reopen_are_complete(
    store: SqliteEngagementStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tweet_id in range(1, 8):
        await like(store, tweet_id, ANN, tweet_id)
    await store.close()
    monkeypatch.setattr(sqlite_store, "NEWEST_COUNTS", 3)
    again = await SqliteEngagementStore.open(tmp_path / "engagement.db", MemoryVersions())
    answer = await again.batch_get_counts(range(10))
    assert [one.tweet_id for one in answer.counts] == list(range(1, 8))
    await again.close()
