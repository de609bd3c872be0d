"""The cluster's engagement store, on Cassandra, with counts in Redis. Nothing is kept in process memory.

A write decides in the user's partition, then writes the copies that lists and counts are read from, then answers. Whoever died between
left a change without copies: `decided`, which the outbox's sweeper asks, writes them, and so does the repeat of a call that got no answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import merge
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple, Self

from roost.engagement.v1 import engagement_service_pb2 as pb

from services.engagement.store import Entry, Kind
from services.engagement.store.cassandra import schema
from services.engagement.store.cassandra.count_cache import CachedCounts
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

# As long as the outbox keeps its rows: until then somebody may ask whether an event is true.
NOTE_S = 3 * 24 * 3600
# The same user on several devices, by way of several processes: each try loses to one that won.
MAX_TRIES = 10
# In one statement: a node gathers them. Of totals that is at most 2 kinds of 64 rows each, well below what one read may bring.
IDS_PER_READ = 50
# Likes read and written in one go when somebody goes or comes back.
ABSENT_A_STEP = 500
_NO_BOUND = (1 << 63) - 1
_KINDS = {number: kind for kind, number in schema.NUMBERS.items()}


class _Mark(NamedTuple):
    """Where a user's mark on a tweet is copied to, one of its times: `place` names that time."""

    user_id: int
    kind: int
    tweet_id: int
    place: int
    bucket: int

    def copies(self) -> list[Statement]:
        """What writes the copies."""
        user_id, kind, tweet_id, place, bucket = self
        return [
            (schema.COPY_BY_USER, (user_id, kind, place, tweet_id, schema.MADE)),
            (schema.COPY_BY_TWEET, (tweet_id, bucket, kind, place, user_id, schema.MADE)),
        ]

    def drops(self) -> list[Statement]:
        """What takes them out, for good."""
        user_id, kind, tweet_id, place, bucket = self
        steps: list[Statement] = [
            (schema.DROP_BY_USER, (schema.TAKEN_OUT, user_id, kind, place)),
            (schema.DROP_BY_TWEET, (schema.TAKEN_OUT, tweet_id, bucket, kind, place)),
        ]
        if kind == schema.NUMBERS[Kind.LIKE]:
            steps.append(
                (schema.DROP_BY_TWEET, (schema.FOREVER_US, tweet_id, schema.FIRST_BUCKET, schema.UNCOUNTED, place))
            )
        return steps


class CassandraEngagementStore:
    """An EngagementStore over one keyspace. `outbox` is one of the service's workers; `clock` gives unix seconds."""

    def __init__(self, keyspace: Keyspace, redis: Redis, log: EventLog, clock: Callable[[], float]) -> None:
        self.keyspace = keyspace
        self._shared = CachedCounts(redis, time.monotonic)
        self.outbox = Outbox(keyspace, log, clock, self.decided)
        self._clock = clock
        self._turns = KeyedLocks()
        # By tweet, user and whether it is set: of many who want the same at once one does it, and all have its answer.
        self._likes: SingleFlight[tuple[int, int, bool], int] = SingleFlight()

    @classmethod
    async def open(cls, cluster: ClusterBackends, log: EventLog, clock: Callable[[], float]) -> Self:
        """The store in its keyspace, brought up to date. Errors as Keyspace.open."""
        return cls(
            await cluster.keyspace(schema.KEYSPACE, schema.KEYSPACES[schema.KEYSPACE]), cluster.redis, log, clock
        )

    async def like(self, tweet_id: int, user_id: int, event: Record) -> int:
        """See the port. The count is exact up to SPREAD_FROM likes, and some seconds old beyond."""

        async def set_and_count() -> int:
            await self._set(Kind.LIKE, tweet_id, user_id, event.event_id, (event,))
            return await self._count(tweet_id, schema.NUMBERS[Kind.LIKE])

        # Who wants it back from now on waits for this one, and joins none that was before it.
        self._likes.forget((tweet_id, user_id, False))
        return await self._likes.run((tweet_id, user_id, True), set_and_count)

    async def unlike(self, tweet_id: int, user_id: int, event: Record) -> int:
        """See the port, and `like`."""

        async def unset_and_count() -> int:
            await self._unset(Kind.LIKE, tweet_id, user_id, (event,))
            return await self._count(tweet_id, schema.NUMBERS[Kind.LIKE])

        self._likes.forget((tweet_id, user_id, True))
        return await self._likes.run((tweet_id, user_id, False), unset_and_count)

    async def bookmark(self, tweet_id: int, user_id: int, place: int) -> bool:
        """See the port."""
        made = await run_to_completion(self._set(Kind.BOOKMARK, tweet_id, user_id, place, ()))
        if made:
            await self._count(tweet_id, schema.NUMBERS[Kind.BOOKMARK])
        return made

    async def unbookmark(self, tweet_id: int, user_id: int) -> bool:
        """See the port."""
        return await run_to_completion(self._unset(Kind.BOOKMARK, tweet_id, user_id, ()))

    async def _set(self, kind: Kind, tweet_id: int, user_id: int, place: int, told: Sequence[Record]) -> bool:
        key = (user_id, schema.NUMBERS[kind], tweet_id)
        async with self._turns.hold(user_id):
            for _ in range(MAX_TRIES):
                held, _, bucket = await self._mark(*key)
                if held is not None:
                    # Perhaps by a call that got no further.
                    await self._copy(_Mark(*key, held, bucket).copies(), [tweet_id])
                    return False
                bucket = await self._bucket(tweet_id, schema.NUMBERS[kind], user_id)
                mark = _Mark(*key, place, bucket)
                note = (NOTE_S, place, bucket, tweet_id, user_id, schema.NOTE, place)
                values = (place, bucket, *key)
                if told:
                    applied = await self._decide(mark, told, schema.SET, *values, *note)
                else:
                    applied = await self._decide(mark, told, schema.SET_UNTOLD, *values)
                if applied:
                    await self._settle(mark, mark.copies(), told)
                    return True
        raise _contended()

    async def _unset(self, kind: Kind, tweet_id: int, user_id: int, told: Sequence[Record]) -> bool:
        key = (user_id, schema.NUMBERS[kind], tweet_id)
        async with self._turns.hold(user_id):
            for _ in range(MAX_TRIES):
                held, gone, bucket = await self._mark(*key)
                if held is None:
                    if gone is not None:
                        # Perhaps by a call that got no further.
                        await self._copy(_Mark(*key, gone, bucket).drops(), [tweet_id])
                    return False
                mark = _Mark(*key, held, bucket)
                values = (held, *key, held)
                if told:
                    note = (NOTE_S, held, bucket, tweet_id, user_id, schema.NOTE, told[0].event_id)
                    applied = await self._decide(mark, told, schema.UNSET, *values, *note)
                else:
                    applied = await self._decide(mark, told, schema.UNSET_UNTOLD, *values)
                if applied:
                    await self._settle(mark, mark.drops(), told)
                    return True
        raise _contended()

    async def _decide(self, mark: _Mark, told: Sequence[Record], statement: str, *values: int) -> bool:
        """One conditional write; whether it was applied. What it tells is in the outbox before, and noted with it."""
        await self.keyspace.write_each(self.outbox.statements(told))
        try:
            applied, _ = await self.keyspace.execute_lwt(statement, *values)
        except errors.RoostError:
            # Unless its note stands there, nobody knows: the caller may try again.
            if not told or not await self._notes(told):
                raise
            return True
        return applied

    async def _settle(self, mark: _Mark, steps: Sequence[Statement], told: Sequence[Record]) -> None:
        """After the decision: the copies, what is counted apart, then the events."""
        await self._copy(steps, [mark.tweet_id])
        if mark.bucket != schema.FIRST_BUCKET and not told:
            # Events bring the others here: see `recount_likes`.
            await self._recount([(mark.tweet_id, mark.kind, mark.bucket)])
        self.outbox.publish(told)

    async def _copy(self, steps: Iterable[Statement], tweet_ids: Iterable[int]) -> None:
        await self.keyspace.write_each(steps)
        await self._shared.changed(tweet_ids)

    async def decided(self, records: Sequence[Record]) -> list[Record]:
        """Those of these events that are true, their copies written anew. A change half made is seen through first."""
        notes = await self._notes(records)
        steps: list[Statement] = []
        for (user_id, _), (place, gone, bucket, tweet_id) in notes.items():
            like = (user_id, schema.NUMBERS[Kind.LIKE], tweet_id)
            if gone is None:
                steps += _Mark(*like, place, bucket).copies()
            else:
                steps += _Mark(*like, gone, bucket).drops()
        await self._copy(steps, {note[3] for note in notes.values()})
        return [record for record in records if (record.key, record.event_id) in notes]

    async def _notes(self, records: Sequence[Record]) -> dict[tuple[int, int], Row]:
        """The notes of those events that are true, by user and event."""
        found = {}
        for record in records:
            rows = await self.keyspace.read_serial(schema.NOTED, record.key, schema.NOTE, record.event_id)
            if rows:
                found[record.key, record.event_id] = rows[0]
        return found

    async def _mark(self, user_id: int, number: int, tweet_id: int) -> tuple[int | None, int | None, int]:
        rows = await self.keyspace.read_serial(schema.MARK, user_id, number, tweet_id)
        return rows[0] if rows else (None, None, schema.FIRST_BUCKET)

    async def _bucket(self, tweet_id: int, number: int, user_id: int) -> int:
        spread = await self.keyspace.read(schema.SPREAD, tweet_id, number)
        return schema.bucket_of(user_id) if spread else schema.FIRST_BUCKET

    async def list_likers(self, tweet_id: int, below: int, limit: int) -> list[Entry]:
        """See the port."""
        number, below = schema.NUMBERS[Kind.LIKE], below or _NO_BOUND
        spread = await self.keyspace.read(schema.SPREAD, tweet_id, number)
        buckets = range(schema.FIRST_BUCKET, schema.BUCKETS + 1) if spread else (schema.FIRST_BUCKET,)
        keys = ((tweet_id, bucket, number, below, limit) for bucket in buckets)
        found = await self.keyspace.read_each(schema.BY_TWEET, keys)
        return [Entry(*row) for row in islice(merge(*found, reverse=True), limit)]

    async def list_tweets(self, kind: Kind, user_id: int, below: int, limit: int) -> list[Entry]:
        """See the port."""
        rows = await self.keyspace.read(schema.BY_USER, user_id, schema.NUMBERS[kind], below or _NO_BOUND, limit)
        return [Entry(*row) for row in rows]

    async def batch_get_counts(self, ids: Sequence[int]) -> pb.BatchGetCountsResponse:
        """See the port. Counts above SPREAD_FROM are some seconds old."""
        frames, may_be_kept = await self._shared.frames(list(dict.fromkeys(ids)))
        missing = [tweet_id for tweet_id in dict.fromkeys(ids) if tweet_id not in frames]
        if missing:
            began = self._shared.now()
            counts = await self._counts(missing)
            loaded = {tweet_id: _frame(tweet_id, counts) for tweet_id in missing}
            spread = {tweet_id for (tweet_id, _), count in counts.items() if count.others is not None}
            await self._shared.keep({i: frame for i, frame in loaded.items() if i in may_be_kept}, spread, began)
            frames |= loaded
        return pb.BatchGetCountsResponse.FromString(b"".join([frames[tweet_id] for tweet_id in ids]))

    async def batch_get_viewer_states(self, user_id: int, ids: Sequence[int]) -> pb.BatchGetViewerStatesResponse:
        """See the port."""
        keys = ((user_id, list(_KINDS), lot) for lot in _lots(ids))
        rows = chain.from_iterable(await self.keyspace.read_each(schema.MARKED, keys))
        marked = {(tweet_id, _KINDS[number]) for number, tweet_id, place in rows if place is not None}
        response = pb.BatchGetViewerStatesResponse()
        for tweet_id in ids:
            liked, bookmarked = ((tweet_id, kind) in marked for kind in Kind)
            if liked or bookmarked:
                response.states.add(tweet_id=tweet_id, liked=liked, bookmarked=bookmarked)
        return response

    async def set_absent(self, user_id: int, absent: bool, at_us: int) -> None:
        """See the port."""
        below = 0
        while page := await self.list_tweets(Kind.LIKE, user_id, below, ABSENT_A_STEP):
            rows = [(entry.id, schema.FIRST_BUCKET, schema.UNCOUNTED, entry.place) for entry in page]
            steps: list[Statement]
            if absent:
                steps = [(schema.COPY_BY_TWEET, (*row, user_id, at_us)) for row in rows]
            else:
                steps = [(schema.DROP_BY_TWEET, (at_us, *row)) for row in rows]
            await self._copy(steps, [entry.id for entry in page])
            below = page[-1].place

    async def recount_likes(self, changed: Iterable[tuple[int, int]]) -> int:
        """Counts again where likes are spread, given (tweet, user) of each that came or went; how many buckets it counted."""
        pairs = set(changed)
        number = schema.NUMBERS[Kind.LIKE]
        totals = await self.keyspace.read_each(schema.TOTALS, ((lot,) for lot in _lots({tweet for tweet, _ in pairs})))
        spread = {tweet_id for rows in totals for tweet_id, kind, _ in rows if kind == number}
        buckets = {(tweet_id, number, schema.bucket_of(user_id)) for tweet_id, user_id in pairs if tweet_id in spread}
        await self._recount(buckets)
        return len(buckets)

    async def _recount(self, buckets: Iterable[tuple[int, int, int]]) -> None:
        """Counts these buckets, as (tweet, kind, bucket), and keeps what it found. Of two counts that meet the later begun one stays."""
        for tweet_id, number, bucket in buckets:
            began = int(self._clock() * 1_000_000)
            ((marks,),) = await self.keyspace.read(schema.COUNTED, tweet_id, bucket, number)
            await self.keyspace.write(schema.PUT_TOTAL, tweet_id, number, bucket, marks, began)

    async def _count(self, tweet_id: int, number: int) -> int:
        """How many marks of a kind a tweet has, after a change; once they are many, those to come are spread."""
        counts = await self._counts([tweet_id])
        count = counts.get((tweet_id, number), _NONE)
        if count.first >= schema.SPREAD_FROM and count.others is None:
            await self.keyspace.write(schema.PUT_TOTAL, tweet_id, number, schema.FIRST_BUCKET + 1, 0, schema.MADE)
        return (
            count.sum - counts.get((tweet_id, schema.UNCOUNTED), _NONE).sum
            if number == schema.NUMBERS[Kind.LIKE]
            else count.sum
        )

    async def _counts(self, ids: Sequence[int]) -> dict[tuple[int, int], _Count]:
        """The counts of these tweets by tweet and kind, where there are any."""
        firsts, others = await asyncio.gather(
            self._first_counts(ids),
            self.keyspace.read_each(schema.TOTALS, ((lot,) for lot in _lots(ids))),
        )
        counts = {(tweet_id, number): _Count(marks) for rows in firsts for tweet_id, number, marks in rows}
        for tweet_id, number, marks in chain.from_iterable(others):
            first, so_far = counts.get((tweet_id, number), _NONE)
            counts[tweet_id, number] = _Count(first, (so_far or 0) + marks)
        return counts

    async def _first_counts(self, ids: Sequence[int]) -> Sequence[Sequence[Row]]:
        """Rows of (tweet, kind, count) of the first buckets."""
        lots = _lots(ids)
        if len(ids) > 1:
            found = await self.keyspace.read_each(schema.ANY_MARKS, ((lot, schema.FIRST_BUCKET) for lot in lots))
            lots = [[tweet_id for tweet_id, _ in rows] for rows in found]
        keys = ((tweet_id, schema.FIRST_BUCKET) for tweet_id in chain.from_iterable(lots))
        return await self.keyspace.read_each(schema.FIRST_COUNTED, keys)

    async def close(self) -> None:
        """Says no more of its changes. The connections are the process's."""
        await self._shared.close()


class _Count(NamedTuple):
    """How many marks of a kind a tweet has: in its first bucket, and in the others once they are spread."""

    first: int
    others: int | None = None

    @property
    def sum(self) -> int:
        return self.first + (self.others or 0)


_NONE = _Count(0)


def _frame(tweet_id: int, counts: Mapping[tuple[int, int], _Count]) -> bytes:
    """The counts as an answer that holds nothing else: concatenated, such answers are one."""
    likes, bookmarks = (counts.get((tweet_id, schema.NUMBERS[kind]), _NONE).sum for kind in Kind)
    likes = max(likes - counts.get((tweet_id, schema.UNCOUNTED), _NONE).sum, 0)
    if not (likes or bookmarks):
        return b""
    found = pb.TweetCounts(tweet_id=tweet_id, likes=likes, bookmarks=bookmarks)
    return pb.BatchGetCountsResponse(counts=[found]).SerializeToString()


def _lots(ids: Iterable[int]) -> list[list[int]]:
    wanted = list(dict.fromkeys(ids))
    return [wanted[at : at + IDS_PER_READ] for at in range(0, len(wanted), IDS_PER_READ)]


def _contended() -> errors.RoostError:
    return errors.unavailable("the same is being changed by others", reason=Reason.CONTENDED)
