"""The engagement store of the cluster backend: Cassandra, with counts cached in Redis. Nothing is cached in process
memory.

A write decides in the user's partition by a lightweight transaction, writes the copies that lists and counts read, and
returns. If the process dies in between, the copies are missing until the outbox's sweeper calls `committed_events`, or
the client repeats the call; both write them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from heapq import merge
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple, Self

from roost.engagement.v1 import engagement_service_pb2 as pb

from services.engagement.store import ReactionEntry, ReactionKind
from services.engagement.store.cassandra import schema
from services.engagement.store.cassandra.count_cache import CachedCounts
from services.engagement.store.cassandra.counts import ReactionCounter, batches_of, serialize_counts
from services.platform.caching.cache import SingleFlight
from services.platform.cassandra.keyed_lock import KeyedLocks, run_to_completion
from services.platform.cassandra.keyspace import Keyspace, Row, Statement
from services.platform.cassandra.outbox import Outbox
from services.platform.events.log import EventLog, Record
from services.platform.redis.client import Redis
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

if TYPE_CHECKING:
    from services.platform.backends.cluster import ClusterBackends

# As long as the outbox keeps its rows: until then its sweeper may ask whether an event was committed.
NOTE_TTL_S = 3 * 24 * 3600
# Attempts of one change. Each is lost to the same user's concurrent change in another process.
MAX_TRIES = 10
# Likes recounted per step when a user becomes absent or active.
ABSENCE_STEP = 500
_NO_BOUND = (1 << 63) - 1
_KINDS = {number: kind for kind, number in schema.NUMBERS.items()}


class _Reaction(NamedTuple):
    """One reaction of a user to a tweet, and the bucket of its copy by tweet. A reaction that is undone and made again
    has a new `reaction_id`."""

    user_id: int
    kind: int
    tweet_id: int
    reaction_id: int
    bucket: int

    def copies(self) -> list[Statement]:
        """Returns the statements that insert the copies."""
        user_id, kind, tweet_id, reaction_id, bucket = self
        return [
            (schema.COPY_BY_USER, (user_id, kind, reaction_id, tweet_id, schema.ADDED)),
            (schema.COPY_BY_TWEET, (tweet_id, bucket, kind, reaction_id, user_id, schema.ADDED)),
        ]

    def drops(self) -> list[Statement]:
        """Returns the statements that delete the rows of this reaction from the tables by user and by tweet. Their
        timestamp is newer than that of the inserts, so a late insert cannot bring a row back."""
        user_id, kind, tweet_id, reaction_id, bucket = self
        steps: list[Statement] = [
            (schema.DROP_BY_USER, (schema.REMOVED, user_id, kind, reaction_id)),
            (schema.DROP_BY_TWEET, (schema.REMOVED, tweet_id, bucket, kind, reaction_id)),
        ]
        if kind == schema.NUMBERS[ReactionKind.LIKE]:
            steps.append(
                (
                    schema.DROP_BY_TWEET,
                    (schema.FOREVER_US, tweet_id, schema.FIRST_BUCKET, schema.UNCOUNTED, reaction_id),
                )
            )
        return steps


class CassandraEngagementStore:
    """An EngagementStore on one keyspace. `outbox` is one of the service's workers. `clock` returns Unix seconds."""

    def __init__(self, keyspace: Keyspace, redis: Redis, log: EventLog, clock: Callable[[], float]) -> None:
        self.keyspace = keyspace
        self._shared = CachedCounts(redis, time.monotonic)
        self.outbox = Outbox(keyspace, log, clock, self.committed_events)
        self.counter = ReactionCounter(keyspace, clock)
        self._locks = KeyedLocks()
        # Keys are (tweet id, user id, is like). Identical concurrent calls are coalesced.
        self._likes: SingleFlight[tuple[int, int, bool], int] = SingleFlight()

    @classmethod
    async def open(cls, cluster: ClusterBackends, log: EventLog, clock: Callable[[], float]) -> Self:
        """Opens the keyspace and applies its migrations. Raises as `Keyspace.open`."""
        return cls(
            await cluster.keyspace(schema.KEYSPACE, schema.KEYSPACES[schema.KEYSPACE]), cluster.redis, log, clock
        )

    async def like(self, tweet_id: int, user_id: int, event: Record) -> int:
        """Implements `EngagementStore.like`. The count is exact up to SHARD_FROM likes, and some seconds old above."""

        async def set_and_count() -> int:
            await self._set(ReactionKind.LIKE, tweet_id, user_id, event.event_id, (event,))
            return await self.counter.count_after_change(tweet_id, schema.NUMBERS[ReactionKind.LIKE])

        # Later unlikes must not be coalesced with one that began before this like.
        self._likes.forget((tweet_id, user_id, False))
        return await self._likes.run((tweet_id, user_id, True), set_and_count)

    async def unlike(self, tweet_id: int, user_id: int, event: Record) -> int:
        """Implements `EngagementStore.unlike`. The count is as exact as that of `like`."""

        async def unset_and_count() -> int:
            await self._unset(ReactionKind.LIKE, tweet_id, user_id, (event,))
            return await self.counter.count_after_change(tweet_id, schema.NUMBERS[ReactionKind.LIKE])

        self._likes.forget((tweet_id, user_id, True))
        return await self._likes.run((tweet_id, user_id, False), unset_and_count)

    async def bookmark(self, tweet_id: int, user_id: int, reaction_id: int) -> bool:
        made = await run_to_completion(self._set(ReactionKind.BOOKMARK, tweet_id, user_id, reaction_id, ()))
        if made:
            await self.counter.count_after_change(tweet_id, schema.NUMBERS[ReactionKind.BOOKMARK])
        return made

    async def unbookmark(self, tweet_id: int, user_id: int) -> bool:
        return await run_to_completion(self._unset(ReactionKind.BOOKMARK, tweet_id, user_id, ()))

    async def _set(
        self, kind: ReactionKind, tweet_id: int, user_id: int, reaction_id: int, events: Sequence[Record]
    ) -> bool:
        key = (user_id, schema.NUMBERS[kind], tweet_id)
        async with self._locks.hold(user_id):
            for _ in range(MAX_TRIES):
                held, _, bucket = await self._read_reaction(*key)
                if held is not None:
                    # The call that stored it may have failed before it wrote the copies.
                    await self._copy(_Reaction(*key, held, bucket).copies(), [tweet_id])
                    return False
                bucket = await self._bucket(tweet_id, schema.NUMBERS[kind], user_id)
                reaction = _Reaction(*key, reaction_id, bucket)
                note = (NOTE_TTL_S, reaction_id, bucket, tweet_id, user_id, schema.NOTE, reaction_id)
                values = (reaction_id, bucket, *key)
                if events:
                    applied = await self._commit(reaction, events, schema.SET, *values, *note)
                else:
                    applied = await self._commit(reaction, events, schema.SET_WITHOUT_EVENT, *values)
                if applied:
                    await self._finish(reaction, reaction.copies(), events)
                    return True
        raise _contended()

    async def _unset(self, kind: ReactionKind, tweet_id: int, user_id: int, events: Sequence[Record]) -> bool:
        key = (user_id, schema.NUMBERS[kind], tweet_id)
        async with self._locks.hold(user_id):
            for _ in range(MAX_TRIES):
                held, gone, bucket = await self._read_reaction(*key)
                if held is None:
                    if gone is not None:
                        # The call that stored it may have failed before it wrote the copies.
                        await self._copy(_Reaction(*key, gone, bucket).drops(), [tweet_id])
                    return False
                reaction = _Reaction(*key, held, bucket)
                values = (held, *key, held)
                if events:
                    note = (NOTE_TTL_S, held, bucket, tweet_id, user_id, schema.NOTE, events[0].event_id)
                    applied = await self._commit(reaction, events, schema.UNSET, *values, *note)
                else:
                    applied = await self._commit(reaction, events, schema.UNSET_WITHOUT_EVENT, *values)
                if applied:
                    await self._finish(reaction, reaction.drops(), events)
                    return True
        raise _contended()

    async def _commit(self, reaction: _Reaction, events: Sequence[Record], statement: str, *values: int) -> bool:
        """Writes the events to the outbox, then executes one lightweight transaction, which also notes the events.
        Returns whether it was applied."""
        await self.keyspace.write_each(self.outbox.statements(events))
        try:
            applied, _ = await self.keyspace.execute_lwt(statement, *values)
        except errors.RoostError:
            # The outcome is unknown unless the note exists; the caller may retry.
            if not events or not await self._find_notes(events):
                raise
            return True
        return applied

    async def _finish(self, reaction: _Reaction, steps: Sequence[Statement], events: Sequence[Record]) -> None:
        """Writes the copies after the transaction, recounts a sharded bucket, and passes the events to the outbox's
        publisher."""
        await self._copy(steps, [reaction.tweet_id])
        if reaction.bucket != schema.FIRST_BUCKET and not events:
            # Reactions with events are recounted by their consumer: see `ReactionCounter.recount_likes`.
            await self.counter.recount([(reaction.tweet_id, reaction.kind, reaction.bucket)])
        self.outbox.publish(events)

    async def _copy(self, steps: Iterable[Statement], tweet_ids: Iterable[int]) -> None:
        await self.keyspace.write_each(steps)
        await self._shared.changed(tweet_ids)

    async def committed_events(self, records: Sequence[Record]) -> list[Record]:
        """Returns those of the events whose transaction was applied, after writing their copies again in case the
        writer died."""
        notes = await self._find_notes(records)
        steps: list[Statement] = []
        for (user_id, _), (reaction_id, gone, bucket, tweet_id) in notes.items():
            like = (user_id, schema.NUMBERS[ReactionKind.LIKE], tweet_id)
            if gone is None:
                steps += _Reaction(*like, reaction_id, bucket).copies()
            else:
                steps += _Reaction(*like, gone, bucket).drops()
        await self._copy(steps, {note[3] for note in notes.values()})
        return [record for record in records if (record.key, record.event_id) in notes]

    async def _find_notes(self, records: Sequence[Record]) -> dict[tuple[int, int], Row]:
        """Returns the notes of the events that were committed, by (user id, event id)."""
        found = {}
        for record in records:
            rows = await self.keyspace.read_serial(schema.NOTED, record.key, schema.NOTE, record.event_id)
            if rows:
                found[record.key, record.event_id] = rows[0]
        return found

    async def _read_reaction(self, user_id: int, number: int, tweet_id: int) -> tuple[int | None, int | None, int]:
        rows = await self.keyspace.read_serial(schema.REACTION, user_id, number, tweet_id)
        return rows[0] if rows else (None, None, schema.FIRST_BUCKET)

    async def _bucket(self, tweet_id: int, number: int, user_id: int) -> int:
        sharded = await self.keyspace.read(schema.SHARDED, tweet_id, number)
        return schema.bucket_of(user_id) if sharded else schema.FIRST_BUCKET

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
        """Implements `EngagementStore.batch_get_counts`. Counts above SHARD_FROM are some seconds old."""
        frames, storable = await self._shared.frames(list(dict.fromkeys(ids)))
        missing = [tweet_id for tweet_id in dict.fromkeys(ids) if tweet_id not in frames]
        if missing:
            began = self._shared.now()
            counts = await self.counter.counts(missing)
            loaded = {tweet_id: serialize_counts(tweet_id, counts) for tweet_id in missing}
            sharded = {tweet_id for (tweet_id, _), count in counts.items() if count.others is not None}
            await self._shared.put({i: frame for i, frame in loaded.items() if i in storable}, sharded, began)
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
            await self._copy(steps, [entry.id for entry in page])
            below = page[-1].reaction_id

    async def close(self) -> None:
        """Stops the retries of failed publications. The connections belong to the process and stay open."""
        await self._shared.close()


def _contended() -> errors.RoostError:
    return errors.unavailable(
        "too many concurrent changes of this like or bookmark: try again", reason=Reason.CONTENDED
    )
