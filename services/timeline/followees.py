"""Caches each reader's followees: their user ids and the times of the follows."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence

import grpc
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1 import graph_service_pb2_grpc as graph_grpc

from services.platform.caching.generational import GenerationalCache
from services.platform.versions import Kind, Versioned, Versions, key_of
from services.shared.celebrity_tiers import CelebritySubscriber

# Maximum number of followees in each of the two generations of the cache, summed over all readers: about 100 bytes each,
# so at most 200 MB in all.
MAX_CACHED_EDGES = 1_000_000


class FolloweeSet:
    """The followees of one reader. Immutable."""

    __slots__ = ("_celebrities", "_seen", "_since_ms", "_user_ids", "followees")

    def __init__(self, since_ms: Iterable[tuple[int, int]]) -> None:
        """`since_ms` contains a pair (time of the follow in Unix milliseconds, user id) for each followee."""
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
            # The ids are computed once per version of the tiers, so most reads use the result of an earlier read.
            self._celebrities = [user_id for user_id in tiers.celebrities if user_id in self.followees]
            self._seen = tiers.version
        return self._celebrities


class FolloweeCache:
    """Caches a FolloweeSet per reader, under the version of the reader's relations."""

    def __init__(self, channel: grpc.aio.Channel, versions: Versions, max_cached_edges: int = MAX_CACHED_EDGES) -> None:
        self._graph = graph_grpc.GraphServiceStub(channel)
        self._versions = versions
        self._max_cached_edges = max_cached_edges
        self._cache: GenerationalCache[int, Versioned[FolloweeSet]] = GenerationalCache(
            max_cached_edges, lambda cached: len(cached.value.followees) + 1
        )

    def cached(self, user_id: int) -> Versioned[FolloweeSet] | None:
        """Returns the reader's cached followees. Compare their version before use; if they are not current, call
        `fetch`."""
        return self._cache.get(user_id)

    async def fetch(self, user_id: int) -> FolloweeSet:
        """Fetches the reader's followees from graph, whether cached or not, and caches them. Raises AioRpcError if graph
        does not answer."""
        keys = (key_of(Kind.RELATIONS, user_id),)
        snapshot = self._versions.snapshot()
        await snapshot.read(keys)
        since: list[tuple[int, int]] = []
        async for message in self._graph.StreamFollowingIds(graph.StreamFollowingIdsRequest(user_id=user_id)):
            since.extend((followee.followed_at_ms, followee.user_id) for followee in message.followees)
        relations = FolloweeSet(since)
        if (stamp := snapshot.stamp(keys)) is not None and len(relations.followees) < self._max_cached_edges:
            self._cache.put(user_id, Versioned(keys, stamp, relations))
        return relations
