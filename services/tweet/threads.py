"""Builds pages of threads. A thread is a tweet with its ancestors (the tweet that it replies to, and so on) and the
replies below it, depth first.

Caches pages as ids, with the version of the conversation. A new reply changes the version. Deletions, edits and blocks
do not, because the ids are hydrated at each read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from roost.tweet.v1 import reply_service_pb2, tweet_pb2

from services.platform.caching.cache import Cache
from services.platform.pagination.cursors import Cursors
from services.platform.pagination.page_size import page_size_of
from services.platform.rpc import context as calls
from services.platform.rpc import errors
from services.shared.hydration.fragments import tombstone
from services.shared.hydration.hydrator import Hydrator
from services.tweet.pages import TweetPages
from services.tweet.store import MAX_PAGE, LinkLists

# Maximum number of levels of replies below the requested tweet. Each level needs a read of the store. Deeper replies
# are in the threads of the replies above them.
MAX_DEPTH = 100
# Maximum number of direct replies that a thread shows below each reply, oldest first. Without it a reply with thousands
# of replies would fill many pages before its next sibling. Direct replies to the requested tweet are not limited.
MAX_BREADTH = 100
# Maximum number of tweets from the first tweet of the thread down to the requested one, included: as many as the
# largest page. If there are more, the first tweet and those nearest to the requested one are shown.
MAX_SHOWN_ANCESTORS = 100
# Maximum number of ancestors read from the store, the nearest ones. If there are more, the depths are counted from the
# topmost ancestor that was read. Each ancestor needs a read.
MAX_ANCESTORS = MAX_PAGE
# Maximum number of cached pages, usually 2 KB each, at most 20 KB. Beyond it pages are evicted.
CACHED_PAGES = 2_048
# Seconds for which a page is cached. The version in its key keeps the page correct; the TTL removes pages of old
# versions, and ids of purged tweets.
TTL_S = 30.0


class Node(NamedTuple):
    """A tweet of a thread. `parent_id` is the tweet that it replies to (0: it is no reply, or that tweet was purged).
    `depth` is 0 for the first tweet of the thread, 1 for its direct replies, and so on."""

    id: int
    parent_id: int
    depth: int


class ThreadPage(NamedTuple):
    """One page of a thread. `ancestors` are the tweets from the first one down to the requested one, included; on later
    pages there are none. `replies` are in depth-first order. `more` is true if another page follows."""

    ancestors: Sequence[Node]
    replies: Sequence[Node]
    more: bool


class _PageKey(NamedTuple):
    """The key of a cached page. The page begins after the tweet `after_id` of the thread: 0 is the first page,
    `tweet_id` itself begins with its first reply. `version` is the version of the conversation."""

    tweet_id: int
    after_id: int
    page_size: int
    version: int


class Threads:
    """Builds pages of threads for the call's actor."""

    def __init__(self, links: LinkLists, pages: TweetPages, hydrator: Hydrator, cursors: Cursors) -> None:
        self._links = links
        self._pages = pages
        self._hydrator = hydrator
        self._cursors = cursors
        self._page_cache: Cache[_PageKey, ThreadPage] = Cache(CACHED_PAGES, TTL_S)

    async def page(self, request: reply_service_pb2.GetThreadRequest) -> tweet_pb2.SerializedThread:
        """Returns a page of the thread of `request.tweet_id`, or of its original if it is a retweet. Tweets that the
        actor may not see are tombstones. Raises NOT_FOUND if the actor may not see the requested tweet."""
        core = await self._pages.original(request.tweet_id)
        tweet_id = core.head.id
        list_name = f"thread/{tweet_id}"
        after_id = int(self._cursors.open(request.cursor, list_name, 0)[0]) if request.cursor else 0
        version = await self._links.thread_version(tweet_pb2.Tweet.FromString(core.core).conversation_id)
        page = await self._page_cache.get_or_load(
            _PageKey(tweet_id, after_id, page_size_of(request), version), self._load
        )
        nodes = [*page.ancestors, *page.replies]
        ids = [node.id for node in nodes]
        visible = await self._hydrator.visible(calls.reader_id(), ids, len(ids))
        found = {tweet.id: tweet.data for tweet in visible}
        return tweet_pb2.SerializedThread(
            tweets=[found.get(node.id) or tombstone(node.id, node.parent_id) for node in nodes],
            depths=[node.depth for node in nodes],
            next_cursor=self._cursors.seal(list_name, 0, nodes[-1].id) if page.more else "",
        )

    async def _load(self, key: _PageKey) -> ThreadPage:
        tweet_id = key.tweet_id
        ancestor_ids = await self._links.list_ancestors(tweet_id, MAX_ANCESTORS)
        top = Node(tweet_id, ancestor_ids[0] if ancestor_ids else 0, len(ancestor_ids))
        ancestors = [] if key.after_id else _shown_ancestors(top, ancestor_ids)
        reply_limit = max(key.page_size - len(ancestors), 0)
        # Reads one reply more than the page has room for. If it exists, another page follows.
        replies = await self._replies_depth_first(top, key.after_id or tweet_id, reply_limit + 1)
        return ThreadPage(ancestors, replies[:reply_limit], len(replies) > reply_limit)

    async def _replies_depth_first(self, top: Node, after_id: int, wanted: int) -> list[Node]:
        """Returns the first `wanted` replies to `top` that follow `after_id` in depth-first order, siblings oldest
        first."""
        known = await self._resume_points(top, after_id, wanted)
        asked: set[int] = set()
        # Each iteration reads the direct replies to those tweets of the page whose replies were not read yet.
        while missing := [n for n in known if n.id not in asked and n.depth - top.depth < MAX_DEPTH]:
            asked.update(node.id for node in missing)
            children = await self._links.batch_list_children([node.id for node in missing], MAX_BREADTH)
            if not children:
                break
            deeper = {node.id: _children(node, children) for node in missing}
            known = [n for node in known for n in (node, *deeper.get(node.id, ()))][:wanted]
        return known

    async def _resume_points(self, top: Node, after_id: int, wanted: int) -> list[Node]:
        """Returns the tweets that follow `after_id`, in depth-first order, without the replies below them: the direct
        replies to `after_id`, its later siblings, the later siblings of its parent, and so on up to the direct replies
        to `top`. Raises INVALID_ARGUMENT if `after_id` is no longer below `top`, because a tweet between them was
        purged."""
        path: Sequence[int] = ()
        if after_id != top.id:
            ancestor_ids = await self._links.list_ancestors(after_id, MAX_DEPTH)
            if top.id not in ancestor_ids:
                raise errors.invalid_argument(
                    "the tweet after which this page begins no longer exists: request the thread again without a cursor",
                    field="cursor",
                )
            path = (after_id, *ancestor_ids[: ancestor_ids.index(top.id)])
        pending: list[Node] = []
        # Replies to a tweet at MAX_DEPTH are not shown.
        nested = path if len(path) < MAX_DEPTH else path[1:]
        children = await self._links.batch_list_children(nested, MAX_BREADTH) if nested else {}
        done = 0
        for height, tweet_id in enumerate(path):
            depth = top.depth + len(path) - height + 1
            pending += [Node(i, tweet_id, depth) for i in children.get(tweet_id, ()) if i > done]
            done = tweet_id
        direct_replies = await self._links.batch_list_children([top.id], wanted, after_id=done)
        return (pending + _children(top, direct_replies))[:wanted]


def _shown_ancestors(top: Node, ancestor_ids: Sequence[int]) -> list[Node]:
    """Returns the tweets from the first one of the thread down to `top`, included. `ancestor_ids` are the ancestors of
    `top`, nearest first. If the result would have more than MAX_SHOWN_ANCESTORS tweets, leaves out those after the
    first."""
    parents = (*ancestor_ids, 0)[1:]
    ancestors = [
        Node(i, parent, top.depth - n) for n, (i, parent) in enumerate(zip(ancestor_ids, parents, strict=True), 1)
    ]
    if len(ancestors) >= MAX_SHOWN_ANCESTORS:
        ancestors[MAX_SHOWN_ANCESTORS - 2 : -1] = []
    return [*reversed(ancestors), top]


def _children(node: Node, children: Mapping[int, Sequence[int]]) -> list[Node]:
    return [Node(i, node.id, node.depth + 1) for i in children.get(node.id, ())]
