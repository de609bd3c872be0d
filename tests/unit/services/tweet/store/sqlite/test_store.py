"""The caches of the embedded store under concurrent reads: a result that is older than a write may be returned once but
is never cached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from roost.tweet.v1 import tweet_pb2

from services.platform.events.log import Record
from services.platform.sqlite.database import Database
from services.platform.versions import MemoryVersions
from services.tweet.store.sqlite.schema import INSERT, MIGRATIONS
from services.tweet.store.sqlite.stores import SqliteTweetStores, open_stores, stores_on


class HeldReads:
    """A database whose reads take their snapshot and then wait for `let_go`."""

    def __init__(self, db: Any) -> None:
        self._db = db
        self.read_done = asyncio.Event()
        self.let_go = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    async def read(self, unit: Any) -> Any:
        rows = await self._db.read(unit)
        self.read_done.set()
        await self.let_go.wait()
        return rows


async def post(stores: SqliteTweetStores, tweet_id: int) -> None:
    core = tweet_pb2.TweetCore(head=tweet_pb2.TweetHead(id=tweet_id, author_id=1), core=b"\x08\x01")
    await stores.tweets.create(core, tweet_id, Record("tweet.created", 1, tweet_id, b""), None)


async def retweet(stores: SqliteTweetStores, tweet_id: int) -> None:
    """Retweets tweet 1 as user 2."""
    head = tweet_pb2.TweetHead(id=tweet_id, author_id=2, retweet_of_id=1, retweet_of_author_id=1)
    core = tweet_pb2.TweetCore(head=head, core=b"\x08\x02")
    await stores.tweets.create(core, tweet_id, Record("tweet.created", 2, tweet_id, b""), None)


@pytest.fixture
async def cold(tmp_path: Path) -> AsyncIterator[tuple[SqliteTweetStores, HeldReads]]:
    """A store with one tweet and empty caches, and its held reads."""
    first = await open_stores(tmp_path / "tweet.db", MemoryVersions())
    await post(first, 1)
    await first.close()
    held = HeldReads((await open_stores(tmp_path / "tweet.db", MemoryVersions())).db)
    stores = stores_on(held, MemoryVersions())  # type: ignore[arg-type]
    yield stores, held
    await stores.close()


async def test_batch_get_overtaken_by_delete_is_not_cached(cold: tuple[SqliteTweetStores, HeldReads]) -> None:
    stores, held = cold
    reading = asyncio.ensure_future(stores.tweets.batch_get([1]))
    await held.read_done.wait()
    await stores.tweets.delete(1, 0, Record("tweet.deleted", 1, 1, b""))
    held.let_go.set()
    await reading
    assert (await stores.tweets.batch_get([1])).cores[0].head.deleted


async def test_author_list_overtaken_by_post_is_not_cached(cold: tuple[SqliteTweetStores, HeldReads]) -> None:
    stores, held = cold
    reading = asyncio.ensure_future(stores.lists.batch_list_author_ids([1], 0, 10))
    await held.read_done.wait()
    await post(stores, 2)
    held.let_go.set()
    await reading
    assert list((await stores.lists.batch_list_author_ids([1], 0, 10)).authors[0].ids) == [2, 1]


async def test_undisturbed_reads_are_cached(cold: tuple[SqliteTweetStores, HeldReads]) -> None:
    stores, held = cold
    held.let_go.set()
    await stores.tweets.batch_get([1])
    await stores.lists.batch_list_author_ids([1], 0, 10)
    held.let_go.clear()
    async with asyncio.timeout(30):
        assert (await stores.tweets.batch_get([1])).cores
        assert (await stores.lists.batch_list_author_ids([1], 0, 10)).authors


async def test_find_retweets_overtaken_by_retweet_is_not_cached(cold: tuple[SqliteTweetStores, HeldReads]) -> None:
    stores, held = cold
    reading = asyncio.ensure_future(stores.links.find_retweets(2, [1]))
    await held.read_done.wait()
    await retweet(stores, 2)
    held.let_go.set()
    assert await reading == {}
    assert await stores.links.find_retweets(2, [1]) == {1: 2}


async def test_counts_overtaken_by_retweet_are_not_cached(cold: tuple[SqliteTweetStores, HeldReads]) -> None:
    stores, held = cold
    reading = asyncio.ensure_future(stores.tweets.batch_get([1]))
    await held.read_done.wait()
    await retweet(stores, 2)
    held.let_go.set()
    assert (await reading).cores[0].retweets == 0
    assert (await stores.tweets.batch_get([1])).cores[0].retweets == 1


async def test_open_file_of_older_schema_migrates(tmp_path: Path) -> None:
    db = await Database.open(tmp_path / "tweet.db", MIGRATIONS[:2])
    values = (1, 1, b"\x08\x01", 1, *[0] * 6)
    await db.write(lambda c: c.execute(INSERT, values) and None)
    await db.close()
    stores = await open_stores(tmp_path / "tweet.db", MemoryVersions())
    await retweet(stores, 2)
    assert (await stores.tweets.batch_get([1])).cores[0].retweets == 1
    assert [user for _, user in await stores.links.list_retweeters(1, 0, 10)] == [2]
    assert len(await stores.tweets.list_revisions(1)) == 1
    await stores.close()
