"""The contract of the engagement store's port, for every adapter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.engagement.store import EngagementStore, ReactionKind
from services.platform.ids.snowflake import wall_clock_ms
from tests.contract.engagement.conftest import Opened

ANN, BEN, CAT = 1, 2, 3
TWEET, OTHER, THIRD = 100, 200, 300


async def fresh_and_reopened(opened: Opened) -> AsyncIterator[EngagementStore]:
    """Yields the store, then the store after a restart."""
    yield opened.store
    yield await opened.reopen()


async def test_like_is_listed_counted_and_published(opened: Opened) -> None:
    assert await opened.counts([TWEET]) == []
    assert await opened.states(ANN, [TWEET]) == []
    assert await opened.like(TWEET, ANN) == 1
    assert await opened.like(TWEET, BEN) == 2
    async for _ in fresh_and_reopened(opened):
        assert await opened.likers(TWEET) == [BEN, ANN]
        assert await opened.tweets(ReactionKind.LIKE, ANN) == [TWEET]
        assert await opened.counts([TWEET]) == [(TWEET, 2, 0)]
        assert await opened.states(ANN, [TWEET, OTHER]) == [(TWEET, True, False)]
        assert await opened.states(CAT, [TWEET, OTHER]) == []
    assert await opened.events() == [("tweet.liked", ANN, TWEET), ("tweet.liked", BEN, TWEET)]


async def test_like_repeated_changes_and_publishes_nothing(opened: Opened) -> None:
    await opened.like(TWEET, ANN)
    await opened.like(OTHER, ANN)
    for _ in range(2):
        assert await opened.like(TWEET, ANN) == 1
    async for _ in fresh_and_reopened(opened):
        assert await opened.tweets(ReactionKind.LIKE, ANN) == [OTHER, TWEET], "a repeat keeps its place"
        assert await opened.counts([TWEET]) == [(TWEET, 1, 0)]
    assert len(await opened.events()) == 2


async def test_unlike_removes_like_and_count(opened: Opened) -> None:
    await opened.like(TWEET, ANN)
    await opened.like(TWEET, BEN)
    await opened.states(ANN, [TWEET])
    assert await opened.unlike(TWEET, ANN) == 1
    async for _ in fresh_and_reopened(opened):
        assert await opened.likers(TWEET) == [BEN]
        assert await opened.tweets(ReactionKind.LIKE, ANN) == []
        assert await opened.counts([TWEET]) == [(TWEET, 1, 0)]
        assert await opened.states(ANN, [TWEET]) == []
    assert await opened.unlike(TWEET, ANN) == 1
    assert await opened.unlike(OTHER, ANN) == 0
    assert await opened.unlike(TWEET, BEN) == 0
    assert await opened.counts([TWEET, OTHER]) == []
    assert await opened.events() == [
        ("tweet.liked", ANN, TWEET),
        ("tweet.liked", BEN, TWEET),
        ("tweet.unliked", ANN, TWEET),
        ("tweet.unliked", BEN, TWEET),
    ]


async def test_like_after_unlike_is_listed_first(opened: Opened) -> None:
    for tweet_id in (TWEET, OTHER):
        await opened.like(tweet_id, ANN)
    await opened.unlike(TWEET, ANN)
    assert await opened.like(TWEET, ANN) == 1
    assert await opened.tweets(ReactionKind.LIKE, ANN) == [TWEET, OTHER]
    assert len(await opened.events()) == 4


async def test_bookmark_is_independent_of_like_and_not_published(opened: Opened) -> None:
    await opened.like(TWEET, ANN)
    assert await opened.bookmark(TWEET, ANN)
    assert not await opened.bookmark(TWEET, ANN)
    assert await opened.bookmark(OTHER, ANN)
    assert await opened.bookmark(TWEET, BEN)
    async for _ in fresh_and_reopened(opened):
        assert await opened.tweets(ReactionKind.BOOKMARK, ANN) == [OTHER, TWEET]
        assert await opened.tweets(ReactionKind.LIKE, ANN) == [TWEET]
        assert await opened.counts([OTHER, TWEET]) == [(OTHER, 0, 1), (TWEET, 1, 2)]
        assert await opened.states(ANN, [TWEET, OTHER]) == [(TWEET, True, True), (OTHER, False, True)]
    assert await opened.unbookmark(TWEET, ANN)
    assert not await opened.unbookmark(TWEET, ANN)
    assert not await opened.unbookmark(THIRD, ANN)
    async for _ in fresh_and_reopened(opened):
        assert await opened.tweets(ReactionKind.BOOKMARK, ANN) == [OTHER]
        assert await opened.counts([TWEET]) == [(TWEET, 1, 1)]
        assert await opened.states(ANN, [TWEET]) == [(TWEET, True, False)]
    assert await opened.events() == [("tweet.liked", ANN, TWEET)]


async def test_batch_responses_keep_order_and_are_not_shared(opened: Opened) -> None:
    for tweet_id in (TWEET, OTHER, THIRD):
        await opened.like(tweet_id, ANN)
    async for store in fresh_and_reopened(opened):
        wanted = [THIRD, 999, TWEET, THIRD, OTHER]
        assert [tweet_id for tweet_id, *_ in await opened.counts(wanted)] == [THIRD, TWEET, THIRD, OTHER]
        assert [tweet_id for tweet_id, *_ in await opened.states(ANN, wanted)] == [THIRD, TWEET, THIRD, OTHER]
        (await store.batch_get_counts([TWEET])).counts[0].likes = 77
        (await store.batch_get_viewer_states(ANN, [TWEET])).states[0].liked = False
        assert await opened.counts([TWEET]) == [(TWEET, 1, 0)]
        assert await opened.states(ANN, [TWEET]) == [(TWEET, True, False)]
        assert await opened.counts([]) == await opened.states(ANN, []) == []


@pytest.mark.parametrize("kind", list(ReactionKind))
async def test_list_tweets_honours_bound_and_limit(opened: Opened, kind: ReactionKind) -> None:
    for tweet_id in range(10, 20):
        await (opened.like if kind is ReactionKind.LIKE else opened.bookmark)(tweet_id, ANN)
    store = opened.store
    first = await store.list_tweets(kind, ANN, 0, 4)
    assert [entry.id for entry in first] == [19, 18, 17, 16]
    second = await store.list_tweets(kind, ANN, first[-1].reaction_id, 4)
    assert [entry.id for entry in second] == [15, 14, 13, 12]
    assert [entry.id for entry in await store.list_tweets(kind, ANN, second[-1].reaction_id, 4)] == [11, 10]
    assert await store.list_tweets(kind, BEN, 0, 4) == []


async def test_list_likers_honours_bound_and_limit(opened: Opened) -> None:
    for user_id in range(10, 20):
        await opened.like(TWEET, user_id)
    first = await opened.store.list_likers(TWEET, 0, 4)
    assert [entry.id for entry in first] == [19, 18, 17, 16]
    assert await opened.likers(TWEET, first[-1].reaction_id) == [15, 14, 13, 12, 11, 10]


async def test_like_concurrent_repeats_count_once(opened: Opened) -> None:
    answers = await asyncio.gather(*(opened.like(TWEET, ANN) for _ in range(100)))
    assert set(answers) == {1}
    async for _ in fresh_and_reopened(opened):
        assert await opened.counts([TWEET]) == [(TWEET, 1, 0)]
        assert await opened.likers(TWEET) == [ANN]
    assert await opened.events() == [("tweet.liked", ANN, TWEET)]


async def test_like_concurrent_users_all_count(opened: Opened) -> None:
    answers = await asyncio.gather(*(opened.like(TWEET, user_id) for user_id in range(1, 101)))
    # Each result includes the caller's like and all earlier ones; concurrent likes may include one another.
    assert all(answer >= reaction_id for reaction_id, answer in enumerate(sorted(answers), 1))
    assert max(answers) == 100
    assert await opened.counts([TWEET]) == [(TWEET, 100, 0)]


async def test_like_cancelled_caches_nothing_stale(opened: Opened) -> None:
    ids = list(range(1, 40))
    await opened.states(ANN, ids)
    for tweet_id in ids:
        write = opened.like(tweet_id, ANN) if tweet_id % 2 else opened.unlike(max(tweet_id - 3, 1), ANN)
        task = asyncio.ensure_future(write)
        for _ in range(tweet_id % 5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    # A later write: all earlier ones are committed when it returns.
    await opened.like(1_000, ANN)
    known = await opened.counts(ids), await opened.states(ANN, ids)
    await opened.reopen()
    assert known == (await opened.counts(ids), await opened.states(ANN, ids))


async def test_concurrent_reads_and_writes_cache_nothing_stale(opened: Opened) -> None:
    ids = list(range(1, 9))

    async def write(user_id: int) -> None:
        for n in range(60):
            tweet_id = ids[(n * user_id) % len(ids)]
            if n % 3 == 2:
                await opened.unlike(tweet_id, user_id)
                assert await opened.states(user_id, [tweet_id]) == []
            else:
                assert await opened.like(tweet_id, user_id) >= 1
                assert await opened.states(user_id, [tweet_id]) == [(tweet_id, True, False)]
                assert (await opened.counts([tweet_id]))[0][1] >= 1

    async def read(user_id: int) -> None:
        for _ in range(120):
            await opened.states(user_id, ids)
            await opened.counts(ids)

    await asyncio.gather(*(work(user_id) for user_id in (1, 2, 3) for work in (write, read)))
    known = [await opened.counts(ids), *[await opened.states(user_id, ids) for user_id in (1, 2, 3)]]
    await opened.reopen()
    assert known == [await opened.counts(ids), *[await opened.states(user_id, ids) for user_id in (1, 2, 3)]]


async def test_set_absent_excludes_likes_until_undone(opened: Opened) -> None:
    for tweet_id, user_id in ((TWEET, ANN), (TWEET, BEN), (OTHER, ANN)):
        await opened.like(tweet_id, user_id)
    await opened.bookmark(TWEET, ANN)
    before = await opened.counts([TWEET, OTHER])
    at_us = wall_clock_ms() * 1000
    for _ in range(2):
        await opened.store.set_absent(ANN, True, at_us)
        async for _ in fresh_and_reopened(opened):
            assert await opened.counts([TWEET, OTHER]) == [(TWEET, 1, 1)]
    assert await opened.likers(TWEET) == [BEN, ANN]
    assert await opened.like(TWEET, CAT) == 2
    await opened.unlike(TWEET, CAT)
    # An earlier decision that arrives late is ignored.
    await opened.store.set_absent(ANN, False, at_us - 1)
    assert await opened.counts([OTHER]) == []
    for _ in range(2):
        await opened.store.set_absent(ANN, False, at_us + 1)
        assert await opened.counts([TWEET, OTHER]) == before
    await opened.store.set_absent(ANN, True, at_us)
    assert await opened.counts([TWEET, OTHER]) == before


async def test_unlike_by_absent_user_keeps_count(opened: Opened) -> None:
    await opened.like(TWEET, ANN)
    await opened.like(TWEET, BEN)
    at_us = wall_clock_ms() * 1000
    await opened.store.set_absent(ANN, True, at_us)
    assert await opened.unlike(TWEET, ANN) == 1
    await opened.store.set_absent(ANN, False, at_us + 1)
    assert await opened.counts([TWEET]) == [(TWEET, 1, 0)]
    assert await opened.unlike(TWEET, BEN) == 0


async def test_set_absent_more_likes_than_one_step_excludes_all(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{type(opened.store).__module__}.ABSENCE_STEP", 2)
    ids = range(100, 105)
    for tweet_id in ids:
        await opened.like(tweet_id, ANN)
    at_us = wall_clock_ms() * 1000
    await opened.store.set_absent(ANN, True, at_us)
    assert await opened.counts(ids) == []
    await opened.store.set_absent(ANN, False, at_us + 1)
    assert await opened.counts(ids) == [(tweet_id, 1, 0) for tweet_id in ids]
