"""Threads: the way down to a tweet, and what answers it, depth first.

What hangs on what is remembered for a while, by the version of the conversation: ids only, so that what a delete, an
edit or a block changes is asked anew at every read, and a new reply makes a new version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from roost.tweet.v1 import reply_service_pb2, tweet_pb2

from services.platform.caching.cache import Cache
from services.platform.pagination.cursors import Cursors
from services.platform.rpc import context as calls
from services.platform.rpc import errors
from services.shared.hydration.fragments import tombstone
from services.shared.hydration.hydrator import Hydrator
from services.tweet.pages import TweetPages, page_size_of
from services.tweet.store import MAX_PAGE, TweetStore

# Replies to replies to … below the tweet asked for: a page never needs more rounds. Those further down have a thread of
# their own.
MAX_DEPTH = 100
# Replies shown of each reply below the tweet asked for, the oldest: one that drew thousands must not bury its
# neighbours. All direct replies to the tweet asked for are shown.
MAX_BREADTH = 100
# Tweets of the way down: as many as a page may hold. Of a longer one the first and the nearest are shown.
MAX_WAY = 100
# Above so many, depths count from the uppermost of them: nobody reads there, and walking further would cost.
MAX_ANCESTORS = MAX_PAGE
# Mostly 2 KB each, 20 KB at most.
CACHED_PARTS = 2_048
# Versions make it right; this ends what nobody reads any more, and what was purged.
TTL_S = 30.0


class Node(NamedTuple):
    """A tweet of a thread, the one that it answers (0: none, or purged), and how many replies lead to it from the
    thread's first tweet."""

    id: int
    parent_id: int
    depth: int


class ThreadPage(NamedTuple):
    """What one page shows: the way down to the tweet, itself included, where it is the first page; the replies; and
    whether more follow."""

    way: Sequence[Node]
    replies: Sequence[Node]
    more: bool


class _PageKey(NamedTuple):
    """A page: what stands behind `after_id` (the tweet itself: its first reply; 0: the first page), in this version."""

    tweet_id: int
    after_id: int
    page_size: int
    version: int


class Threads:
    """Pages of threads for the caller."""

    def __init__(self, store: TweetStore, lists: TweetPages, hydrator: Hydrator, cursors: Cursors) -> None:
        self._store = store
        self._lists = lists
        self._hydrator = hydrator
        self._cursors = cursors
        self._parts: Cache[_PageKey, ThreadPage] = Cache(CACHED_PARTS, TTL_S)

    async def page(self, request: reply_service_pb2.GetThreadRequest) -> tweet_pb2.JoinedThread:
        """One page of the thread of `request.tweet_id`, or of what it retweets. What may not be seen is a tombstone;
        NOT_FOUND where that is the tweet itself."""
        core = await self._lists.original(request.tweet_id)
        tweet_id = core.head.id
        list_name = f"thread/{tweet_id}"
        after_id = int(self._cursors.open(request.cursor, list_name, 0)[0]) if request.cursor else 0
        version = await self._store.thread_version(tweet_pb2.Tweet.FromString(core.core).conversation_id)
        part = await self._parts.get_or_load(_PageKey(tweet_id, after_id, page_size_of(request), version), self._load)
        nodes = [*part.way, *part.replies]
        ids = [node.id for node in nodes]
        found = {tweet.id: tweet.data for tweet in await self._hydrator.visible(calls.reader_id(), ids, limit=len(ids))}
        return tweet_pb2.JoinedThread(
            tweets=[found.get(node.id) or tombstone(node.id, node.parent_id) for node in nodes],
            depths=[node.depth for node in nodes],
            next_cursor=self._cursors.seal(list_name, 0, nodes[-1].id) if part.more else "",
        )

    async def _load(self, place: _PageKey) -> ThreadPage:
        tweet_id = place.tweet_id
        above = await self._store.list_ancestors(tweet_id, MAX_ANCESTORS)
        top = Node(tweet_id, above[0] if above else 0, len(above))
        way = [] if place.after_id else _way(top, above)
        room = max(place.page_size - len(way), 0)
        # One more than there is room for tells whether the thread goes on.
        replies = await self._descend(top, place.after_id or tweet_id, room + 1)
        return ThreadPage(way, replies[:room], len(replies) > room)

    async def _descend(self, top: Node, after_id: int, wanted: int) -> list[Node]:
        """The first `wanted` replies behind `after_id`, depth first, the oldest of each tweet first."""
        known = await self._pending(top, after_id, wanted)
        asked: set[int] = set()
        # Each round goes one level deeper, but never for what is beyond the page already.
        while missing := [n for n in known if n.id not in asked and n.depth - top.depth < MAX_DEPTH]:
            asked.update(node.id for node in missing)
            children = await self._store.batch_list_children([node.id for node in missing], MAX_BREADTH)
            if not children:
                break
            deeper = {node.id: _children(node, children) for node in missing}
            known = [n for node in known for n in (node, *deeper.get(node.id, ()))][:wanted]
        return known

    async def _pending(self, top: Node, after_id: int, wanted: int) -> list[Node]:
        """Where to go on behind `after_id`: below it, then beside it, then beside what it answers, and so on up."""
        path: Sequence[int] = ()
        if after_id != top.id:
            above = await self._store.list_ancestors(after_id, MAX_DEPTH)
            if top.id not in above:
                raise errors.invalid_argument("this page is gone: start again without a cursor", field="cursor")
            path = (after_id, *above[: above.index(top.id)])
        pending: list[Node] = []
        # The lowest of them has no children here if it lies at the greatest depth.
        nested = path if len(path) < MAX_DEPTH else path[1:]
        children = await self._store.batch_list_children(nested, MAX_BREADTH) if nested else {}
        done = 0
        for height, tweet_id in enumerate(path):
            depth = top.depth + len(path) - height + 1
            pending += [Node(i, tweet_id, depth) for i in children.get(tweet_id, ()) if i > done]
            done = tweet_id
        direct = await self._store.batch_list_children([top.id], wanted, after_id=done)
        return (pending + _children(top, direct))[:wanted]


def _way(top: Node, above: Sequence[int]) -> list[Node]:
    """From the first tweet down to this one; `above` is nearest first."""
    parents = (*above, 0)[1:]
    way = [Node(i, parent, top.depth - n) for n, (i, parent) in enumerate(zip(above, parents, strict=True), 1)]
    if len(way) >= MAX_WAY:
        way[MAX_WAY - 2 : -1] = []
    return [*reversed(way), top]


def _children(node: Node, children: Mapping[int, Sequence[int]]) -> list[Node]:
    return [Node(i, node.id, node.depth + 1) for i in children.get(node.id, ())]
