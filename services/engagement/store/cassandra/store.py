"""The engagement store of the cluster backend: Cassandra, with counts cached in Redis. Nothing is cached in process
memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from heapq import merge
from itertools import chain, islice
from typing import TYPE_CHECKING, Self

from roost.engagement.v1 import engagement_service_pb2 as pb

from services.engagement.store import ReactionEntry, ReactionKind
from services.engagement.store.cassandra import schema
from services.engagement.store.cassandra.count_cache import CachedCounts
from services.engagement.store.cassandra.counts import ReactionCounter, batches_of, serialize_counts
from services.engagement.store.cassandra.reaction_writer import ReactionWriter
from services.platform.caching.cache import SingleFlight
from services.platform.cassandra.keyspace import Keyspace, Statement
from services.platform.detached import run_to_completion
from services.platform.events.log import EventLog, Record
from services.platform.redis.client import Redis
from services.platform.redis.shared_versions import SharedVersions

if TYPE_CHECKING:
    from services.platform.backends.cluster import ClusterBackends

# Maximum number of likes that are excluded or included at once when a user becomes absent or active again.
ABSENCE_STEP = 500
_NO_BOUND = (1 << 63) - 1
_KINDS = {number: kind for kind, number in schema.NUMBERS.items()}


class CassandraEngagementStore:
    """Implements EngagementStore on one keyspace, for any number of processes at once.

    The service must run `outbox` as a worker. The outbox publishes the events of writes, and completes the writes of
    processes that died.
    """

    def __init__(
        self,
        keyspace: Keyspace,
        redis: Redis,
        shared: SharedVersions,
        log: EventLog,
        clock: Callable[[], float],
    ) -> None:
        self.keyspace = keyspace
        self._count_cache = CachedCounts(redis, shared, time.monotonic)
        self.counter = ReactionCounter(keyspace, self._count_cache, clock)
        self.writer = ReactionWriter(keyspace, self._count_cache, self.counter, log, clock)
        self.outbox = self.writer.outbox
        # Keys are (tweet id, user id, is like). Identical concurrent calls share one result.
        self._likes: SingleFlight[tuple[int, int, bool], int] = SingleFlight()

    @classmethod
    async def open(cls, cluster: ClusterBackends, log: EventLog, clock: Callable[[], float]) -> Self:
        """Opens the keyspace and applies its migrations. `clock` returns Unix seconds. Raises UNAVAILABLE if Cassandra
        does not answer, and FAILED_PRECONDITION if a newer release migrated the keyspace or migrations are missing and
        `migrate_at_start` is off."""
        keyspace = await cluster.keyspace(schema.KEYSPACE, schema.KEYSPACES[schema.KEYSPACE])
        return cls(keyspace, cluster.redis, cluster.shared, log, clock)

    async def like(self, tweet_id: int, user_id: int, event: Record) -> int:
        """Implements `EngagementStore.like`. A returned number above SHARD_FROM can lack the changes of the last
        seconds."""

        async def set_and_count() -> int:
            await self.writer.set(ReactionKind.LIKE, tweet_id, user_id, event.event_id, (event,))
            return await self.counter.count_after_change(tweet_id, schema.NUMBERS[ReactionKind.LIKE])

        # An unlike that begins after this like must not share the result of an unlike that began before it.
        self._likes.forget((tweet_id, user_id, False))
        return await self._likes.run((tweet_id, user_id, True), set_and_count)

    async def unlike(self, tweet_id: int, user_id: int, event: Record) -> int:
        """Implements `EngagementStore.unlike`. A returned number above SHARD_FROM can lack the changes of the last
        seconds."""

        async def unset_and_count() -> int:
            await self.writer.unset(ReactionKind.LIKE, tweet_id, user_id, (event,))
            return await self.counter.count_after_change(tweet_id, schema.NUMBERS[ReactionKind.LIKE])

        self._likes.forget((tweet_id, user_id, True))
        return await self._likes.run((tweet_id, user_id, False), unset_and_count)

    async def bookmark(self, tweet_id: int, user_id: int, reaction_id: int) -> bool:
        made = await run_to_completion(self.writer.set(ReactionKind.BOOKMARK, tweet_id, user_id, reaction_id, ()))
        if made:
            await self.counter.count_after_change(tweet_id, schema.NUMBERS[ReactionKind.BOOKMARK])
        return made

    async def unbookmark(self, tweet_id: int, user_id: int) -> bool:
        return await run_to_completion(self.writer.unset(ReactionKind.BOOKMARK, tweet_id, user_id, ()))

    async def list_likers(self, tweet_id: int, below: int, limit: int) -> list[ReactionEntry]:
        number, below = schema.NUMBERS[ReactionKind.LIKE], below or _NO_BOUND
        sharded = await self.keyspace.read(schema.SHARDED, tweet_id, number)
        buckets = range(schema.FIRST_BUCKET, schema.BUCKETS + 1) if sharded else (schema.FIRST_BUCKET,)
        keys = ((tweet_id, bucket, number, below, limit) for bucket in buckets)
        found = await self.keyspace.read_each(schema.BY_TWEET, keys)
        return [ReactionEntry(*row) for row in islice(merge(*found, reverse=True), limit)]

    async def list_tweets(self, kind: ReactionKind, user_id: int, below: int, limit: int) -> list[ReactionEntry]:
        rows = await self.keyspace.read(schema.BY_USER, user_id, schema.NUMBERS[kind], below or _NO_BOUND, limit)
        return [ReactionEntry(*row) for row in rows]

    async def batch_get_counts(self, ids: Sequence[int]) -> pb.BatchGetCountsResponse:
        """Implements `EngagementStore.batch_get_counts`. A number above SHARD_FROM can lack the changes of the last
        seconds."""
        frames, storable = await self._count_cache.frames(list(dict.fromkeys(ids)))
        missing = [tweet_id for tweet_id in dict.fromkeys(ids) if tweet_id not in frames]
        if missing:
            began = self._count_cache.now()
            counts = await self.counter.counts(missing)
            loaded = {tweet_id: serialize_counts(tweet_id, counts) for tweet_id in missing}
            sharded = {tweet_id for (tweet_id, _), count in counts.items() if count.others is not None}
            await self._count_cache.put({i: frame for i, frame in loaded.items() if i in storable}, sharded, began)
            frames |= loaded
        return pb.BatchGetCountsResponse.FromString(b"".join([frames[tweet_id] for tweet_id in ids]))

    async def batch_get_viewer_states(self, user_id: int, ids: Sequence[int]) -> pb.BatchGetViewerStatesResponse:
        keys = ((user_id, list(_KINDS), batch) for batch in batches_of(ids))
        rows = chain.from_iterable(await self.keyspace.read_each(schema.REACTIONS, keys))
        reacted = {(tweet_id, _KINDS[number]) for number, tweet_id, reaction_id in rows if reaction_id is not None}
        response = pb.BatchGetViewerStatesResponse()
        for tweet_id in ids:
            liked, bookmarked = ((tweet_id, kind) in reacted for kind in ReactionKind)
            if liked or bookmarked:
                response.states.add(tweet_id=tweet_id, liked=liked, bookmarked=bookmarked)
        return response

    async def set_absent(self, user_id: int, absent: bool, at_us: int) -> None:
        below = 0
        while page := await self.list_tweets(ReactionKind.LIKE, user_id, below, ABSENCE_STEP):
            rows = [(entry.id, schema.FIRST_BUCKET, schema.UNCOUNTED, entry.reaction_id) for entry in page]
            steps: list[Statement]
            if absent:
                steps = [(schema.COPY_BY_TWEET, (*row, user_id, at_us)) for row in rows]
            else:
                steps = [(schema.DROP_BY_TWEET, (at_us, *row)) for row in rows]
            await self.writer.copies.write(steps, [entry.id for entry in page], [user_id])
            below = page[-1].reaction_id

    async def close(self) -> None:
        """Stops the background task that marks counts in Redis as changed. The connections belong to the process and
        stay open."""
        await self._count_cache.close()
