"""A count cache in Redis, shared by all processes, so that a page of tweets is not counted anew for each reader.

A count is stored with a TTL, and only if its key has no value. After a writer has written its rows, and before it
responds, it replaces the value by _CHANGED, which expires after CHANGED_TTL_MS milliseconds. So a count that began
before the write cannot be stored after the write. While Redis is unavailable, no count is cached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from random import getrandbits

from services.platform.redis.client import Redis
from services.platform.redis.connection import command
from services.platform.redis.node_pool import Node
from services.platform.redis.shared_keys import SharedKeyClient, key_of
from services.platform.redis.shared_versions import VERSION_BITS, VOLATILE, SharedVersions
from services.platform.versions import Kind
from services.platform.versions import key_of as version_key

# TTL of a count in milliseconds. It limits the time for which a cached count is wrong if a writer died before it marked
# the count as changed.
COUNT_TTL_MS = 600_000
# TTL in milliseconds of the count of a tweet with sharded reactions. The stored totals of such a count are some seconds
# old anyway, and a recount of these totals does not mark the count as changed.
SHARDED_COUNT_TTL_MS = 1_000
# TTL in milliseconds of the value _CHANGED. It is longer than MAX_COUNTING_S, plus the time until Redis stores a count:
# so a count that began before the change still finds _CHANGED, and is not stored.
CHANGED_TTL_MS = 5_000
# Maximum time in seconds from the start of a count until it is sent to Redis; a slower count is not cached.
MAX_COUNTING_S = 3.0
_CHANGED = b"-"
_COUNTED = b"+"
_KIND = "c"


class CachedCounts(SharedKeyClient):
    """Caches frames in Redis by tweet id. A frame is the counts of one tweet as a serialized BatchGetCountsResponse,
    empty if the tweet has no likes and bookmarks. `monotonic` returns seconds."""

    def __init__(self, redis: Redis, shared: SharedVersions, monotonic: Callable[[], float]) -> None:
        super().__init__(redis, "shared-counts")
        self._shared = shared
        self._monotonic = monotonic

    def now(self) -> float:
        """Returns the current time, which the caller passes to `put` as `began`. Call this method before the count."""
        return self._monotonic()

    async def frames(self, ids: Sequence[int]) -> tuple[dict[int, bytes], set[int]]:
        """Returns the cached frames by tweet id, and the ids of the tweets whose counts the caller may store by `put`:
        those whose key has no value."""
        held = await self._read_values(_KIND, ids)
        known = {i: value[1:] for i, value in held.items() if value and value.startswith(_COUNTED)}
        return known, {i for i, value in held.items() if value is None}

    async def put(self, frames: Mapping[int, bytes], sharded: Iterable[int], began: float) -> None:
        """Stores counts that were read since `began`, except counts that were marked as changed meanwhile. The counts
        of the tweets in `sharded` expire after SHARDED_COUNT_TTL_MS milliseconds."""
        short_lived = set(sharded)

        async def fill(node: Node, some: Sequence[int]) -> None:
            connection = await node.reads()
            ttls_ms = [SHARDED_COUNT_TTL_MS if i in short_lived else COUNT_TTL_MS for i in some]
            # After a slower count, the _CHANGED of a write may have expired, and the count may lack the write.
            if self._monotonic() < began + MAX_COUNTING_S:
                sets = [
                    command("SET", key_of(_KIND, i, connection), _COUNTED + frames[i], "NX", "PX", ttl_ms)
                    for i, ttl_ms in zip(some, ttls_ms, strict=True)
                ]
                await self._replies(connection, sets)

        await self._for_each_node(frames, fill)

    async def changed(self, tweet_ids: Iterable[int], user_ids: Iterable[int]) -> None:
        """Marks the counts of these tweets as changed, and publishes new versions of them and of the reactions of these
        users. Call this method after the rows are written. If Redis does not accept a marker or a version, a background
        task retries until Redis does."""
        ids = list(dict.fromkeys(tweet_ids))
        if not await self._publish_changed(ids):
            self._queue_retry(self._publish_changed, ids)
        # After the markers, so that nobody caches an earlier count under a new version.
        keys = [version_key(Kind.REACTION_COUNTS, i) for i in ids]
        keys += [version_key(Kind.REACTIONS, user_id) for user_id in dict.fromkeys(user_ids)]
        await self._shared.change(keys, getrandbits(VERSION_BITS) + 1)

    async def recounted(self, tweet_ids: Iterable[int]) -> None:
        """Makes the versions of the counts of these tweets VOLATILE, so that no process caches the counts in memory: a
        recount sets no marker in Redis, so a count there may be up to SHARDED_COUNT_TTL_MS milliseconds old."""
        await self._shared.change([version_key(Kind.REACTION_COUNTS, i) for i in dict.fromkeys(tweet_ids)], VOLATILE)

    async def _publish_changed(self, ids: Sequence[int]) -> bool:
        async def change(node: Node, some: Sequence[int]) -> None:
            connection = await node.reads()
            keys = [key_of(_KIND, i, connection) for i in some]
            await self._replies(connection, [command("SET", key, _CHANGED, "PX", CHANGED_TTL_MS) for key in keys])

        return await self._for_each_node(ids, change)
