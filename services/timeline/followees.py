"""Whom a reader follows and since when, kept in memory under graph's relation version."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence

import grpc
from cachetools import LRUCache
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1 import graph_service_pb2_grpc as graph_grpc

from services.shared.celebrity_tiers import CelebritySubscriber

# About 100 bytes each: 200 MB at most.
EDGES_KEPT = 2_000_000


class Relations:
    """The followees of one reader at one relation version. Not to be changed."""

    __slots__ = ("_celebrities", "_seen", "_since_ms", "_user_ids", "followees", "version")

    def __init__(self, version: int, since_ms: Iterable[tuple[int, int]]) -> None:
        """`since_ms` are pairs of (followed at, in Unix milliseconds; user id)."""
        self.version = version
        order = sorted(since_ms)
        # Arrays: pairs would take eight times the memory.
        self._since_ms = array("q", [since for since, _ in order])
        self._user_ids = array("q", [user_id for _, user_id in order])
        self.followees = frozenset(self._user_ids)
        self._seen = -1
        self._celebrities: Sequence[int] = ()

    def followed_after(self, ms: int) -> Sequence[int]:
        """Who is followed only since a moment after `ms` (Unix milliseconds)."""
        if not self._since_ms or self._since_ms[-1] <= ms:
            return ()
        return self._user_ids[bisect_right(self._since_ms, ms) :]

    def celebrities(self, tiers: CelebritySubscriber) -> Sequence[int]:
        """The followees who are celebrities now."""
        if self._seen != tiers.version:
            # Walked once for each change of either side: a warm read costs nothing here.
            self._celebrities = [user_id for user_id in tiers.celebrities if user_id in self.followees]
            self._seen = tiers.version
        return self._celebrities


class RelationCache:
    """Followees by reader; what graph's version does not confirm is fetched anew."""

    def __init__(self, channel: grpc.aio.Channel, edges_kept: int = EDGES_KEPT) -> None:
        self._graph = graph_grpc.GraphServiceStub(channel)
        self._kept: LRUCache[int, Relations] = LRUCache(edges_kept, getsizeof=lambda kept: len(kept.followees) + 1)

    async def current(self, user_id: int) -> Relations:
        """As graph has it now: every edge acknowledged before the call is in it."""
        seen = await self._graph.GetVisibilityFilter(graph.GetVisibilityFilterRequest(user_id=user_id))
        kept = self._kept.get(user_id)
        return kept if kept is not None and kept.version == seen.relation_version else await self.fetch(user_id)

    def known(self, user_id: int) -> Relations | None:
        """As they were when they were fetched last: whoever uses them has to learn their version from graph."""
        return self._kept.get(user_id)

    async def fetch(self, user_id: int) -> Relations:
        """As graph has it now, past what is kept."""
        since: list[tuple[int, int]] = []
        version = 0
        async for message in self._graph.StreamFollowingIds(graph.StreamFollowingIdsRequest(user_id=user_id)):
            version = message.relation_version
            since.extend((followee.followed_at_ms, followee.user_id) for followee in message.followees)
        relations = Relations(version, since)
        if len(relations.followees) < self._kept.maxsize:
            self._kept[user_id] = relations
        return relations
