"""Counts of followers and followees, taken by counting rows: an event that comes twice cannot count twice.

A write marks the counts that it changes. A count is believed once it was taken well after the last mark; until then a small one is
taken anew at every reading, and a large one at most once a second. Followers of the very many lie in buckets, and only those that
were marked are counted again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from services.graph.store.cassandra import schema
from services.graph.store.cassandra.relationship import FOLLOWERS, FOLLOWING, Statement
from services.platform.cassandra.keyspace import Keyspace

# Up to here a count costs the server about a millisecond, and is exact at every reading.
SMALL = 1_000
# How often a larger count is taken while it changes.
RECOUNT_EVERY_MS = 1_000
# The mark and the rows of a change become visible within this of each other, and clocks of processes differ by less.
SETTLED_AFTER_MS = 10_000
# A partition of a hundred thousand rows is some 5 MB: beyond it followers are spread, each new one by its id.
SPREAD_FROM = 100_000
BUCKETS = 64
# Users known to be spread, at about 60 bytes: 6 MB. Who is forgotten is learned at the next count.
MAX_SPREAD_KNOWN = 100_000
# 2^64 divided by the golden ratio: multiplied by it, ids that differ in any bit differ in the upper ones.
_MIX = 0x9E3779B97F4A7C15


class Tally(NamedTuple):
    """A number of edges, and whether it was taken just now or is known not to have changed."""

    edges: int
    fresh: bool


class _Kept(NamedTuple):
    side: int
    bucket: int
    changed_ms: int
    counted_ms: int
    edges: int


class Tallies:
    """Counts over the rows of following_by_user and followers_by_user. `clock` gives unix seconds."""

    def __init__(self, keyspace: Keyspace, clock: Callable[[], float]) -> None:
        self._keyspace = keyspace
        self._clock = clock
        self._spread: set[int] = set()

    def bucket(self, followee_id: int, follower_id: int) -> int:
        """Where a new follower's row is to lie. Readers find it wherever: the pair keeps the place, and lists read all."""
        if followee_id not in self._spread:
            return 0
        return 1 + (follower_id * _MIX % (1 << 64) >> 58) % BUCKETS

    async def buckets(self, user_id: int) -> range:
        """The buckets that the user's followers lie in."""
        if user_id in self._spread:
            return range(1 + BUCKETS)
        rows = await self._keyspace.read(schema.COUNTS, user_id)
        self._learn(user_id, (bucket for _, bucket, *_ in rows))
        return range(1 + BUCKETS) if user_id in self._spread else range(1)

    def marks(self, counted: Iterable[tuple[int, int, int]]) -> list[Statement]:
        """The steps that mark counts, given as (user id, side, bucket), as changed now."""
        now_ms = self._now_ms()
        return [(schema.MARK, (now_ms * 1000, now_ms, *key)) for key in counted]

    async def of(
        self, user_ids: Sequence[int], sides: Collection[int] = (FOLLOWERS, FOLLOWING)
    ) -> dict[int, tuple[Tally, Tally]]:
        """Followers and followees of each user, those of `sides` alone; nothing about users who never had any."""
        ids = list(dict.fromkeys(user_ids))
        now_ms = self._now_ms()
        rows = await self._keyspace.read_each(schema.COUNTS, [(user_id,) for user_id in ids])
        kept = {user_id: [_kept(row) for row in found] for user_id, found in zip(ids, rows, strict=True) if found}
        due = [
            (user_id, entry)
            for user_id, entries in kept.items()
            for entry in entries
            if entry.side in sides and _is_due(entry, now_ms)
        ]
        counted = dict(zip(due, await self._count(due, now_ms), strict=True)) if due else {}
        uncounted = await self._uncounted(list(kept), sides)
        totals: dict[int, tuple[Tally, Tally]] = {}
        for user_id, entries in kept.items():
            sums, fresh = [0, 0], [True, True]
            for entry in entries:
                sums[entry.side] += counted.get((user_id, entry), entry.edges)
                fresh[entry.side] &= (user_id, entry) in counted or _is_settled(entry)
            self._learn(user_id, (entry.bucket for entry in entries))
            shown = [max(sums[side] - uncounted.get((user_id, side), 0), 0) for side in (FOLLOWERS, FOLLOWING)]
            totals[user_id] = (Tally(shown[0], fresh[0]), Tally(shown[1], fresh[1]))
        return totals

    async def followers(self, user_id: int) -> Tally:
        """Of one user."""
        found = await self.of((user_id,), (FOLLOWERS,))
        return found[user_id][0] if user_id in found else Tally(0, True)

    async def set_absent(self, user_id: int, side: int, other_ids: Sequence[int], absent: bool, at_us: int) -> None:
        """Leaves the user out of one count of each of these people, or counts the user again; `at_us` is when that was decided."""
        if absent:
            steps = [(schema.UNCOUNT, (other_id, side, user_id, at_us)) for other_id in other_ids]
        else:
            steps = [(schema.COUNT_AGAIN, (at_us, other_id, side, user_id)) for other_id in other_ids]
        await self._keyspace.write_each(steps)

    async def _uncounted(self, user_ids: Sequence[int], sides: Collection[int]) -> dict[tuple[int, int], int]:
        """How many edges each count leaves out, by user and side, where there are any."""
        starts = range(0, len(user_ids), schema.UNCOUNTED_AT_ONCE)
        lots = [(list(user_ids[at : at + schema.UNCOUNTED_AT_ONCE]), list(sides)) for at in starts]
        found = [tuple(row) for rows in await self._keyspace.read_each(schema.ANY_UNCOUNTED, lots) for row in rows]
        counts = await self._keyspace.read_each(schema.COUNT_UNCOUNTED, found) if found else []
        return {(user_id, side): int(rows[0][0]) for (user_id, side), rows in zip(found, counts, strict=True)}

    async def _count(self, due: Sequence[tuple[int, _Kept]], now_ms: int) -> list[int]:
        """Counts rows, side by side, and keeps what will be believed or was dear."""
        keyspace = self._keyspace
        followers = [(user_id, entry.bucket) for user_id, entry in due if entry.side == FOLLOWERS]
        following = [(user_id,) for user_id, entry in due if entry.side == FOLLOWING]
        found = {
            FOLLOWERS: iter(await keyspace.read_each(schema.COUNT_FOLLOWERS, followers) if followers else ()),
            FOLLOWING: iter(await keyspace.read_each(schema.COUNT_FOLLOWING, following) if following else ()),
        }
        numbers = [int(next(found[entry.side])[0][0]) for _, entry in due]
        steps: list[Statement] = []
        for (user_id, entry), edges in zip(due, numbers, strict=True):
            if edges > SMALL or now_ms >= entry.changed_ms + SETTLED_AFTER_MS:
                key = (user_id, entry.side, entry.bucket)
                steps.append((schema.COUNTED, (now_ms * 1000, now_ms, edges, *key)))
            if entry.side == FOLLOWERS and entry.bucket == 0 and edges >= SPREAD_FROM and user_id not in self._spread:
                # The row of the first other bucket says so to everybody, before any follower lies there.
                steps += self.marks([(user_id, FOLLOWERS, 1)])
        if steps:
            await keyspace.write_each(steps)
        return numbers

    def _learn(self, user_id: int, buckets: Iterable[int]) -> None:
        if any(buckets):
            if len(self._spread) >= MAX_SPREAD_KNOWN:
                self._spread.pop()
            self._spread.add(user_id)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _kept(row: Sequence[int | None]) -> _Kept:
    side, bucket, changed_ms, counted_ms, edges = row
    return _Kept(side or 0, bucket or 0, changed_ms or 0, counted_ms or 0, edges or 0)


def _is_settled(entry: _Kept) -> bool:
    return entry.counted_ms >= entry.changed_ms + SETTLED_AFTER_MS


def _is_due(entry: _Kept, now_ms: int) -> bool:
    if _is_settled(entry):
        return False
    return entry.edges <= SMALL or now_ms - entry.counted_ms >= RECOUNT_EVERY_MS
