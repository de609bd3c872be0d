"""Threads: the ancestors of a tweet, and the replies below it, depth first.

Caches the reply tree (ids only) by the version of its conversation. Each new reply makes a new version. Deletes, edits
and blocks need none, because every read hydrates the ids anew.
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

# Levels of replies shown below the requested tweet, which bounds the number of reads of a page. Deeper replies are
# shown by the thread of one of their ancestors.
MAX_DEPTH = 100
# Replies shown below each reply, oldest first, so that a reply with thousands of replies does not displace its siblings
# from the page. The direct replies to the requested tweet are not limited.
MAX_BREADTH = 100
# Nodes shown above and including the requested tweet, as many as a page may hold. Of a longer chain the first tweet and
# the nearest ones are shown.
MAX_SHOWN_ANCESTORS = 100
# Ancestors read from the store. Depths are counted from the topmost of them. Reading more would cost time, and no
# reader scrolls that far.
MAX_ANCESTORS = MAX_PAGE
# Thread pages in the cache, usually 2 KB each, at most 20 KB.
CACHED_PAGES = 2_048
# The version in the key keeps entries correct. The TTL drops entries that nobody reads and ids that were purged.
TTL_S = 30.0


class Node(NamedTuple):
    """A tweet of a thread. `parent_id` is the tweet that it replies to (0: none, or purged); `depth` is the number of
    replies between it and the first tweet of the thread."""

    id: int
    parent_id: int
    depth: int


class ThreadPage(NamedTuple):
    """One page of a thread. `ancestors` leads from the first tweet down to the requested one, included, and is empty on
    later pages; `replies` follow depth first; `more` is True if another page follows."""

    ancestors: Sequence[Node]
    replies: Sequence[Node]
    more: bool


class _PageKey(NamedTuple):
    """The key of a cached page: the page of the tweet's thread after `after_id` (0: the first page; the tweet's own id:
    from its first reply on) at this version of the conversation."""

    tweet_id: int
    after_id: int
    page_size: int
    version: int


class Threads:
    """Pages of threads for the caller."""

    def __init__(self, links: LinkLists, pages: TweetPages, hydrator: Hydrator, cursors: Cursors) -> None:
        self._links = links
        self._pages = pages
        self._hydrator = hydrator
        self._cursors = cursors
        self._page_cache: Cache[_PageKey, ThreadPage] = Cache(CACHED_PAGES, TTL_S)

    async def page(self, request: reply_service_pb2.GetThreadRequest) -> tweet_pb2.SerializedThread:
        """Returns a page of the thread of `request.tweet_id`, or of its original if it is a retweet. Tweets that the
        caller may not see are tombstones. Raises NOT_FOUND if the caller may not see the requested tweet."""
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
        found = {tweet.id: tweet.data for tweet in visible.tweets}
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
        # Reads one reply more than the page holds, which shows whether another page follows.
        replies = await self._replies_depth_first(top, key.after_id or tweet_id, reply_limit + 1)
        return ThreadPage(ancestors, replies[:reply_limit], len(replies) > reply_limit)

    async def _replies_depth_first(self, top: Node, after_id: int, wanted: int) -> list[Node]:
        """Returns the first `wanted` replies after `after_id`, depth first, siblings oldest first."""
        known = await self._resume_points(top, after_id, wanted)
        asked: set[int] = set()
        # Each iteration loads one more level, and only the children of nodes that are on the page.
        while missing := [n for n in known if n.id not in asked and n.depth - top.depth < MAX_DEPTH]:
            asked.update(node.id for node in missing)
            children = await self._links.batch_list_children([node.id for node in missing], MAX_BREADTH)
            if not children:
                break
            deeper = {node.id: _children(node, children) for node in missing}
            known = [n for node in known for n in (node, *deeper.get(node.id, ()))][:wanted]
        return known

    async def _resume_points(self, top: Node, after_id: int, wanted: int) -> list[Node]:
        """Returns the nodes at which the walk continues after `after_id`, in page order: its own children, then its
        later siblings, then those of each ancestor up to `top`. Raises INVALID_ARGUMENT if `after_id` is no longer
        below `top`."""
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
        # A node at MAX_DEPTH has no shown children.
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
    """Returns the nodes from the first tweet down to `top`; `ancestor_ids` is nearest first. If there are more than
    MAX_SHOWN_ANCESTORS, returns the first tweet and the ones nearest to `top`."""
    parents = (*ancestor_ids, 0)[1:]
    ancestors = [
        Node(i, parent, top.depth - n) for n, (i, parent) in enumerate(zip(ancestor_ids, parents, strict=True), 1)
    ]
    if len(ancestors) >= MAX_SHOWN_ANCESTORS:
        ancestors[MAX_SHOWN_ANCESTORS - 2 : -1] = []
    return [*reversed(ancestors), top]


def _children(node: Node, children: Mapping[int, Sequence[int]]) -> list[Node]:
    return [Node(i, node.id, node.depth + 1) for i in children.get(node.id, ())]
