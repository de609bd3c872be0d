"""Who has the most followers, found from a sample: rows are spread by a hash, and nothing orders people by how many follow them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from services.graph.store import Listing
from services.graph.store.cassandra import schema
from services.graph.store.cassandra.follow_counts import Tallies
from services.graph.store.cassandra.user_index import MAX_RANGES
from services.graph.store.cassandra.visibility_cache import TOP
from services.platform.cassandra.keyspace import Keyspace

# People looked at, and whom each followed last. Of people whom one in a hundred follows a sample misses one in 150.
SAMPLE = 500
FROM_EACH = 50
# Of those found most often, how many are counted exactly: more than anybody asks for.
COUNTED = 400
# A sample costs up to a thousand reads side by side, some 100 ms; who is popular changes more slowly than this.
KEPT_S = 60.0
# Fewer people than this are looked at anew each time: it costs little, and a small mesh changes quickly.
SMALL = 100


class Popular:
    """The most followed people of one keyspace. `clock` gives Unix seconds."""

    def __init__(self, keyspace: Keyspace, tallies: Tallies, clock: Callable[[], float]) -> None:
        self._keyspace = keyspace
        self._tallies = tallies
        self._clock = clock
        self._found: list[int] = []
        self._kept_until = 0.0
        # One sample at a time: whoever comes meanwhile gets what it finds.
        self._looking = asyncio.Lock()

    async def best(self, limit: int) -> list[int]:
        """Returns up to `limit` people, COUNTED at most, with the most followers first, then by id; up to KEPT_S old."""
        async with self._looking:
            if self._clock() >= self._kept_until:
                sample = await self._sample()
                self._found = await self._counted(sample)
                self._kept_until = self._clock() + KEPT_S if len(sample) > SMALL else 0.0
        return self._found[:limit]

    async def _sample(self) -> list[int]:
        """Returns up to SAMPLE people from all ranges of ids alike, so from all ages of accounts."""
        ranges = [row[0] for row in await self._keyspace.read(schema.RANGES, 0, MAX_RANGES)]
        if not ranges:
            return []
        ranges = ranges[:: -(-len(ranges) // SAMPLE)]
        each = SAMPLE // len(ranges)
        pages = await self._keyspace.read_each(schema.PEOPLE, [(one, 0, each) for one in ranges])
        return [row[0] for page in pages for row in page]

    async def _counted(self, sample: list[int]) -> list[int]:
        keys = [(user_id, *TOP, FROM_EACH) for user_id in sample]
        seen: Counter[int] = Counter()
        for rows in await self._keyspace.read_each(schema.PAGES[Listing.FOLLOWING], keys):
            seen.update(other_id for _, other_id in rows)
        tallies = await self._tallies.of([user_id for user_id, _ in seen.most_common(COUNTED)])
        followers = {user_id: tally.edges for user_id, (tally, _) in tallies.items() if tally.edges}
        return sorted(followers, key=lambda user_id: (-followers[user_id], user_id))
