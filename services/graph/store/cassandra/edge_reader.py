"""Reads edges in order: pages of one user's list, and scans over the edges of all users."""

from __future__ import annotations

from collections.abc import Sequence

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store import Listing, Position
from services.graph.store.cassandra import schema
from services.graph.store.cassandra.follow_counts import BUCKETS, FollowCounts
from services.graph.store.cassandra.user_index import UserIndex
from services.graph.store.cassandra.visibility_cache import TOP
from services.platform.cassandra.keyspace import Keyspace, Row

# The first read of a sharded list asks each bucket for twice its even share, so that a second read is rare.
SHARE_FACTOR = 2
# Users whose edges a scan reads in parallel, and edges per read.
SCAN_SOURCES = 50
SCAN_ROWS = 5_000
_SCANNED = {
    pb.EDGE_KIND_FOLLOW: Listing.FOLLOWING,
    pb.EDGE_KIND_BLOCK: Listing.BLOCKS,
    pb.EDGE_KIND_MUTE: Listing.MUTES,
}


class EdgeReader:
    """Reads the lists by user of one keyspace, merging the buckets of followers."""

    def __init__(self, keyspace: Keyspace, follow_counts: FollowCounts, user_index: UserIndex) -> None:
        self._keyspace = keyspace
        self._follow_counts = follow_counts
        self._user_index = user_index

    async def page(self, listing: Listing, user_id: int, below: Position | None, limit: int) -> list[Position]:
        """Returns up to `limit` entries of a list, newest first, starting after `below` if it is given."""
        if listing is not Listing.FOLLOWERS:
            rows = await self._keyspace.read(schema.PAGES[listing], user_id, *(below or TOP), limit)
            return [Position(*row) for row in rows]
        buckets = await self._follow_counts.buckets(user_id)
        return await self._merge_buckets(user_id, buckets, below or TOP, limit)

    async def scan(self, kind: pb.EdgeKind.ValueType, after: tuple[int, int], limit: int) -> list[pb.Edge]:
        """Returns up to `limit` edges in ascending order of (source id, target id), starting after the pair `after`."""
        edges: list[pb.Edge] = []
        sources = [after[0]] if after[0] else []
        async for user_id in self._user_index.ids_above(after[0]):
            sources.append(user_id)
            if len(sources) >= SCAN_SOURCES:
                edges += await self._edges(kind, sources, after)
                sources.clear()
                if len(edges) >= limit:
                    return edges[:limit]
        edges += await self._edges(kind, sources, after)
        return edges[:limit]

    async def _merge_buckets(self, user_id: int, buckets: range, below: Position, limit: int) -> list[Position]:
        """Returns one page merged over all buckets.

        A bucket may hold more entries below the last one read from it. So entries below the highest of these positions
        (the frontier) are not returned; each round continues reading where the previous one stopped.
        """
        share = limit if len(buckets) == 1 else min(limit, SHARE_FACTOR * limit // BUCKETS + 1)
        found: list[Position] = []
        read_to = dict.fromkeys(buckets, below)
        while True:
            keys = [(user_id, bucket, *position, share) for bucket, position in read_to.items()]
            pages = await self._keyspace.read_each(schema.FOLLOWERS_PAGE, keys)
            for bucket, page in zip(tuple(read_to), pages, strict=True):
                found += [Position(*row) for row in page]
                if len(page) < share:
                    del read_to[bucket]
                else:
                    read_to[bucket] = Position(*page[-1])
            found.sort(reverse=True)
            frontier = max(read_to.values(), default=None)
            if frontier is None or (len(found) >= limit and found[limit - 1] >= frontier):
                return found[:limit]

    async def _edges(
        self, kind: pb.EdgeKind.ValueType, sources: Sequence[int], after: tuple[int, int]
    ) -> list[pb.Edge]:
        """Returns the edges of these sources after the pair `after`, in ascending order of (source id, target id)."""
        rows: dict[int, list[Row]] = {source: [] for source in sources}
        keys = [(source, *TOP, SCAN_ROWS) for source in sources]
        while keys:
            pages = await self._keyspace.read_each(schema.PAGES[_SCANNED[kind]], keys)
            previous, keys = keys, []
            for (source, *_), page in zip(previous, pages, strict=True):
                rows[source] += page
                if len(page) == SCAN_ROWS:
                    keys.append((source, *Position(*page[-1]), SCAN_ROWS))
        return [
            pb.Edge(from_id=source, to_id=target, created_at_ms=at_ms)
            for source, found in rows.items()
            for at_ms, target in sorted(found, key=lambda row: row[1])
            if (source, target) > after
        ]
