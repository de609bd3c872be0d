"""Writes reactions. A lightweight transaction (LWT) in the user's partition stores or deletes the reaction; then this
module writes the copies by user and by tweet, from which lists and counts are read.

If the process dies in between, the copies are missing until the outbox's sweeper finds the reaction's event
(`CommittedReactions`), or until the client repeats the call. Either one writes the copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.engagement.store import ReactionKind
from services.engagement.store.cassandra import schema
from services.engagement.store.cassandra.count_cache import CachedCounts
from services.engagement.store.cassandra.counts import ReactionCounter
from services.engagement.store.cassandra.reactions import CommittedReactions, Reaction, ReactionCopies
from services.platform.cassandra.keyed_lock import KeyedLocks
from services.platform.cassandra.keyspace import Keyspace, Statement
from services.platform.cassandra.outbox import Outbox
from services.platform.events.log import EventLog, Record
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# The TTL of the note of an event (the row that proves that the event was committed) in seconds. It equals the TTL of
# outbox rows, because the sweeper reads the note of each unpublished event that it finds in the outbox.
NOTE_TTL_S = 3 * 24 * 3600
# Maximum number of attempts of one change; after that the call fails with UNAVAILABLE (CONTENDED). An attempt fails if
# another process changes the same user's partition at the same time.
MAX_TRIES = 10


class ReactionWriter:
    """Writes the reactions of one keyspace. `outbox` publishes their events. `clock` returns Unix seconds."""

    def __init__(
        self,
        keyspace: Keyspace,
        count_cache: CachedCounts,
        counter: ReactionCounter,
        log: EventLog,
        clock: Callable[[], float],
    ) -> None:
        self.copies = ReactionCopies(keyspace, count_cache)
        self.validator = CommittedReactions(keyspace, self.copies)
        self.outbox = Outbox(keyspace, log, clock, self.validator)
        self._keyspace = keyspace
        self._counter = counter
        self._locks = KeyedLocks()

    async def set(
        self, kind: ReactionKind, tweet_id: int, user_id: int, reaction_id: int, events: Sequence[Record]
    ) -> bool:
        """Stores the user's like or bookmark of the tweet, with the id `reaction_id`, unless the user has one. Returns
        whether this call stored it.

        `events` is empty or holds the one event of the change, which is published if the reaction was stored. Raises
        UNAVAILABLE with reason CONTENDED if other processes changed the user's reactions during MAX_TRIES attempts, and
        UNAVAILABLE or DEADLINE_EXCEEDED if Cassandra does not answer. In that case the reaction may be stored; the call
        can be repeated. Raises RESOURCE_EXHAUSTED if too many changes of this user are queued.
        """
        key = (user_id, schema.NUMBERS[kind], tweet_id)
        async with self._locks.hold(user_id):
            for _ in range(MAX_TRIES):
                held, _, bucket = await self._read_reaction(*key)
                if held is not None:
                    # An earlier call that changed this reaction may have failed before it wrote the copies.
                    await self.copies.write(Reaction(*key, held, bucket).copies(), [tweet_id], [user_id])
                    return False
                bucket = await self._bucket(tweet_id, schema.NUMBERS[kind], user_id)
                reaction = Reaction(*key, reaction_id, bucket)
                note = (NOTE_TTL_S, reaction_id, bucket, tweet_id, user_id, schema.NOTE, reaction_id)
                values = (reaction_id, bucket, *key)
                if events:
                    applied = await self._commit(events, schema.SET, *values, *note)
                else:
                    applied = await self._commit(events, schema.SET_WITHOUT_EVENT, *values)
                if applied:
                    await self._finish(reaction, reaction.copies(), events)
                    return True
        raise _contended()

    async def unset(self, kind: ReactionKind, tweet_id: int, user_id: int, events: Sequence[Record]) -> bool:
        """Deletes the user's like or bookmark of the tweet if the user has one. Returns whether this call deleted it.

        `events` is empty or holds the one event of the change, which is published if the reaction was deleted. Raises
        UNAVAILABLE with reason CONTENDED if other processes changed the user's reactions during MAX_TRIES attempts, and
        UNAVAILABLE or DEADLINE_EXCEEDED if Cassandra does not answer. In that case the reaction may be deleted; the
        call can be repeated. Raises RESOURCE_EXHAUSTED if too many changes of this user are queued.
        """
        key = (user_id, schema.NUMBERS[kind], tweet_id)
        async with self._locks.hold(user_id):
            for _ in range(MAX_TRIES):
                held, gone, bucket = await self._read_reaction(*key)
                if held is None:
                    if gone is not None:
                        # An earlier call that changed this reaction may have failed before it wrote the copies.
                        await self.copies.write(Reaction(*key, gone, bucket).drops(), [tweet_id], [user_id])
                    return False
                reaction = Reaction(*key, held, bucket)
                values = (held, *key, held)
                if events:
                    note = (NOTE_TTL_S, held, bucket, tweet_id, user_id, schema.NOTE, events[0].event_id)
                    applied = await self._commit(events, schema.UNSET, *values, *note)
                else:
                    applied = await self._commit(events, schema.UNSET_WITHOUT_EVENT, *values)
                if applied:
                    await self._finish(reaction, reaction.drops(), events)
                    return True
        raise _contended()

    async def _commit(self, events: Sequence[Record], statement: str, *values: int) -> bool:
        """Writes the events to the outbox, then executes one lightweight transaction, which also stores the note of the
        event (a row in the user's partition that proves that the event was committed). Returns whether the transaction
        was applied. Raises UNAVAILABLE or DEADLINE_EXCEEDED if its outcome is unknown."""
        await self._keyspace.write_each(self.outbox.statements(events))
        try:
            applied, _ = await self._keyspace.execute_lwt(statement, *values)
        except errors.RoostError:
            # The transaction was applied if the note exists; otherwise its outcome is unknown and the caller may retry.
            if not events or not await self.validator.find_notes(events):
                raise
            return True
        return applied

    async def _finish(self, reaction: Reaction, steps: Sequence[Statement], events: Sequence[Record]) -> None:
        """Writes or deletes the copies of the reaction after its transaction, then queues the events for publishing.

        If the reaction's copy by tweet is in a sharded bucket and there is no event, also counts the reactions of the
        bucket again.
        """
        await self.copies.write(steps, [reaction.tweet_id], [reaction.user_id])
        if reaction.bucket != schema.FIRST_BUCKET and not events:
            # If there is an event, its consumer counts the bucket again (`ReactionCounter.recount_likes`).
            await self._counter.recount([(reaction.tweet_id, reaction.kind, reaction.bucket)])
        self.outbox.publish(events)

    async def _read_reaction(self, user_id: int, number: int, tweet_id: int) -> tuple[int | None, int | None, int]:
        rows = await self._keyspace.read_serial(schema.REACTION, user_id, number, tweet_id)
        return rows[0] if rows else (None, None, schema.FIRST_BUCKET)

    async def _bucket(self, tweet_id: int, number: int, user_id: int) -> int:
        sharded = await self._keyspace.read(schema.SHARDED, tweet_id, number)
        return schema.bucket_of(user_id) if sharded else schema.FIRST_BUCKET


def _contended() -> errors.RoostError:
    return errors.unavailable(
        "too many concurrent changes of this like or bookmark: retry later", reason=Reason.CONTENDED
    )
