"""Reads the lists of edges: pages of one user's list, scans over the edges of all users, and suggestions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store import EdgeStore, Listing, Position
from services.graph.store.cassandra import schema
from services.graph.store.cassandra.follow_counts import BUCKETS, FollowCounts
from services.graph.store.cassandra.popular_users import PopularUsers
from services.graph.store.cassandra.user_index import UserIndex
from services.graph.store.cassandra.visibility_cache import TOP
from services.platform.cassandra.keyspace import Keyspace, Row

# Each read of a sharded list asks every bucket for this many times an even share of the page, so that a second round of
# reads is rare.
SHARE_FACTOR = 2
# Maximum number of users whose edges a scan reads concurrently, and of edges of one user per read.
SCAN_SOURCES = 50
SCAN_ROWS = 5_000
# Maximum number of the user's newest followees that suggestions read, and of the newest followees of each of them. So
# suggestions read at most 2,500 rows in 51 reads.
SUGGEST_FROM_FOLLOWEES = 50
SUGGEST_FROM_EACH = 50
_SCANNED = {
    pb.EDGE_KIND_FOLLOW: Listing.FOLLOWING,
    pb.EDGE_KIND_BLOCK: Listing.BLOCKS,
    pb.EDGE_KIND_MUTE: Listing.MUTES,
}


class CassandraEdgeLists:
    """Implements EdgeLists on Cassandra; merges the buckets of a user's followers into one list. `edges` and `popular`
    read the same keyspace."""

    def __init__(
        self,
        keyspace: Keyspace,
        follow_counts: FollowCounts,
        user_index: UserIndex,
        edges: EdgeStore,
        popular: PopularUsers,
    ) -> None:
        self._keyspace = keyspace
        self._follow_counts = follow_counts
        self._user_index = user_index
        self._edges = edges
        self._popular = popular

    async def page(self, listing: Listing, user_id: int, below: Position | None, limit: int) -> list[Position]:
        if listing is not Listing.FOLLOWERS:
            rows = await self._keyspace.read(schema.PAGES[listing], user_id, *(below or TOP), limit)
            return [Position(*row) for row in rows]
        buckets = await self._follow_counts.buckets(user_id)
        return await self._merge_buckets(user_id, buckets, below or TOP, limit)

    async def scan(self, kind: pb.EdgeKind.ValueType, after: tuple[int, int], limit: int) -> list[pb.Edge]:
        edges: list[pb.Edge] = []
        sources = [after[0]] if after[0] else []
        async for user_id in self._user_index.ids_above(after[0]):
            sources.append(user_id)
            if len(sources) >= SCAN_SOURCES:
                edges += await self._scan_sources(kind, sources, after)
                sources.clear()
                if len(edges) >= limit:
                    return edges[:limit]
        edges += await self._scan_sources(kind, sources, after)
        return edges[:limit]

    async def suggestions(self, user_id: int, limit: int) -> list[int]:
        newest = schema.PAGES[Listing.FOLLOWING]
        followees = [row[1] for row in await self._keyspace.read(newest, user_id, *TOP, SUGGEST_FROM_FOLLOWEES)]
        keys = [(followee, *TOP, SUGGEST_FROM_EACH) for followee in followees]
        found: Counter[int] = Counter()
        for rows in await self._keyspace.read_each(newest, keys):
            found.update(other_id for _, other_id in rows)
        found.pop(user_id, None)
        best = [candidate for candidate, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))]
        suggested: list[int] = []
        for start in range(0, len(best), limit):
            relationships = await self._edges.relationships(user_id, best[start : start + limit])
            suggested += [
                t.user_id for t in relationships if not (t.following or t.blocking or t.blocked_by or t.muting)
            ]
            if len(suggested) >= limit:
                break
        return suggested[:limit]

    async def popular(self, limit: int) -> list[int]:
        return await self._popular.best(limit)

    async def _merge_buckets(self, user_id: int, buckets: range, below: Position, limit: int) -> list[Position]:
        """Returns up to `limit` followers below the position `below`, newest first, merged from all buckets.

        Each round reads the next entries of every bucket that has more. The frontier is the highest position at which
        the read of such a bucket stopped: below the frontier an unread entry may exist, so the page must end at or
        above it. Rounds are repeated until `limit` entries are at or above the frontier, or no bucket has more.
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

    async def _scan_sources(
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
