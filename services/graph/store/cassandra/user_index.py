"""Lists all users who ever had an edge, by ascending id. Cassandra distributes rows by hash, so a scan over all users
in the order of their ids needs this index."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from cachetools import LRUCache

from services.graph.store.cassandra import schema
from services.graph.store.cassandra.relationship import Statement
from services.platform.cassandra.keyspace import Keyspace

# Number of low bits of a user id that its range drops. Ids grow with time, so one range holds the ids minted within 37
# hours, and there are at most 16,384 ranges.
RANGE_BITS = 49
MAX_RANGES = 1 << (63 - RANGE_BITS)
# Maximum number of users remembered as written to the index; beyond it, the least recently used one is dropped and
# written again at the next edge, which changes nothing. A user takes about 100 bytes: 10 MB in all.
MAX_KNOWN = 100_000
# Maximum number of users per read of one range.
PAGE_ROWS = 1_000
# Maximum number of ranges read concurrently.
RANGES_A_READ = 16


class UserIndex:
    """The index of one keyspace: all users who ever had an edge. No user is ever removed from the index."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        self._written: LRUCache[int, None] = LRUCache(MAX_KNOWN)
        # The ranges that this process has written to the index; at most MAX_RANGES.
        self._written_ranges: set[int] = set()

    def statements(self, user_ids: Iterable[int]) -> list[Statement]:
        """Returns the statements that add these users to the index; none for users whom this process has added before.
        The caller must run the statements before it writes an edge of these users, and then call `add_written`."""
        unknown = [user_id for user_id in user_ids if user_id not in self._written]
        ranges = {user_id >> RANGE_BITS for user_id in unknown} - self._written_ranges
        statements: list[Statement] = [(schema.ADD_RANGE, (one,)) for one in ranges]
        return statements + [(schema.ADD_USER, (user_id >> RANGE_BITS, user_id)) for user_id in unknown]

    def add_written(self, user_ids: Iterable[int]) -> None:
        """Records in this process's cache that these users are in the index, so that `statements` skips them."""
        for user_id in user_ids:
            self._written[user_id] = None
            self._written_ranges.add(user_id >> RANGE_BITS)

    async def ids_above(self, user_id: int) -> AsyncIterator[int]:
        """Yields all user ids in the index that are greater than `user_id`, ascending. Raises the errors of
        Keyspace."""
        ranges = [row[0] for row in await self._keyspace.read(schema.RANGES, user_id >> RANGE_BITS, MAX_RANGES)]
        for start in range(0, len(ranges), RANGES_A_READ):
            batch = ranges[start : start + RANGES_A_READ]
            pages = await self._keyspace.read_each(schema.USERS_IN_RANGE, [(one, user_id, PAGE_ROWS) for one in batch])
            for one, page in zip(batch, pages, strict=True):
                while page:
                    for row in page:
                        yield row[0]
                    if len(page) < PAGE_ROWS:
                        break
                    page = await self._keyspace.read(schema.USERS_IN_RANGE, one, page[-1][0], PAGE_ROWS)
