"""The contract of the tweet store's port for replies, quotes, retweets and edits, for every adapter."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from roost.tweet.v1 import tweet_pb2

from services.platform.ids.snowflake import wall_clock_ms
from services.platform.rpc.errors import RoostError
from services.tweet.store import Claim, Retweeter
from tests.contract.tweet.conftest import Opened, event

ANN, BOB, CAT = 1, 2, 3
# How many retweets of one user the adapters cache in a test, and how many it creates.
CACHED_RETWEETS, MANY_RETWEETS = 100, 160
# Writes at a time; each waits for those before it, and a slow machine must not exceed the time of a write.
AT_ONCE = 20
REPLY: dict[str, Any] = {"reply_to_id": 1, "reply_to_author_id": ANN}
QUOTE: dict[str, Any] = {"quote_of_id": 1, "quote_of_author_id": ANN}
RETWEET: dict[str, Any] = {"retweet_of_id": 1, "retweet_of_author_id": ANN}


async def core_of(opened: Opened, tweet_id: int, viewer_id: int = 0) -> tweet_pb2.TweetCore:
    return (await opened.stores.tweets.batch_get([tweet_id], viewer_id)).cores[0]


async def counts(opened: Opened, tweet_id: int) -> tuple[int, int, int]:
    core = await core_of(opened, tweet_id)
    return core.replies, core.retweets, core.quotes


async def remove(opened: Opened, tweet_id: int) -> None:
    assert await opened.stores.tweets.remove(tweet_id, 7, 0, event("tweet.deleted", tweet_id))


async def restore(opened: Opened, tweet_id: int) -> None:
    assert await opened.stores.tweets.restore(tweet_id, 7, event("tweet.restored", tweet_id))


@pytest.mark.parametrize("links", [REPLY, QUOTE, RETWEET, {**REPLY, **QUOTE}])
@pytest.mark.parametrize("target", ["missing", "deleted", "removed"])
async def test_create_link_to_hidden_tweet_is_not_found(opened: Opened, links: dict[str, Any], target: str) -> None:
    if target != "missing":
        await opened.post(1, ANN)
        await (opened.delete(1) if target == "deleted" else remove(opened, 1))
    with pytest.raises(RoostError) as caught:
        await opened.post(2, BOB, Claim("k", b"body", 0), **links)
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert await opened.stores.lists.batch_count([BOB]) == {}
    assert ("tweet.created", 2) not in await opened.topics()
    assert await opened.post(3, BOB, Claim("k", b"body", 0)) == 3, "the key was not used up"


async def test_counts_change_with_each_link(opened: Opened) -> None:
    await opened.post(1, ANN)
    assert await counts(opened, 1) == (0, 0, 0)
    await opened.post(2, BOB, **REPLY, **QUOTE)
    await opened.post(3, BOB, **RETWEET)
    await opened.post(4, CAT, **QUOTE)
    for _ in range(2):
        assert await counts(opened, 1) == (1, 1, 2)
        assert (await opened.stores.tweets.scan(0, 1))[0] == await core_of(opened, 1)
        await opened.reopen()
    await opened.delete(2)
    await opened.delete(2)
    assert await counts(opened, 1) == (0, 1, 1)
    await remove(opened, 4)
    assert await counts(opened, 1) == (0, 1, 0)
    await opened.delete(3)
    await restore(opened, 4)
    assert await counts(opened, 1) == (0, 0, 1)


async def test_retweet_concurrent_repeats_create_one(opened: Opened) -> None:
    await opened.post(1, ANN)
    ids = await asyncio.gather(*(opened.post(tweet_id, BOB, **RETWEET) for tweet_id in range(2, 102)))
    assert len(set(ids)) == 1
    assert await counts(opened, 1) == (0, 1, 0)
    assert await opened.ids_of(BOB) == [ids[0]]
    assert await opened.topics() == [("tweet.created", 1), ("tweet.created", ids[0])]


async def test_retweet_after_unretweet_creates_new_retweet(opened: Opened) -> None:
    await opened.post(1, ANN)
    for tweet_id in (2, 4, 6):
        assert await opened.post(tweet_id, BOB, **RETWEET) == tweet_id
        assert await opened.post(tweet_id + 1, BOB, **RETWEET) == tweet_id
        assert await opened.stores.links.find_retweets(BOB, [1, 2]) == {1: tweet_id}
        assert (await core_of(opened, 1, BOB)).retweeted
        assert not (await core_of(opened, 1, CAT)).retweeted
        assert not (await core_of(opened, 1)).retweeted
        await opened.delete(tweet_id)
        assert await opened.stores.links.find_retweets(BOB, [1]) == {}
        assert not (await core_of(opened, 1, BOB)).retweeted
        await opened.reopen()


async def test_retweet_after_removal_is_refused(opened: Opened) -> None:
    await opened.post(1, ANN)
    await opened.post(2, BOB, **RETWEET)
    await remove(opened, 2)
    with pytest.raises(RoostError) as caught:
        await opened.post(3, BOB, **RETWEET)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.PERMISSION_DENIED, "REMOVED")
    await restore(opened, 2)
    assert await opened.post(4, BOB, **RETWEET) == 2


async def test_retweets_of_hidden_original_are_not_counted(opened: Opened) -> None:
    await opened.post(1, ANN)
    await opened.post(2, BOB, **RETWEET)
    await opened.post(3, ANN, **RETWEET)
    await opened.post(4, CAT, **RETWEET)
    authors = [ANN, BOB, CAT]
    assert await opened.stores.lists.batch_count(authors) == {ANN: 2, BOB: 1, CAT: 1}
    await remove(opened, 1)
    assert await opened.stores.lists.batch_count(authors) == {}
    await opened.delete(2)
    assert await opened.stores.lists.batch_count(authors) == {}
    await restore(opened, 1)
    assert await opened.stores.lists.batch_count(authors) == {ANN: 2, CAT: 1}
    assert await counts(opened, 1) == (0, 2, 0)


async def test_purge_includes_retweets_within_limit(opened: Opened) -> None:
    await opened.post(1, ANN)
    for tweet_id in range(2, 9):
        await opened.post(tweet_id, tweet_id, **RETWEET)
        assert await opened.ids_of(tweet_id) == [tweet_id]
    await opened.post(10, BOB, **QUOTE)
    await opened.edit(1, ANN, 2, "changed")
    await opened.delete(1, 10)
    assert await opened.stores.purge.purge(10, 100) == 0
    assert await opened.stores.purge.purge(11, 3) == 3
    assert (await core_of(opened, 1)).head.deleted, "the original goes last"
    assert await opened.stores.purge.purge(11, 100) == 5
    assert [core.head.id for core in await opened.stores.tweets.scan(0, 100)] == [10]
    assert await opened.stores.tweets.list_revisions(1) == []
    for author in range(2, 9):
        assert await opened.ids_of(author) == ([10] if author == BOB else [])
        assert await opened.stores.links.find_retweets(author, [1]) == {}
    assert await opened.stores.lists.batch_count(range(1, 9)) == {BOB: 1}


async def test_link_lists_honour_bound_and_limit(opened: Opened) -> None:
    await opened.post(1, ANN)
    for n in range(4):
        await opened.post(10 + n, BOB, **REPLY)
        await opened.post(20 + n, BOB, **QUOTE)
        await opened.post(30 + n, 100 + n, **RETWEET)
    await opened.delete(11)
    stores = await opened.reopen()
    assert await stores.links.list_replies(1, 0, 2) == [13, 12]
    assert await stores.links.list_replies(1, 12, 2) == [10]
    assert await stores.links.list_replies(1, 0, 2, oldest_first=True) == [10, 12]
    assert await stores.links.list_replies(1, 12, 2, oldest_first=True) == [13]
    assert await stores.links.list_quotes(1, 23, 2) == [22, 21]
    assert await stores.links.list_retweeters(1, 0, 2) == [Retweeter(33, 103), Retweeter(32, 102)]
    assert await stores.links.list_retweeters(1, 31, 2) == [Retweeter(30, 100)]
    assert await stores.links.batch_list_children([1, 10, 404], 3) == {1: [10, 11, 12]}, "hidden ones leave tombstones"
    assert await stores.links.batch_list_children([1], 3, after_id=11) == {1: [12, 13]}


async def test_list_ancestors_ends_at_first_tweet(opened: Opened) -> None:
    await opened.post(1, ANN)
    for tweet_id in range(2, 8):
        await opened.post(tweet_id, BOB, reply_to_id=tweet_id - 1, reply_to_author_id=BOB)
    assert await opened.stores.links.list_ancestors(7, 100) == [6, 5, 4, 3, 2, 1]
    assert await opened.stores.links.list_ancestors(7, 2) == [6, 5]
    assert await opened.stores.links.list_ancestors(1, 2) == await opened.stores.links.list_ancestors(404, 2) == []
    await opened.delete(3, 0)
    assert await opened.stores.purge.purge(1, 10) == 1
    assert await opened.stores.links.list_ancestors(7, 100) == [6, 5, 4, 3]


async def test_revise_requires_next_version(opened: Opened) -> None:
    await opened.post(1, ANN, text="one")
    assert not await opened.edit(1, ANN, 1, "again")
    assert not await opened.edit(1, ANN, 3, "too far")
    assert await opened.edit(1, ANN, 2, "two")
    assert not await opened.edit(1, ANN, 2, "another two")
    assert await opened.edit(1, ANN, 3, "three")
    for _ in range(2):
        found = await opened.stores.tweets.list_revisions(1)
        assert [(r.version, r.text, r.created_at.ToSeconds()) for r in found][1:] == [(2, "two", 2), (3, "three", 3)]
        assert (found[0].version, found[0].text) == (1, "one")
        assert tweet_pb2.Tweet.FromString((await core_of(opened, 1)).core).text == "three"
        await opened.reopen()
    await opened.delete(1)
    assert not await opened.edit(1, ANN, 4, "four")
    assert len(await opened.stores.tweets.list_revisions(1)) == 3
    assert await opened.stores.tweets.list_revisions(404) == []
    assert [topic for topic, _ in await opened.topics()] == ["tweet.created", *["tweet.edited"] * 2, "tweet.deleted"]


async def test_revise_concurrent_edits_store_one(opened: Opened) -> None:
    await opened.post(1, ANN)
    changed = await asyncio.gather(*(opened.edit(1, ANN, 2, f"text {n}") for n in range(50)))
    assert changed.count(True) == 1
    (_, second) = await opened.stores.tweets.list_revisions(1)
    assert second.text == f"text {changed.index(True)}"


async def test_revise_keeps_counts_and_order(opened: Opened) -> None:
    await opened.post(1, ANN)
    await opened.post(2, ANN)
    await opened.post(3, BOB, **REPLY)
    await opened.edit(1, ANN, 2, "changed")
    assert await counts(opened, 1) == (1, 0, 0)
    assert await opened.ids_of(ANN) == [2, 1]
    assert await opened.stores.lists.batch_count([ANN]) == {ANN: 2}


async def test_find_claimed_returns_tweet_of_key(opened: Opened) -> None:
    claim = Claim("k", b"body", 0)
    assert await opened.stores.tweets.find_claimed(ANN, claim) == 0
    await opened.post(1, ANN, claim)
    assert await opened.stores.tweets.find_claimed(ANN, claim) == 1
    assert await opened.stores.tweets.find_claimed(BOB, claim) == 0
    with pytest.raises(RoostError) as caught:
        await opened.stores.tweets.find_claimed(ANN, Claim("k", b"another", 0))
    assert caught.value.reason == "IDEMPOTENCY_KEY_REUSED"


@pytest.mark.slow
async def test_find_retweets_beyond_cache_bound_is_complete(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cassandra.links", "sqlite.cached_reads"):
        monkeypatch.setattr(f"services.tweet.store.{module}.CACHED_RETWEETS", CACHED_RETWEETS)
    count = MANY_RETWEETS
    lots = [range(first, min(first + AT_ONCE, count + 1)) for first in range(1, count + 1, AT_ONCE)]
    for lot in lots:
        await asyncio.gather(*(opened.post(n, ANN) for n in lot))
    assert await opened.stores.links.find_retweets(BOB, [1]) == {}
    for lot in lots:
        await asyncio.gather(*(opened.post(10_000 + n, BOB, retweet_of_id=n, retweet_of_author_id=ANN) for n in lot))
    wanted = {n: 10_000 + n for n in (1, 50, 101, count)}
    for _ in range(2):
        assert await opened.stores.links.find_retweets(BOB, [*wanted, 99_999]) == wanted
        await opened.reopen()
    await opened.delete(10_050)
    del wanted[50]
    assert await opened.stores.links.find_retweets(BOB, [*wanted, 50]) == wanted


async def test_retweet_cancelled_caches_nothing_stale(opened: Opened) -> None:
    await opened.post(1, ANN)
    await core_of(opened, 1, BOB)
    live_retweets = 0
    for tweet_id in range(2, 60):
        work = opened.post(tweet_id, BOB, **RETWEET) if tweet_id % 2 else opened.delete(live_retweets or 1_000)
        task = asyncio.ensure_future(work)
        for _ in range(tweet_id % 5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        live_retweets = (await opened.stores.links.find_retweets(BOB, [1])).get(1, 0)
        await core_of(opened, 1, BOB)
    await opened.backend.wait_for_writes(opened.stores)
    await opened.post(1_000, CAT)
    known = (await core_of(opened, 1, BOB), await opened.stores.links.find_retweets(BOB, [1]))
    await opened.reopen()
    assert known == (await core_of(opened, 1, BOB), await opened.stores.links.find_retweets(BOB, [1]))


async def test_set_absent_excludes_links_until_undone(opened: Opened) -> None:
    await opened.post(1, ANN)
    for tweet_id, author_id, links in ((2, BOB, REPLY), (3, BOB, QUOTE), (4, BOB, RETWEET), (5, CAT, REPLY)):
        await opened.post(tweet_id, author_id, **links)
    at_us = wall_clock_ms() * 1000
    assert await counts(opened, 1) == (2, 1, 1)
    for _ in range(2):
        await opened.stores.tweets.set_absent(BOB, True, at_us)
        assert await counts(opened, 1) == (1, 0, 0)
    assert list(await opened.stores.links.list_replies(1, 0, 10)) == [5, 2]
    await opened.stores.tweets.set_absent(BOB, False, at_us - 1)
    assert await counts(opened, 1) == (1, 0, 0)
    for _ in range(2):
        await opened.stores.tweets.set_absent(BOB, False, at_us + 1)
        assert await counts(opened, 1) == (2, 1, 1)
    await opened.stores.tweets.set_absent(BOB, True, at_us)
    assert await counts(opened, 1) == (2, 1, 1)


async def test_links_changed_while_author_absent_count_correctly_afterwards(opened: Opened) -> None:
    await opened.post(1, ANN)
    for tweet_id in (2, 3, 4, 5):
        await opened.post(tweet_id, BOB, **REPLY)
    await remove(opened, 5)
    at_us = wall_clock_ms() * 1000
    await opened.stores.tweets.set_absent(BOB, True, at_us)
    assert await counts(opened, 1) == (0, 0, 0)
    await opened.delete(2)
    await remove(opened, 3)
    assert await counts(opened, 1) == (0, 0, 0)
    await restore(opened, 3)
    assert await counts(opened, 1) == (0, 0, 0)
    assert await opened.stores.purge.purge(1, 10) == 1
    await opened.stores.tweets.set_absent(BOB, False, at_us + 1)
    # 3 and 4 are live; 5 was removed before and is restored now.
    assert await counts(opened, 1) == (2, 0, 0)
    await restore(opened, 5)
    assert await counts(opened, 1) == (3, 0, 0)
