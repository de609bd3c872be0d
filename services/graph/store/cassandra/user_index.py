"""Everybody who ever had an edge, by ascending id: rows are spread by a hash, so what walks over all people needs an order kept apart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from cachetools import LRUCache

from services.graph.store.cassandra import schema
from services.graph.store.cassandra.relationship import Statement
from services.platform.cassandra.keyspace import Keyspace

# Ids of one range: those minted within 37 hours, for ids grow with time. So there are 16,384 ranges at most.
RANGE_BITS = 49
MAX_RANGES = 1 << (63 - RANGE_BITS)
# People known to be written, at about 100 bytes: 10 MB. Who drops out is written again, to no effect.
MAX_KNOWN = 100_000
# People a read.
PAGE_ROWS = 1_000
# Ranges looked into side by side.
RANGES_A_READ = 16


class People:
    """The people of one keyspace. Nobody is ever removed."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        self._known: LRUCache[int, None] = LRUCache(MAX_KNOWN)
        # At most MAX_RANGES.
        self._known_ranges: set[int] = set()

    def steps(self, user_ids: Iterable[int]) -> list[Statement]:
        """What has to be written before an edge of theirs is; nothing for those known. `learn` them once it is written."""
        unknown = [user_id for user_id in user_ids if user_id not in self._known]
        ranges = {user_id >> RANGE_BITS for user_id in unknown} - self._known_ranges
        steps: list[Statement] = [(schema.ADD_RANGE, (one,)) for one in ranges]
        return steps + [(schema.ADD_PERSON, (user_id >> RANGE_BITS, user_id)) for user_id in unknown]

    def learn(self, user_ids: Iterable[int]) -> None:
        """Remembers that they are written."""
        for user_id in user_ids:
            self._known[user_id] = None
            self._known_ranges.add(user_id >> RANGE_BITS)

    async def after(self, user_id: int) -> AsyncIterator[int]:
        """The people behind this id, by ascending id."""
        ranges = [row[0] for row in await self._keyspace.read(schema.RANGES, user_id >> RANGE_BITS, MAX_RANGES)]
        for start in range(0, len(ranges), RANGES_A_READ):
            lot = ranges[start : start + RANGES_A_READ]
            pages = await self._keyspace.read_each(schema.PEOPLE, [(one, user_id, PAGE_ROWS) for one in lot])
            for one, page in zip(lot, pages, strict=True):
                while page:
                    for row in page:
                        yield row[0]
                    if len(page) < PAGE_ROWS:
                        break
                    page = await self._keyspace.read(schema.PEOPLE, one, page[-1][0], PAGE_ROWS)
