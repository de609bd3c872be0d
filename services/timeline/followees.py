"""Caches each reader's followees: their user ids, the times of the follows, and the relation version that graph
returned with them."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence

import grpc
from cachetools import LRUCache
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1 import graph_service_pb2_grpc as graph_grpc

from services.shared.celebrity_tiers import CelebritySubscriber

# Maximum number of followees in the cache, summed over all readers: about 100 bytes each, so 200 MB. Beyond it the
# least recently used readers are evicted.
MAX_CACHED_EDGES = 2_000_000


class FolloweeSet:
    """The followees of one reader at one relation version. Immutable."""

    __slots__ = ("_celebrities", "_seen", "_since_ms", "_user_ids", "followees", "version")

    def __init__(self, version: int, since_ms: Iterable[tuple[int, int]]) -> None:
        """`since_ms` contains a pair (time of the follow in Unix milliseconds, user id) for each followee."""
        self.version = version
        order = sorted(since_ms)
        # Two arrays in the order of the follow times. Tuples would take eight times the memory.
        self._since_ms = array("q", [since for since, _ in order])
        self._user_ids = array("q", [user_id for _, user_id in order])
        self.followees = frozenset(self._user_ids)
        # The version of the tiers from which `_celebrities` was computed; -1 before the first computation.
        self._seen = -1
        self._celebrities: Sequence[int] = ()

    def followed_after(self, ms: int) -> Sequence[int]:
        """Returns the ids of the users whom the reader followed after `ms` (Unix milliseconds), in the order of the
        follows."""
        if not self._since_ms or self._since_ms[-1] <= ms:
            return ()
        return self._user_ids[bisect_right(self._since_ms, ms) :]

    def celebrities(self, tiers: CelebritySubscriber) -> Sequence[int]:
        """Returns the ids of the followees who are celebrities now."""
        if self._seen != tiers.version:
            # Computed once per version of the tiers: most reads find the result of an earlier read.
            self._celebrities = [user_id for user_id in tiers.celebrities if user_id in self.followees]
            self._seen = tiers.version
        return self._celebrities


class FolloweeCache:
    """Caches a FolloweeSet per reader. A cached one is current if its relation version is still graph's."""

    def __init__(self, channel: grpc.aio.Channel, max_cached_edges: int = MAX_CACHED_EDGES) -> None:
        self._graph = graph_grpc.GraphServiceStub(channel)
        self._cache: LRUCache[int, FolloweeSet] = LRUCache(
            max_cached_edges, getsizeof=lambda cached: len(cached.followees) + 1
        )

    async def current(self, user_id: int) -> FolloweeSet:
        """Returns the reader's current followees, including every follow acknowledged before the call. Asks graph for
        the relation version, and fetches the followees only if they are not cached with this version. Raises
        AioRpcError if graph does not answer."""
        seen = await self._graph.GetVisibilityFilter(graph.GetVisibilityFilterRequest(user_id=user_id))
        cached = self._cache.get(user_id)
        return cached if cached is not None and cached.version == seen.relation_version else await self.fetch(user_id)

    def known(self, user_id: int) -> FolloweeSet | None:
        """Returns the reader's cached followees, None if they are not cached. They may be outdated: the caller must
        compare their version with graph's relation version."""
        return self._cache.get(user_id)

    async def fetch(self, user_id: int) -> FolloweeSet:
        """Fetches the reader's followees from graph, whether cached or not, and caches them. Raises AioRpcError if
        graph does not answer."""
        since: list[tuple[int, int]] = []
        version = 0
        async for message in self._graph.StreamFollowingIds(graph.StreamFollowingIdsRequest(user_id=user_id)):
            version = message.relation_version
            since.extend((followee.followed_at_ms, followee.user_id) for followee in message.followees)
        relations = FolloweeSet(version, since)
        # LRUCache raises ValueError for an item larger than the whole cache.
        if len(relations.followees) < self._cache.maxsize:
            self._cache[user_id] = relations
        return relations
