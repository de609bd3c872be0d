"""Stores intents. An intent is stored before a pair changes, and is marked as finished after the follow-up writes of
the change.

If a writer dies in between, its unfinished intent shows that follow-up writes of the change may be missing. The intents
of one minute are in SHARDS partitions, few enough that a process can write the intents of concurrent changes to the
same partition in one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cachetools import LRUCache

from services.graph.store.cassandra import schema
from services.graph.store.cassandra.relationship import Pair
from services.platform.cassandra.keyspace import Keyspace
from services.platform.cassandra.write_batcher import PartitionWriteBatcher

# Number of partitions per minute. At a thousand follows per second, each partition gets 15,000 small rows.
SHARDS = 4
# The TTL of intents in seconds, equal to the table's default TTL. A sweep covers all minutes of this time, and no mesh
# is expected to be down for longer.
LIVE_S = 3 * 24 * 3600
# Time in seconds before the expiry of an intent from which the intent counts as expired. The clocks of processes differ
# by less than this time.
NEARLY_S = 600
# Maximum number of pairs remembered as finished; beyond it, the least recently used one is dropped and read again when
# needed. A pair takes about 150 bytes: 15 MB in all.
MAX_KNOWN = 100_000
_US = 1_000_000


class IntentPartition(NamedTuple):
    """The partition key of an intent."""

    minute: int
    shard: int


class IntentLog:
    """Stores the intents of one keyspace. `clock` returns Unix seconds."""

    def __init__(self, keyspace: Keyspace, clock: Callable[[], float]) -> None:
        self._keyspace = keyspace
        self._clock = clock
        self._batcher = PartitionWriteBatcher(keyspace)
        # By pair: the stamp of the last change that is known to be finished.
        self._finished: LRUCache[tuple[int, int], int] = LRUCache(MAX_KNOWN)

    async def begin(self, pair: Pair) -> None:
        """Stores the intent to write `pair` as the new row. Raises UNAVAILABLE, DEADLINE_EXCEEDED or
        RESOURCE_EXHAUSTED."""
        partition = _partition(pair)
        await self._batcher.write(partition, (schema.ADD_INTENT, (*partition, pair.low, pair.high, pair.stamp)))

    async def finish(self, pair: Pair) -> None:
        """Marks the pair's last change as finished. Call this method after all follow-up writes, because no process
        repeats the follow-up writes of a finished change.
        Raises UNAVAILABLE, DEADLINE_EXCEEDED or RESOURCE_EXHAUSTED."""
        partition = _partition(pair)
        await self._batcher.write(partition, (schema.FINISH_INTENT, (*partition, pair.low, pair.high, pair.stamp)))
        self._finished[pair.low, pair.high] = pair.stamp

    async def is_finished(self, pair: Pair) -> bool:
        """Returns whether the follow-up writes of the pair's last change are done."""
        if self._finished.get((pair.low, pair.high), -1) >= pair.stamp:
            return True
        rows = await self._keyspace.read(schema.INTENT_DONE, *_partition(pair), pair.low, pair.high, pair.stamp)
        # If there is no intent, the change is finished if it is so old that the TTL of its intent has passed: sweepers
        # finished the change days ago. Otherwise the intent is not visible yet, and the change is not finished.
        finished = rows[0][0] is True if rows else pair.stamp < (self._clock() - LIVE_S + NEARLY_S) * _US
        if finished:
            self._finished[pair.low, pair.high] = pair.stamp
        return finished


def _partition(pair: Pair) -> IntentPartition:
    # The partition is computed from the pair's row alone, so that every reader of the pair finds the intent.
    return IntentPartition(pair.stamp // (60 * _US), (pair.low + pair.high) % SHARDS)
