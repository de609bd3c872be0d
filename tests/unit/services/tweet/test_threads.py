"""Threads compared with a plain recursive model, and the correctness of their cache."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.tweet.v1 import reply_service_pb2 as rpc
from roost.tweet.v1 import tweet_pb2

from services.platform.pagination.cursors import Cursors
from services.platform.rpc.errors import RoostError
from services.shared.hydration.cache import HydratedTweet
from services.shared.tweet_access import no_such_tweet
from services.tweet import threads
from services.tweet.threads import Threads

ROOT = 1
# Id, depth, is a tombstone.
Line = tuple[int, int, bool]


@dataclass
class Forest:
    """A fake of store, lists and hydrator. `parents` maps each tweet to the one it replies to (0: none)."""

    parents: dict[int, int] = field(default_factory=lambda: {ROOT: 0})
    hidden: set[int] = field(default_factory=set)
    # Original by retweet.
    originals: dict[int, int] = field(default_factory=dict)
    reads: int = 0
    longest: int = 0
    wait: asyncio.Event | None = None

    def reply(self, parent_id: int) -> int:
        tweet_id = max(self.parents) + 1
        self.parents[tweet_id] = parent_id
        return tweet_id

    def chain(self, length: int) -> list[int]:
        """Adds `length` replies, each to the one before, starting at ROOT. Returns the ids from ROOT on."""
        found = [ROOT]
        for _ in range(length):
            found.append(self.reply(found[-1]))
        return found

    def children(self, tweet_id: int) -> list[int]:
        return sorted(i for i, parent in self.parents.items() if parent == tweet_id)

    def above(self, tweet_id: int) -> list[int]:
        found = []
        while parent := self.parents.get(tweet_id, 0):
            found.append(parent)
            tweet_id = parent
        return found

    # The methods that Threads calls.

    async def original(self, tweet_id: int) -> tweet_pb2.TweetCore:
        tweet_id = self.originals.get(tweet_id, tweet_id)
        if tweet_id not in self.parents or tweet_id in self.hidden:
            raise no_such_tweet()
        root = [tweet_id, *self.above(tweet_id)][-1]
        tweet = tweet_pb2.Tweet(id=tweet_id, conversation_id=root)
        return tweet_pb2.TweetCore(head=tweet_pb2.TweetHead(id=tweet_id), core=tweet.SerializeToString())

    async def thread_version(self, conversation_id: int) -> int:
        return len(self.parents)

    async def list_ancestors(self, tweet_id: int, limit: int) -> Sequence[int]:
        return self.above(tweet_id)[:limit]

    async def batch_list_children(
        self, tweet_ids: Sequence[int], per_tweet: int, *, after_id: int = 0
    ) -> Mapping[int, Sequence[int]]:
        self.reads += 1
        self.longest = max(self.longest, len(tweet_ids))
        found = {i: [child for child in self.children(i) if child > after_id][:per_tweet] for i in tweet_ids}
        if self.wait is not None:
            await self.wait.wait()
        return {i: ids for i, ids in found.items() if ids}

    async def visible(self, reader_id: int, ids: Sequence[int], limit: int) -> list[HydratedTweet]:
        assert limit >= len(ids)
        shown = [i for i in ids if i in self.parents and i not in self.hidden]
        return [
            HydratedTweet(i, 1, tweet_pb2.Tweet(id=i, reply_to_id=self.parents[i]).SerializeToString()) for i in shown
        ]

    # The expected result.

    def model(self, tweet_id: int, max_depth: int, max_breadth: int) -> list[Line]:
        ancestors = self.above(tweet_id)[::-1]
        lines = [(i, depth, i in self.hidden) for depth, i in enumerate(ancestors)]

        def walk(node: int, below: int) -> None:
            lines.append((node, len(ancestors) + below, node in self.hidden))
            if below < max_depth:
                children = self.children(node)
                for child in children if not below else children[:max_breadth]:
                    walk(child, below + 1)

        walk(tweet_id, 0)
        return lines


@dataclass
class Reader:
    """Reads threads of a forest page by page."""

    forest: Any

    def __post_init__(self) -> None:
        self.threads = Threads(self.forest, self.forest, self.forest, Cursors(b"k" * 32))

    async def page(self, tweet_id: int = ROOT, **fields: Any) -> tweet_pb2.SerializedThread:
        return await self.threads.page(rpc.GetThreadRequest(tweet_id=tweet_id, **fields))

    async def whole(self, tweet_id: int = ROOT, page_size: int = 20) -> list[list[Line]]:
        pages: list[list[Line]] = []
        cursor = ""
        while not pages or cursor:
            page = await self.page(tweet_id, page_size=page_size, cursor=cursor)
            pages.append(lines_of(page, self.forest))
            cursor = page.next_cursor
        return pages


def lines_of(page: tweet_pb2.SerializedThread, forest: Forest) -> list[Line]:
    tweets = [tweet_pb2.Tweet.FromString(data) for data in page.tweets]
    assert [tweet.reply_to_id for tweet in tweets] == [forest.parents.get(tweet.id, 0) for tweet in tweets]
    return [(tweet.id, depth, tweet.deleted) for tweet, depth in zip(tweets, page.depths, strict=True)]


@st.composite
def forests(draw: st.DrawFn) -> Forest:
    forest = Forest()
    # Half of the replies go to the newest tweet, which makes deep threads; the others make broad ones.
    for _ in range(draw(st.integers(0, 24))):
        forest.reply(draw(st.one_of(st.sampled_from(sorted(forest.parents)), st.just(max(forest.parents)))))
    forest.hidden = draw(st.sets(st.sampled_from(sorted(forest.parents)), max_size=4))
    return forest


@given(forests(), st.data(), st.integers(1, 30), st.integers(1, 5), st.integers(1, 4))
def test_thread_pages_equal_recursive_model(
    forest: Forest, data: st.DataObject, page_size: int, max_depth: int, max_breadth: int
) -> None:
    tweet_id = data.draw(st.sampled_from(sorted(forest.parents)))
    forest.hidden.discard(tweet_id)
    with patch.multiple(threads, MAX_DEPTH=max_depth, MAX_BREADTH=max_breadth):
        pages = asyncio.run(Reader(forest).whole(tweet_id, page_size))
    assert [line for page in pages for line in page] == forest.model(tweet_id, max_depth, max_breadth)
    ancestors = len(forest.above(tweet_id)) + 1
    first, *others = pages
    assert len(first) <= max(page_size, ancestors)
    for page in others:
        assert 1 <= len(page) <= page_size
    for page in others[:-1]:
        assert len(page) == page_size


async def test_thread_long_ancestor_chain_omits_middle() -> None:
    forest = Forest()
    chain = forest.chain(threads.MAX_SHOWN_ANCESTORS + 20)
    for tweet_id in chain[threads.MAX_SHOWN_ANCESTORS - 2 : threads.MAX_SHOWN_ANCESTORS + 2]:
        (lines, *_) = await Reader(forest).whole(tweet_id, 100)
        depth = chain.index(tweet_id)
        ancestors = [(i, n, False) for n, i in enumerate(chain[: depth + 1])]
        shown = (
            ancestors
            if len(ancestors) <= threads.MAX_SHOWN_ANCESTORS
            else [ancestors[0], *ancestors[-threads.MAX_SHOWN_ANCESTORS + 1 :]]
        )
        assert lines[: len(shown)] == shown
        assert len(lines) <= threads.MAX_SHOWN_ANCESTORS


async def test_thread_beyond_max_depth_omits_replies() -> None:
    forest = Forest()
    chain = forest.chain(threads.MAX_DEPTH + 10)
    lines = [line for page in await Reader(forest).whole(ROOT, 7) for line in page]
    assert [line[0] for line in lines] == chain[: threads.MAX_DEPTH + 1]
    *_, below = await Reader(forest).whole(chain[-5], 100)
    assert below[-1] == (chain[-1], len(chain) - 1, False)


async def test_thread_reply_with_many_replies_shows_max_breadth() -> None:
    forest = Forest()
    busy_reply, neighbour = forest.reply(ROOT), forest.reply(ROOT)
    below = [forest.reply(busy_reply) for _ in range(threads.MAX_BREADTH + 5)]
    lines = [line[0] for page in await Reader(forest).whole(ROOT, 100) for line in page]
    assert lines == [ROOT, busy_reply, *below[: threads.MAX_BREADTH], neighbour]
    direct = [line[0] for page in await Reader(forest).whole(busy_reply, 100) for line in page]
    assert direct == [ROOT, busy_reply, *below], "all direct replies are shown"


async def test_thread_page_reads_are_bounded_by_page_size() -> None:
    forest = Forest()
    for _ in range(20):
        child = forest.reply(ROOT)
        for _ in range(20):
            forest.reply(forest.reply(child))
    await Reader(forest).page(page_size=10)
    assert forest.reads <= 5
    assert forest.longest <= 10


async def test_thread_is_cached_until_new_reply() -> None:
    forest = Forest()
    child = forest.reply(ROOT)
    reader = Reader(forest)
    first = await reader.page()
    reads = forest.reads
    assert await reader.page() == first
    assert forest.reads == reads, "read once"
    reply = forest.reply(child)
    assert lines_of(await reader.page(), forest)[-1] == (reply, 2, False)


async def test_thread_cached_ids_are_hydrated_at_each_read() -> None:
    forest = Forest()
    child = forest.reply(ROOT)
    leaf = forest.reply(child)
    reader = Reader(forest)
    await reader.page()
    reads = forest.reads
    forest.hidden.add(child)
    assert lines_of(await reader.page(), forest) == [(ROOT, 0, False), (child, 1, True), (leaf, 2, False)]
    forest.hidden.clear()
    assert lines_of(await reader.page(), forest)[1] == (child, 1, False)
    forest.hidden.add(ROOT)
    with pytest.raises(RoostError, match="NOT_FOUND"):
        await reader.page()
    assert forest.reads == reads


async def test_thread_concurrent_reads_are_coalesced() -> None:
    forest = Forest()
    forest.chain(3)
    await Reader(forest).page()
    alone, forest.reads = forest.reads, 0
    reader = Reader(forest)
    pages = await asyncio.gather(*(reader.page() for _ in range(50)))
    assert forest.reads == alone
    assert all(page == pages[0] for page in pages)


async def test_thread_read_after_reply_ignores_earlier_load() -> None:
    """A load that began before a reply must not serve a read that begins after it."""
    forest = Forest()
    forest.reply(ROOT)
    reader = Reader(forest)
    forest.wait = asyncio.Event()
    early = asyncio.create_task(reader.page())
    while not forest.reads:
        await asyncio.sleep(0)
    reply = forest.reply(ROOT)
    late = asyncio.create_task(reader.page())
    await asyncio.sleep(0)
    forest.wait.set()
    await early
    assert lines_of(await late, forest)[-1][0] == reply
    assert lines_of(await reader.page(), forest)[-1][0] == reply


async def test_thread_next_page_includes_new_replies_once() -> None:
    forest = Forest()
    old = [forest.reply(ROOT) for _ in range(4)]
    reader = Reader(forest)
    page = await reader.page(page_size=3)
    forest.reply(old[0])
    new = [forest.reply(old[1]), forest.reply(old[2]), forest.reply(ROOT)]
    rest = await reader.page(page_size=100, cursor=page.next_cursor)
    assert [line[0] for line in lines_of(page, forest)] == [ROOT, *old[:2]]
    assert [line[0] for line in lines_of(rest, forest)] == [new[0], old[2], new[1], old[3], new[2]]


async def test_thread_cursor_at_purged_tweet_is_refused() -> None:
    forest = Forest()
    old = forest.chain(4)
    reader = Reader(forest)
    page = await reader.page(page_size=3)
    del forest.parents[old[1]]
    forest.reply(ROOT)
    with pytest.raises(RoostError, match="INVALID_ARGUMENT"):
        await reader.page(page_size=3, cursor=page.next_cursor)


async def test_thread_of_retweet_equals_thread_of_original() -> None:
    forest = Forest()
    forest.originals[99] = forest.reply(ROOT)
    assert await Reader(forest).page(99) == await Reader(forest).page(forest.originals[99])


async def test_thread_cursor_of_another_thread_is_refused() -> None:
    forest = Forest()
    chain = forest.chain(5)
    reader = Reader(forest)
    cursor = (await reader.page(page_size=2)).next_cursor
    for stolen in (cursor[:-1], "x"):
        with pytest.raises(RoostError, match="INVALID_ARGUMENT"):
            await reader.page(cursor=stolen)
    with pytest.raises(RoostError, match="INVALID_ARGUMENT"):
        await reader.page(chain[1], cursor=cursor)
