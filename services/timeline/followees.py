"""Caches each reader's followees and the times of the follows, with the relation version at which graph returned
them."""

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
MAX_CACHED_EDGES = 2_000_000


class FolloweeSet:
    """The followees of one reader at one relation version. Immutable."""

    __slots__ = ("_celebrities", "_seen", "_since_ms", "_user_ids", "followees", "version")

    def __init__(self, version: int, since_ms: Iterable[tuple[int, int]]) -> None:
        """`since_ms` are pairs of (followed at, in Unix milliseconds; user id)."""
        self.version = version
        order = sorted(since_ms)
        # Arrays, because tuples would take eight times the memory.
        self._since_ms = array("q", [since for since, _ in order])
        self._user_ids = array("q", [user_id for _, user_id in order])
        self.followees = frozenset(self._user_ids)
        self._seen = -1
        self._celebrities: Sequence[int] = ()

    def followed_after(self, ms: int) -> Sequence[int]:
        """Returns the followees followed after `ms` (Unix milliseconds)."""
        if not self._since_ms or self._since_ms[-1] <= ms:
            return ()
        return self._user_ids[bisect_right(self._since_ms, ms) :]

    def celebrities(self, tiers: CelebritySubscriber) -> Sequence[int]:
        """Returns the followees who are celebrities now."""
        if self._seen != tiers.version:
            # Computed again only if the followees or the celebrities change, so a warm read costs nothing here.
            self._celebrities = [user_id for user_id in tiers.celebrities if user_id in self.followees]
            self._seen = tiers.version
        return self._celebrities


class FolloweeCache:
    """Caches followees by reader. An entry is used if graph confirms its version, otherwise it is fetched again."""

    def __init__(self, channel: grpc.aio.Channel, max_cached_edges: int = MAX_CACHED_EDGES) -> None:
        self._graph = graph_grpc.GraphServiceStub(channel)
        self._cache: LRUCache[int, FolloweeSet] = LRUCache(
            max_cached_edges, getsizeof=lambda cached: len(cached.followees) + 1
        )

    async def current(self, user_id: int) -> FolloweeSet:
        """Returns the reader's followees as graph has them now, including every follow acknowledged before the call."""
        seen = await self._graph.GetVisibilityFilter(graph.GetVisibilityFilterRequest(user_id=user_id))
        cached = self._cache.get(user_id)
        return cached if cached is not None and cached.version == seen.relation_version else await self.fetch(user_id)

    def known(self, user_id: int) -> FolloweeSet | None:
        """Returns the followees last fetched, or None. The caller must check their version with graph."""
        return self._cache.get(user_id)

    async def fetch(self, user_id: int) -> FolloweeSet:
        """Fetches the followees from graph, bypassing the cache."""
        since: list[tuple[int, int]] = []
        version = 0
        async for message in self._graph.StreamFollowingIds(graph.StreamFollowingIdsRequest(user_id=user_id)):
            version = message.relation_version
            since.extend((followee.followed_at_ms, followee.user_id) for followee in message.followees)
        relations = FolloweeSet(version, since)
        if len(relations.followees) < self._cache.maxsize:
            self._cache[user_id] = relations
        return relations
