"""Finds the most followed users from a sample, because rows are distributed by hash and no table orders users by
followers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from services.graph.store import Listing
from services.graph.store.cassandra import schema
from services.graph.store.cassandra.follow_counts import FollowCounts
from services.graph.store.cassandra.user_index import MAX_RANGES
from services.graph.store.cassandra.visibility_cache import TOP
from services.platform.cassandra.keyspace import Keyspace

# Maximum number of users in a sample, and of the newest followees that are read of each. A user whom one user in a
# hundred follows is missing from one sample in 150.
SAMPLE = 500
FROM_EACH = 50
# Maximum number of users whose followers are counted exactly: those whom most users in the sample follow. It is greater
# than the number that any caller requests.
MAX_CANDIDATES = 400
# Time in seconds for which a result is cached. A sample takes up to a thousand concurrent reads, about 100 ms, and the
# most followed users change more slowly.
CACHED_S = 60.0
# Maximum number of users in a sample whose result is not cached: a small sample is fast, and in a small mesh the most
# followed users change quickly.
SMALL = 100


class PopularUsers:
    """Finds the most followed users of one keyspace. `clock` returns Unix seconds. Methods raise the errors of
    Keyspace."""

    def __init__(self, keyspace: Keyspace, follow_counts: FollowCounts, clock: Callable[[], float]) -> None:
        self._keyspace = keyspace
        self._follow_counts = follow_counts
        self._clock = clock
        self._found: list[int] = []
        self._cached_until = 0.0
        # One sample at a time; concurrent callers wait for it and share its result.
        self._lock = asyncio.Lock()

    async def best(self, limit: int) -> list[int]:
        """Returns up to `limit` users (MAX_CANDIDATES at most), the most followed first, then by id. The result can be
        up to CACHED_S seconds old."""
        async with self._lock:
            if self._clock() >= self._cached_until:
                sample = await self._sample()
                self._found = await self._counted(sample)
                self._cached_until = self._clock() + CACHED_S if len(sample) > SMALL else 0.0
        return self._found[:limit]

    async def _sample(self) -> list[int]:
        """Returns up to SAMPLE user ids, taken evenly from all id ranges and so from accounts of all ages."""
        ranges = [row[0] for row in await self._keyspace.read(schema.RANGES, 0, MAX_RANGES)]
        if not ranges:
            return []
        ranges = ranges[:: -(-len(ranges) // SAMPLE)]
        each = SAMPLE // len(ranges)
        pages = await self._keyspace.read_each(schema.USERS_IN_RANGE, [(one, 0, each) for one in ranges])
        return [row[0] for page in pages for row in page]

    async def _counted(self, sample: list[int]) -> list[int]:
        """Returns the users whom most users in the sample follow, sorted by their numbers of followers, which this
        method counts."""
        keys = [(user_id, *TOP, FROM_EACH) for user_id in sample]
        seen: Counter[int] = Counter()
        for rows in await self._keyspace.read_each(schema.PAGES[Listing.FOLLOWING], keys):
            seen.update(other_id for _, other_id in rows)
        follow_counts = await self._follow_counts.of([user_id for user_id, _ in seen.most_common(MAX_CANDIDATES)])
        followers = {user_id: count.edges for user_id, (count, _) in follow_counts.items() if count.edges}
        return sorted(followers, key=lambda user_id: (-followers[user_id], user_id))
