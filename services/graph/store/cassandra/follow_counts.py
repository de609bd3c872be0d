"""Computes follower and followee counts by counting rows, so that a repeated write is not counted twice.

A write marks the counts that it changes as dirty. A count becomes clean when its rows are counted at least
SETTLED_AFTER_MS after the last change. If a dirty count is at most SMALL, its rows are counted at every read; if the
count is larger, at most once a second. If a user has very many followers, the rows of the followers are sharded into
buckets, and only dirty buckets are counted again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from services.graph.store.cassandra import schema
from services.graph.store.cassandra.relationship import FOLLOWERS, FOLLOWING, Statement
from services.platform.cassandra.keyspace import Keyspace

# Maximum size of a dirty count whose rows are counted at every read, so that the result includes every change. Counting
# this many rows takes the server about a millisecond.
SMALL = 1_000
# Minimum time in milliseconds between two counts of the rows of a dirty count above SMALL.
RECOUNT_EVERY_MS = 1_000
# Time in milliseconds after which a change is settled: a count that begins later includes the change. The dirty mark
# and the rows of a change become visible within this time of each other, and clocks of processes differ by less.
SETTLED_AFTER_MS = 10_000
# Number of followers from which a user's list is sharded: new followers are stored in BUCKETS more buckets, by id. A
# partition of 100,000 rows takes about 5 MB.
SHARD_FROM = 100_000
BUCKETS = 64
# Maximum number of users remembered as sharded; beyond it, an arbitrary user is dropped and found again at the next
# count. A user takes about 60 bytes: 6 MB in all.
MAX_SHARDED_CACHED = 100_000
# 2^64 divided by the golden ratio: multiplying by it spreads any difference between ids into the upper bits.
_MIX = 0x9E3779B97F4A7C15


class FollowCount(NamedTuple):
    """A number of edges. `fresh` is true if the edges were counted just now, or have not changed since they were
    counted; if it is false, the number may lack the newest changes."""

    edges: int
    fresh: bool


class _CountRow(NamedTuple):
    side: int
    bucket: int
    changed_ms: int
    counted_ms: int
    edges: int


class FollowCounts:
    """Counts the rows of following_by_user and followers_by_user. `clock` returns Unix seconds. Methods raise the
    errors of Keyspace."""

    def __init__(self, keyspace: Keyspace, clock: Callable[[], float]) -> None:
        self._keyspace = keyspace
        self._clock = clock
        self._sharded: set[int] = set()

    def bucket(self, followee_id: int, follower_id: int) -> int:
        """Returns the bucket in which the row of a new follower is stored. Any bucket would be correct, because the
        row of the pair stores the bucket and lists read all buckets."""
        if followee_id not in self._sharded:
            return 0
        return 1 + (follower_id * _MIX % (1 << 64) >> 58) % BUCKETS

    async def buckets(self, user_id: int) -> range:
        """Returns the buckets that hold the user's followers."""
        if user_id in self._sharded:
            return range(1 + BUCKETS)
        rows = await self._keyspace.read(schema.COUNTS, user_id)
        self._learn(user_id, (bucket for _, bucket, *_ in rows))
        return range(1 + BUCKETS) if user_id in self._sharded else range(1)

    def dirty_statements(self, counted: Iterable[tuple[int, int, int]]) -> list[Statement]:
        """Returns the statements that mark counts as dirty; each count is given as (user id, side, bucket)."""
        now_ms = self._now_ms()
        return [(schema.MARK_DIRTY, (now_ms * 1000, now_ms, *key)) for key in counted]

    async def of(
        self, user_ids: Sequence[int], sides: Collection[int] = (FOLLOWERS, FOLLOWING)
    ) -> dict[int, tuple[FollowCount, FollowCount]]:
        """Returns (follower count, followee count) by user id, without users who never had an edge. The counts of a
        side that is not in `sides` may be out of date, because they are not counted again."""
        ids = list(dict.fromkeys(user_ids))
        now_ms = self._now_ms()
        rows = await self._keyspace.read_each(schema.COUNTS, [(user_id,) for user_id in ids])
        rows_by_user = {
            user_id: [_count_row(row) for row in found] for user_id, found in zip(ids, rows, strict=True) if found
        }
        due = [
            (user_id, entry)
            for user_id, entries in rows_by_user.items()
            for entry in entries
            if entry.side in sides and _is_due(entry, now_ms)
        ]
        counted = dict(zip(due, await self._count(due, now_ms), strict=True)) if due else {}
        uncounted = await self._uncounted(list(rows_by_user), sides)
        totals: dict[int, tuple[FollowCount, FollowCount]] = {}
        for user_id, entries in rows_by_user.items():
            sums, fresh = [0, 0], [True, True]
            for entry in entries:
                sums[entry.side] += counted.get((user_id, entry), entry.edges)
                fresh[entry.side] &= (user_id, entry) in counted or _is_settled(entry)
            self._learn(user_id, (entry.bucket for entry in entries))
            shown = [max(sums[side] - uncounted.get((user_id, side), 0), 0) for side in (FOLLOWERS, FOLLOWING)]
            totals[user_id] = (FollowCount(shown[0], fresh[0]), FollowCount(shown[1], fresh[1]))
        return totals

    async def followers(self, user_id: int) -> FollowCount:
        """Returns the follower count of one user."""
        found = await self.of((user_id,), (FOLLOWERS,))
        return found[user_id][0] if user_id in found else FollowCount(0, True)

    async def set_absent(self, user_id: int, side: int, other_ids: Sequence[int], absent: bool, at_us: int) -> None:
        """Excludes the user from the count `side` (FOLLOWERS or FOLLOWING) of each of `other_ids` if `absent` is true;
        otherwise includes the user again. `at_us` is the time of the suspension, deactivation or reinstatement in Unix
        microseconds; a call changes nothing if a call with a later `at_us` was made before."""
        if absent:
            statements = [(schema.UNCOUNT, (other_id, side, user_id, at_us)) for other_id in other_ids]
        else:
            statements = [(schema.COUNT_AGAIN, (at_us, other_id, side, user_id)) for other_id in other_ids]
        await self._keyspace.write_each(statements)

    async def _uncounted(self, user_ids: Sequence[int], sides: Collection[int]) -> dict[tuple[int, int], int]:
        """Returns how many edges each count excludes, by (user id, side), without zeros."""
        starts = range(0, len(user_ids), schema.UNCOUNTED_PER_READ)
        batches = [(list(user_ids[at : at + schema.UNCOUNTED_PER_READ]), list(sides)) for at in starts]
        found = [tuple(row) for rows in await self._keyspace.read_each(schema.ANY_UNCOUNTED, batches) for row in rows]
        counts = await self._keyspace.read_each(schema.COUNT_UNCOUNTED, found) if found else []
        return {(user_id, side): int(rows[0][0]) for (user_id, side), rows in zip(found, counts, strict=True)}

    async def _count(self, due: Sequence[tuple[int, _CountRow]], now_ms: int) -> list[int]:
        """Counts the rows of each count in `due` (user id, count row), in parallel, and returns the results in order.
        Stores a result if it is greater than SMALL, or if the count is clean after it."""
        keyspace = self._keyspace
        followers = [(user_id, entry.bucket) for user_id, entry in due if entry.side == FOLLOWERS]
        following = [(user_id,) for user_id, entry in due if entry.side == FOLLOWING]
        found = {
            FOLLOWERS: iter(await keyspace.read_each(schema.COUNT_FOLLOWERS, followers) if followers else ()),
            FOLLOWING: iter(await keyspace.read_each(schema.COUNT_FOLLOWING, following) if following else ()),
        }
        numbers = [int(next(found[entry.side])[0][0]) for _, entry in due]
        statements: list[Statement] = []
        for (user_id, entry), edges in zip(due, numbers, strict=True):
            if edges > SMALL or now_ms >= entry.changed_ms + SETTLED_AFTER_MS:
                key = (user_id, entry.side, entry.bucket)
                statements.append((schema.SET_COUNT, (now_ms * 1000, now_ms, edges, *key)))
            if entry.side == FOLLOWERS and entry.bucket == 0 and edges >= SHARD_FROM and user_id not in self._sharded:
                # A row of counts for bucket 1 makes every process treat this user as sharded. It is written before any
                # follower is stored in that bucket.
                statements += self.dirty_statements([(user_id, FOLLOWERS, 1)])
        if statements:
            await keyspace.write_each(statements)
        return numbers

    def _learn(self, user_id: int, buckets: Iterable[int]) -> None:
        if any(buckets):
            if len(self._sharded) >= MAX_SHARDED_CACHED:
                self._sharded.pop()
            self._sharded.add(user_id)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _count_row(row: Sequence[int | None]) -> _CountRow:
    side, bucket, changed_ms, counted_ms, edges = row
    return _CountRow(side or 0, bucket or 0, changed_ms or 0, counted_ms or 0, edges or 0)


def _is_settled(entry: _CountRow) -> bool:
    return entry.counted_ms >= entry.changed_ms + SETTLED_AFTER_MS


def _is_due(entry: _CountRow, now_ms: int) -> bool:
    if _is_settled(entry):
        return False
    return entry.edges <= SMALL or now_ms - entry.counted_ms >= RECOUNT_EVERY_MS
