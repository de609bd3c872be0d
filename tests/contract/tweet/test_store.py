"""The contract of the tweet store's port, for every adapter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from roost.tweet.v1 import tweet_pb2

from services.platform.rpc.errors import RoostError
from services.tweet.store import IDEMPOTENCY_TTL_S, Claim, TweetStores
from tests.contract.tweet.conftest import Opened, event, make_core
from tests.waiting import WITHIN_S

NOW_S = 1_800_000_000
# Writes at a time; each waits for those before it.
AT_ONCE = 20


def claim(key: str = "k", body: bytes = b"body", now_s: int = NOW_S) -> Claim:
    return Claim(key, body, now_s)


async def fresh_and_reopened(opened: Opened) -> AsyncIterator[TweetStores]:
    """Yields the stores, then the store after a restart."""
    yield opened.stores
    yield await opened.reopen()


def code_of(caught: pytest.ExceptionInfo[RoostError]) -> grpc.StatusCode:
    return caught.value.code


async def test_batch_get_returns_stored_tweet(opened: Opened) -> None:
    head: dict[str, Any] = {"reply_to_id": 3, "reply_to_author_id": 4, "quote_of_id": 7, "quote_of_author_id": 8}
    await opened.post(3, 4)
    await opened.post(7, 8)
    await opened.post(100, 1, **head)
    async for stores in fresh_and_reopened(opened):
        (core,) = (await stores.tweets.batch_get([100])).cores
        assert core == make_core(100, 1, **head)
        assert tweet_pb2.Tweet.FromString(core.core).text == "hello"


async def test_batch_get_keeps_order_and_omits_unknown_ids(opened: Opened) -> None:
    for tweet_id in (1, 2, 3):
        await opened.post(tweet_id)
    async for stores in fresh_and_reopened(opened):
        response = await stores.tweets.batch_get([3, 9, 1, 3, 2])
        assert [core.head.id for core in response.cores] == [3, 1, 3, 2]


async def test_batch_responses_are_not_shared(opened: Opened) -> None:
    await opened.post(1)
    response = await opened.stores.tweets.batch_get([1])
    response.cores[0].head.author_id = 77
    lists = await opened.stores.lists.batch_list_author_ids([1], 0, 10)
    lists.authors[0].ids.append(99)
    assert (await opened.stores.tweets.batch_get([1])).cores[0].head.author_id == 1
    assert await opened.ids_of(1) == [1]


async def test_create_is_listed_immediately(opened: Opened) -> None:
    assert await opened.ids_of(1) == []
    for tweet_id in range(1, 30):
        await opened.post(tweet_id)
        assert (await opened.ids_of(1))[0] == tweet_id
        assert (await opened.stores.lists.list_author(1, 0, 5))[0] == tweet_id
        assert (await opened.stores.lists.list_recent(0, 5))[0] == tweet_id
        assert await opened.stores.lists.batch_count([1, 2]) == {1: tweet_id}


async def test_create_out_of_order_is_listed_by_id(opened: Opened) -> None:
    await opened.ids_of(1)
    for tweet_id in (5, 2, 9, 7):
        await opened.post(tweet_id)
    assert await opened.ids_of(1) == [9, 7, 5, 2]


async def test_delete_is_visible_to_next_read(opened: Opened) -> None:
    for tweet_id in (1, 2, 3):
        await opened.post(tweet_id)
    assert await opened.ids_of(1) == [3, 2, 1]
    assert await opened.delete(2)
    async for stores in fresh_and_reopened(opened):
        (core,) = (await stores.tweets.batch_get([2])).cores
        assert core.head.deleted
        assert core.head.author_id == 1
        assert core.core == b""
        assert await opened.ids_of(1) == [3, 1]
        assert list(await stores.lists.list_recent(0, 10)) == [3, 1]
        assert await stores.lists.batch_count([1]) == {1: 2}


async def test_delete_repeated_changes_and_publishes_nothing(opened: Opened) -> None:
    await opened.post(1)
    assert await opened.delete(1)
    assert not await opened.delete(1)
    assert await opened.stores.lists.batch_count([1]) == {}
    assert await opened.topics() == [("tweet.created", 1), ("tweet.deleted", 1)]


async def test_hide_unknown_tweet_is_not_found(opened: Opened) -> None:
    with pytest.raises(RoostError) as caught:
        await opened.delete(404)
    assert code_of(caught) is grpc.StatusCode.NOT_FOUND
    assert await opened.topics() == []


async def test_restore_by_another_action_is_refused(opened: Opened) -> None:
    stores = opened.stores
    await opened.post(1)
    assert await stores.tweets.remove(1, 7, NOW_S, event("tweet.deleted", 1))
    assert not await stores.tweets.remove(1, 8, NOW_S, event("tweet.deleted", 1))
    assert (await stores.tweets.batch_get([1])).cores[0].head.deleted
    with pytest.raises(RoostError) as caught:
        await stores.tweets.restore(1, 7, event("tweet.restored", 1))
    assert code_of(caught) is grpc.StatusCode.FAILED_PRECONDITION
    assert await stores.tweets.restore(1, 8, event("tweet.restored", 1))
    assert not await stores.tweets.restore(1, 8, event("tweet.restored", 1))
    assert (await stores.tweets.batch_get([1])).cores[0] == make_core(1, 1)
    assert await opened.ids_of(1) == [1]
    assert await stores.lists.batch_count([1]) == {1: 1}
    assert [topic for topic, _ in await opened.topics()] == ["tweet.created", "tweet.deleted", "tweet.restored"]


async def test_restore_deleted_tweet_changes_nothing(opened: Opened) -> None:
    await opened.post(1)
    await opened.stores.tweets.remove(1, 7, NOW_S, event("tweet.deleted", 1))
    assert not await opened.delete(1)
    assert not await opened.stores.tweets.restore(1, 7, event("tweet.restored", 1))
    assert (await opened.stores.tweets.batch_get([1])).cores[0].head.deleted
    assert await opened.stores.lists.batch_count([1]) == {}


async def test_purge_removes_tweets_deleted_before_bound(opened: Opened) -> None:
    for tweet_id in range(1, 7):
        await opened.post(tweet_id)
    for tweet_id, at_s in ((1, 30), (2, 10), (3, 20), (4, 40)):
        await opened.delete(tweet_id, at_s)
    await opened.stores.tweets.remove(5, 7, 1, event("tweet.deleted", 5))
    assert await opened.stores.purge.purge(40, 2) == 2
    assert [core.head.id for core in (await opened.stores.tweets.batch_get(range(1, 7))).cores] == [1, 4, 5, 6]
    assert await opened.stores.purge.purge(40, 100) == 1
    assert await opened.stores.purge.purge(40, 100) == 0
    assert [core.head.id for core in (await opened.stores.tweets.batch_get(range(1, 7))).cores] == [4, 5, 6]
    assert await opened.stores.lists.batch_count([1]) == {1: 1}


async def test_create_repeated_key_creates_one_tweet(opened: Opened) -> None:
    assert await opened.post(1, claim=claim()) == 1
    assert await opened.post(2, claim=claim()) == 1
    assert await opened.post(3, author_id=2, claim=claim()) == 3, "keys belong to users"
    assert await opened.post(4, claim=claim("other")) == 4
    assert await opened.ids_of(1) == [4, 1]
    assert await opened.topics() == [("tweet.created", tweet_id) for tweet_id in (1, 3, 4)]


async def test_create_key_with_another_body_is_refused(opened: Opened) -> None:
    await opened.post(1, claim=claim())
    with pytest.raises(RoostError) as caught:
        await opened.post(2, claim=claim(body=b"another"))
    assert code_of(caught) is grpc.StatusCode.ALREADY_EXISTS
    assert caught.value.reason == "IDEMPOTENCY_KEY_REUSED"
    assert await opened.ids_of(1) == [1]
    assert await opened.stores.lists.batch_count([1]) == {1: 1}


async def test_create_key_is_valid_for_ttl_across_restart(opened: Opened) -> None:
    await opened.post(1, claim=claim())
    await opened.reopen()
    assert await opened.post(2, claim=claim(now_s=NOW_S + IDEMPOTENCY_TTL_S - 1)) == 1
    assert await opened.post(3, claim=claim(body=b"another", now_s=NOW_S + IDEMPOTENCY_TTL_S)) == 3


async def test_create_concurrent_repeats_create_one_tweet(opened: Opened) -> None:
    ids = await asyncio.gather(*(opened.post(tweet_id, claim=claim()) for tweet_id in range(1, 101)))
    assert len(set(ids)) == 1
    assert await opened.ids_of(1) == [ids[0]]
    assert await opened.topics() == [("tweet.created", ids[0])]


async def test_lists_honour_bound_and_limit(opened: Opened) -> None:
    for tweet_id in range(1, 41):
        await opened.post(tweet_id, author_id=1 + tweet_id % 2)
    for _ in range(2):
        assert await opened.ids_of(1, 0, 3) == [40, 38, 36]
        assert await opened.ids_of(1, 36, 3) == [34, 32, 30]
        assert await opened.ids_of(1, 37, 3) == [36, 34, 32]
        assert await opened.ids_of(1, 4, 3) == [2]
        assert await opened.ids_of(1, 2, 3) == []
        assert list(await opened.stores.lists.list_author(2, 5, 10)) == [3, 1]
        assert list(await opened.stores.lists.list_recent(4, 10)) == [3, 2, 1]
        await opened.reopen()


@pytest.mark.parametrize("read_first", [True, False])
async def test_author_list_longer_than_cache_is_complete(opened: Opened, read_first: bool) -> None:
    if read_first:
        await opened.ids_of(1)
    # A few at a time, so that a slow machine does not exceed the time of a write.
    for first in range(1, 1_101, AT_ONCE):
        await asyncio.gather(*(opened.post(tweet_id) for tweet_id in range(first, first + AT_ONCE)))
    for before_id, count in ((0, 832), (0, 20), (900, 832), (200, 832), (1_050, 20)):
        newest = (before_id or 1_101) - 1
        assert await opened.ids_of(1, before_id, count) == list(range(newest, max(newest - count, 0), -1))


async def test_batch_list_author_ids_omits_authors_without_tweets(opened: Opened) -> None:
    await opened.post(1, author_id=10)
    await opened.post(2, author_id=20)
    for _ in range(2):
        response = await opened.stores.lists.batch_list_author_ids([10, 15, 20], 0, 5)
        assert {entry.author_id: list(entry.ids) for entry in response.authors} == {10: [1], 20: [2]}


async def test_list_author_excludes_kinds(opened: Opened) -> None:
    await opened.post(1)
    await opened.post(2, reply_to_id=1, reply_to_author_id=1)
    await opened.post(3, retweet_of_id=1, retweet_of_author_id=1)
    await opened.post(4, quote_of_id=1, quote_of_author_id=1)
    stores = opened.stores
    assert list(await stores.lists.list_author(1, 0, 10)) == [4, 3, 2, 1]
    assert list(await stores.lists.list_author(1, 0, 10, replies=False)) == [4, 3, 1]
    assert list(await stores.lists.list_author(1, 0, 10, retweets=False)) == [4, 2, 1]
    assert list(await stores.lists.list_author(1, 4, 2, replies=False, retweets=False)) == [1]


async def test_scan_returns_each_tweet_once_in_order(opened: Opened) -> None:
    for tweet_id in (5, 1, 4, 2, 3):
        await opened.post(tweet_id)
    await opened.delete(3)
    first = await opened.stores.tweets.scan(0, 3)
    rest = await opened.stores.tweets.scan(first[-1].head.id, 3)
    assert [core.head.id for core in first + rest] == [1, 2, 3, 4, 5]
    assert [core.head.id for core in first + rest if core.head.deleted] == [3]
    assert await opened.stores.tweets.scan(5, 3) == []


async def test_create_cancelled_caches_nothing_stale(opened: Opened) -> None:
    await opened.post(1)
    await opened.stores.tweets.batch_get([1])
    await opened.ids_of(1)
    for tweet_id in range(2, 40):
        task = asyncio.ensure_future(opened.post(tweet_id) if tweet_id % 2 else opened.delete(max(tweet_id - 3, 1)))
        for _ in range(tweet_id % 5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await opened.backend.wait_for_writes(opened.stores)
    await opened.post(1_000)
    known = await opened.ids_of(1)
    cores = (await opened.stores.tweets.batch_get(range(1, 40))).cores
    await opened.reopen()
    assert known == await opened.ids_of(1)
    assert list(cores) == list((await opened.stores.tweets.batch_get(range(1, 40))).cores)


async def test_concurrent_reads_and_writes_cache_nothing_stale(opened: Opened) -> None:
    async def write(author_id: int) -> None:
        for n in range(1, 25):
            tweet_id = author_id * 1_000 + n
            await opened.post(tweet_id, author_id=author_id)
            assert (await opened.ids_of(author_id))[0] == tweet_id
            if n % 3 == 0:
                await opened.delete(tweet_id)
                assert tweet_id not in await opened.ids_of(author_id)
                assert (await opened.stores.tweets.batch_get([tweet_id])).cores[0].head.deleted

    async def read(author_id: int) -> None:
        for n in range(1, 60):
            await opened.ids_of(author_id)
            await opened.stores.tweets.batch_get([author_id * 1_000 + n // 2])

    await asyncio.gather(*(work(author_id) for author_id in (1, 2, 3) for work in (write, read, read)))
    known = [await opened.ids_of(author_id) for author_id in (1, 2, 3)]
    await opened.reopen()
    assert known == [await opened.ids_of(author_id) for author_id in (1, 2, 3)]


async def test_thread_version_changes_with_reply(opened: Opened) -> None:
    stores = opened.stores
    await opened.post(1)
    await opened.post(2, reply_to_id=1, conversation_id=1)
    versions = {await stores.links.thread_version(1)}
    for tweet_id in range(3, 20):
        other = await stores.links.thread_version(2)
        await opened.post(tweet_id, reply_to_id=tweet_id - 1, conversation_id=1)
        assert await stores.links.thread_version(2) == other, "another conversation"
        versions.add(await stores.links.thread_version(1))
    assert len(versions) == 18
    await opened.post(20)
    await opened.delete(19)
    assert await stores.links.thread_version(1) in versions, "what hangs on what is as it was"


async def test_thread_reads_cached_by_version_are_never_stale(opened: Opened) -> None:
    """Concurrent readers cache by version beside a writer: none reads less than was confirmed before."""
    await opened.post(1)
    answered = checked = 0
    remembered: dict[int, int] = {}

    async def read() -> None:
        nonlocal checked
        while answered < 40:
            expected = answered
            version = await opened.stores.links.thread_version(1)
            if version in remembered:
                assert remembered[version] >= expected
                checked += 1
                await asyncio.sleep(0)
            else:
                children = await opened.stores.links.batch_list_children([1], 100)
                remembered.setdefault(version, len(children.get(1, ())))

    async def write() -> None:
        nonlocal answered
        for tweet_id in range(2, 42):
            await opened.post(tweet_id, reply_to_id=1, conversation_id=1)
            answered += 1
            await asyncio.sleep(0.001)

    async with asyncio.timeout(2 * WITHIN_S), asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(read())
        tasks.create_task(write())
    assert checked
