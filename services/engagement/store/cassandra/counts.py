"""Counts the reactions to tweets in Cassandra.

A bucket is one partition of `marks_by_tweet`. All reactions to a tweet are rows of its first bucket, which are counted
at each read, until there are schema.SHARD_FROM of a kind. Later reactions of this kind are rows of one of
schema.BUCKETS more buckets, chosen by user. These buckets are counted after changes, and reads add the totals stored by
the last count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from roost.engagement.v1 import engagement_service_pb2 as pb

from services.engagement.store import ReactionKind
from services.engagement.store.cassandra import schema
from services.engagement.store.cassandra.count_cache import CachedCounts
from services.platform.cassandra.keyspace import Keyspace, Row

# Maximum number of tweet ids per statement; more ids are read by several statements. Each tweet has at most 2 × 64 rows
# of totals, so the result of a statement has fewer rows than a page of the driver.
IDS_PER_READ = 50


class ReactionCount(NamedTuple):
    """The number of reactions of one kind to one tweet: the count of its first bucket, and the sum of the stored totals
    of its other buckets (None if it has no other buckets)."""

    first: int
    others: int | None = None

    @property
    def sum(self) -> int:
        return self.first + (self.others or 0)


NO_REACTIONS = ReactionCount(0)


class ReactionCounter:
    """Counts reactions. `clock` returns Unix seconds; its times order concurrent counts of one bucket. Methods raise
    the errors of Keyspace."""

    def __init__(self, keyspace: Keyspace, count_cache: CachedCounts, clock: Callable[[], float]) -> None:
        self._keyspace = keyspace
        self._count_cache = count_cache
        self._clock = clock

    async def recount_likes(self, changed: Iterable[tuple[int, int]]) -> int:
        """Counts the likes in each sharded bucket that contains a changed like, and stores the totals. `changed` are
        the (tweet id, user id) of the likes that were made or undone. Returns how many buckets it counted."""
        pairs = set(changed)
        number = schema.NUMBERS[ReactionKind.LIKE]
        totals = await self._keyspace.read_each(
            schema.TOTALS, ((batch,) for batch in batches_of({tweet for tweet, _ in pairs}))
        )
        sharded = {tweet_id for rows in totals for tweet_id, kind, _ in rows if kind == number}
        buckets = {(tweet_id, number, schema.bucket_of(user_id)) for tweet_id, user_id in pairs if tweet_id in sharded}
        await self.recount(buckets)
        return len(buckets)

    async def recount(self, buckets: Iterable[tuple[int, int, int]]) -> None:
        """Counts the reactions in each bucket, given as (tweet id, kind, bucket), and stores the totals. If two
        processes count one bucket concurrently, the total of the count that began later remains."""
        changed = list(buckets)
        for tweet_id, number, bucket in changed:
            began = int(self._clock() * 1_000_000)
            ((total,),) = await self._keyspace.read(schema.COUNTED, tweet_id, bucket, number)
            await self._keyspace.write(schema.PUT_TOTAL, tweet_id, number, bucket, total, began)
        await self._count_cache.recounted(tweet_id for tweet_id, _, _ in changed)

    async def count_after_change(self, tweet_id: int, number: int) -> int:
        """Returns the number of reactions of a kind to the tweet; called after a change. If the first bucket has
        reached SHARD_FROM reactions, marks the tweet as sharded: later reactions of this kind are stored in the other
        buckets."""
        counts = await self.counts([tweet_id])
        count = counts.get((tweet_id, number), NO_REACTIONS)
        if count.first >= schema.SHARD_FROM and count.others is None:
            await self._keyspace.write(schema.PUT_TOTAL, tweet_id, number, schema.FIRST_BUCKET + 1, 0, schema.ADDED)
        return (
            count.sum - counts.get((tweet_id, schema.UNCOUNTED), NO_REACTIONS).sum
            if number == schema.NUMBERS[ReactionKind.LIKE]
            else count.sum
        )

    async def counts(self, ids: Sequence[int]) -> dict[tuple[int, int], ReactionCount]:
        """Returns the counts of these tweets by (tweet id, kind). Leaves out kinds of which a tweet has no reaction."""
        firsts, others = await asyncio.gather(
            self._first_counts(ids),
            self._keyspace.read_each(schema.TOTALS, ((batch,) for batch in batches_of(ids))),
        )
        counts = {(tweet_id, number): ReactionCount(total) for rows in firsts for tweet_id, number, total in rows}
        for tweet_id, number, total in chain.from_iterable(others):
            first, so_far = counts.get((tweet_id, number), NO_REACTIONS)
            counts[tweet_id, number] = ReactionCount(first, (so_far or 0) + total)
        return counts

    async def _first_counts(self, ids: Sequence[int]) -> Sequence[Sequence[Row]]:
        """Returns rows of (tweet id, kind, count) of the first buckets."""
        batches = batches_of(ids)
        if len(ids) > 1:
            found = await self._keyspace.read_each(
                schema.ANY_REACTIONS, ((batch, schema.FIRST_BUCKET) for batch in batches)
            )
            batches = [[tweet_id for tweet_id, _ in rows] for rows in found]
        keys = ((tweet_id, schema.FIRST_BUCKET) for tweet_id in chain.from_iterable(batches))
        return await self._keyspace.read_each(schema.FIRST_COUNTED, keys)


def serialize_counts(tweet_id: int, counts: Mapping[tuple[int, int], ReactionCount]) -> bytes:
    """Returns the counts of one tweet as a serialized BatchGetCountsResponse (a frame); empty bytes if the tweet has no
    likes and bookmarks. Concatenated frames parse as one response."""
    likes, bookmarks = (counts.get((tweet_id, schema.NUMBERS[kind]), NO_REACTIONS).sum for kind in ReactionKind)
    likes = max(likes - counts.get((tweet_id, schema.UNCOUNTED), NO_REACTIONS).sum, 0)
    if not (likes or bookmarks):
        return b""
    found = pb.TweetCounts(tweet_id=tweet_id, likes=likes, bookmarks=bookmarks)
    return pb.BatchGetCountsResponse(counts=[found]).SerializeToString()


def batches_of(ids: Iterable[int]) -> list[list[int]]:
    wanted = list(dict.fromkeys(ids))
    return [wanted[at : at + IDS_PER_READ] for at in range(0, len(wanted), IDS_PER_READ)]
