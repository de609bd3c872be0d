"""Notes of changes under way: one is made before the change, and marked once nothing is owed for it.

Whoever comes after a writer that died learns from its note that something may be half done. The notes of a minute lie in few
partitions, so that what comes at the same time is one write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cachetools import LRUCache

from services.graph.store.cassandra import schema
from services.graph.store.cassandra.relationship import Pair
from services.platform.cassandra.keyspace import Keyspace
from services.platform.cassandra.write_batcher import PartitionWriteBatcher

# Partitions of a minute: a few thousand rows each where follows come by the thousand.
SHARDS = 4
# As long as the table says. Far more than any process takes to come back; a sweeper looks through all of it.
LIVE_S = 3 * 24 * 3600
# Clocks of processes differ by less, and a note near its end may be gone.
NEARLY_S = 600
# Pairs known to be finished, at about 150 bytes: 15 MB. Who drops out is looked up.
MAX_KNOWN = 100_000
_US = 1_000_000


class Place(NamedTuple):
    """The partition of a note."""

    minute: int
    shard: int


class IntentLog:
    """The notes of one keyspace. `clock` gives unix seconds."""

    def __init__(self, keyspace: Keyspace, clock: Callable[[], float]) -> None:
        self._keyspace = keyspace
        self._clock = clock
        self._gathered = PartitionWriteBatcher(keyspace)
        # The stamp of each pair's last change that is known to be finished.
        self._finished: LRUCache[tuple[int, int], int] = LRUCache(MAX_KNOWN)

    async def make(self, pair: Pair) -> None:
        """Notes that the pair is about to become this. Errors as `Keyspace.write`."""
        place = _place(pair)
        await self._gathered.write(place, (schema.NOTE, (*place, pair.low, pair.high, pair.stamp)))

    async def mark(self, pair: Pair) -> None:
        """Notes that nothing is owed for the pair's last change. Errors as `Keyspace.write`."""
        place = _place(pair)
        await self._gathered.write(place, (schema.MARK_NOTE, (*place, pair.low, pair.high, pair.stamp)))
        self._finished[pair.low, pair.high] = pair.stamp

    async def is_finished(self, pair: Pair) -> bool:
        """Whether nothing is owed for the pair's last change."""
        if self._finished.get((pair.low, pair.high), -1) >= pair.stamp:
            return True
        rows = await self._keyspace.read(schema.NOTED, *_place(pair), pair.low, pair.high, pair.stamp)
        # Without a note: so old that sweepers have passed it for days.
        finished = rows[0][0] is True if rows else pair.stamp < (self._clock() - LIVE_S + NEARLY_S) * _US
        if finished:
            self._finished[pair.low, pair.high] = pair.stamp
        return finished


def _place(pair: Pair) -> Place:
    # Of the stamp alone, so that whoever reads the pair finds it.
    return Place(pair.stamp // (60 * _US), (pair.low + pair.high) % SHARDS)
