"""Reads the lists of tweets by author and by time from Cassandra, and caches the newest ids and the counts of authors.

The rows of an author are in one bucket per month, those of all authors in buckets per hour; a bucket is one or more
partitions. A list is read from the newest bucket, then from the next 2, 4, … buckets concurrently until enough ids are
found. Most pages need one or two partitions.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Mapping, Sequence

from roost.tweet.v1 import tweet_service_pb2

from services.platform.cassandra.keyspace import Keyspace
from services.platform.redis.shared_versions import SharedVersions
from services.tweet.store.cache import AuthorIds
from services.tweet.store.cassandra import schema as cql
from services.tweet.store.cassandra.versioned_cache import CACHED_AUTHORS, VersionedCache, author_versions

# Maximum number of months of an author that a list or a count reads: eighty years.
MAX_MONTHS = 1_000
# Maximum number of buckets that a list reads concurrently.
MAX_BUCKETS = 8
# Maximum number of hours that one read of the list of hours with tweets returns. Usually the first few hours fill a
# page.
HOURS_PAGE = 64
# Minimum number of ids read for an author who is not cached: a few pages.
FILL_IDS = 128


class CassandraTweetLists:
    """Implements TweetLists on Cassandra."""

    def __init__(self, keyspace: Keyspace, shared: SharedVersions) -> None:
        self._keyspace = keyspace
        self._shared = shared
        self._newest: VersionedCache[AuthorIds] = VersionedCache(CACHED_AUTHORS, time.monotonic)
        self._counts: VersionedCache[int] = VersionedCache(CACHED_AUTHORS, time.monotonic)

    async def batch_list_author_ids(
        self, author_ids: Sequence[int], before_id: int, per_author: int
    ) -> tweet_service_pb2.BatchListAuthorTweetIdsResponse:
        response = tweet_service_pb2.BatchListAuthorTweetIdsResponse()
        for author_id, ids in (await self._newest_of(author_ids, before_id, per_author)).items():
            if ids:
                response.authors.add(author_id=author_id, ids=ids)
        return response

    async def list_author(
        self, author_id: int, before_id: int, limit: int, *, replies: bool = True, retweets: bool = True
    ) -> Sequence[int]:
        if replies and retweets:
            return (await self._newest_of((author_id,), before_id, limit))[author_id]
        statement = cql.AUTHOR_IDS[replies, retweets]
        return (await self._author_ids((author_id,), before_id, limit, statement))[author_id]

    async def list_removed(self, author_id: int, before_id: int, limit: int) -> Sequence[int]:
        return (await self._author_ids((author_id,), before_id, limit, cql.REMOVED_IDS))[author_id]

    async def list_recent(self, before_id: int, limit: int) -> Sequence[int]:
        bound = before_id or cql.NO_BOUND
        found: list[int] = []
        hour = cql.hour_of(bound)
        while hours := await self._hours(cql.HOURS_DOWN, hour):
            for some in _widening(hours):
                found += sorted(await self._of_hours(cql.HOUR_DOWN, some, bound, limit), reverse=True)
                if len(found) >= limit:
                    return found[:limit]
            if len(hours) < HOURS_PAGE:
                break
            hour = hours[-1] - 1
        return found

    async def batch_count(self, author_ids: Sequence[int]) -> Mapping[int, int]:
        async def load(missing: Sequence[int]) -> dict[int, int]:
            found = await self._count(missing)
            return {author_id: found.get(author_id, 0) for author_id in missing}

        counts = await self._counts.get_many(await author_versions(self._shared, author_ids), load)
        return {author_id: count for author_id, count in counts.items() if count}

    async def ids_from(self, after_id: int, limit: int) -> list[int]:
        """Returns the smallest ids above `after_id` of live and hidden tweets, in ascending order, at most `limit`. If
        the result has fewer than `limit` ids, no more exist."""
        found: list[int] = []
        hour = cql.hour_of(after_id)
        while hours := await self._hours(cql.HOURS_UP, hour):
            for some in _widening(hours):
                found += sorted(await self._of_hours(cql.HOUR_UP, some, after_id, limit))
                if len(found) >= limit:
                    return found[:limit]
            if len(hours) < HOURS_PAGE:
                break
            hour = hours[-1] + 1
        return found

    async def _newest_of(self, author_ids: Sequence[int], before_id: int, limit: int) -> dict[int, Sequence[int]]:
        """Returns for each author the newest `limit` ids of live tweets below `before_id` (0: no bound), newest first.
        Reads them from Cassandra only if the cached ids of the author are not enough. Each author has an entry."""
        # The newest ids of the author are read and cached, whatever `before_id` is, so that later calls with another
        # bound can use them. Usually they contain the ids below `before_id`.
        fill = FILL_IDS if before_id else max(limit, FILL_IDS)

        async def load(missing: Sequence[int]) -> dict[int, AuthorIds]:
            found = await self._author_ids(missing, 0, fill)
            return {a: AuthorIds(array("q", reversed(ids)), complete=len(ids) < fill) for a, ids in found.items()}

        known = await self._newest.get_many(await author_versions(self._shared, author_ids), load)
        lists: dict[int, Sequence[int]] = {}
        deeper: list[int] = []
        for author_id, newest in known.items():
            ids_known = newest.newest(before_id, limit)
            lists[author_id] = () if ids_known is None else ids_known
            if ids_known is None:
                deeper.append(author_id)
        return lists | await self._author_ids(deeper, before_id, limit) if deeper else lists

    async def _author_ids(
        self, author_ids: Iterable[int], before_id: int, limit: int, statement: str = cql.AUTHOR_IDS[True, True]
    ) -> dict[int, list[int]]:
        """Reads for each author the newest `limit` ids below `before_id` (0: no bound) from Cassandra, newest first. Each
        author has an entry. `statement` is one of AUTHOR_IDS, for live tweets, or REMOVED_IDS."""
        bound = before_id or cql.NO_BOUND
        found: dict[int, list[int]] = {author_id: [] for author_id in author_ids}
        left = await self._months(found, bound)
        width = 1
        while left:
            keys = [(author_id, month) for author_id, months in left.items() for month in months[:width]]
            answers = await self._keyspace.read_each(statement, [(*key, bound, limit) for key in keys])
            for (author_id, _), rows in zip(keys, answers, strict=True):
                found[author_id] += [row[0] for row in rows]
            left = {a: months[width:] for a, months in left.items() if len(months) > width and len(found[a]) < limit}
            width = min(2 * width, MAX_BUCKETS)
        return {author_id: ids[:limit] for author_id, ids in found.items()}

    async def _count(self, author_ids: Sequence[int]) -> dict[int, int]:
        """Counts the live tweets of each author in Cassandra, without retweets of hidden originals. Leaves out authors
        without any."""
        months = await self._months(dict.fromkeys(author_ids), cql.NO_BOUND)
        keys = [(author_id, month) for author_id, found in months.items() for month in found]
        counts: dict[int, int] = {}
        for (author_id, _), rows in zip(keys, await self._keyspace.read_each(cql.COUNT_OF_AUTHOR, keys), strict=True):
            counts[author_id] = counts.get(author_id, 0) + rows[0][0]
        return {author_id: count for author_id, count in counts.items() if count}

    async def _months(self, author_ids: Iterable[int], bound: int) -> dict[int, list[int]]:
        """Returns for each author the months in which the author has tweets, up to the month of the id `bound`, newest
        first. Leaves out authors without such months."""
        authors = list(author_ids)
        last = cql.month_of(bound)
        answers = await self._keyspace.read_each(cql.MONTHS, [(author_id, last, MAX_MONTHS) for author_id in authors])
        return {a: [row[0] for row in rows] for a, rows in zip(authors, answers, strict=True) if rows}

    async def _hours(self, statement: str, hour: int) -> list[int]:
        return [row[0] for row in await self._keyspace.read(statement, cql.ALL_HOURS, hour, HOURS_PAGE)]

    async def _of_hours(self, statement: str, hours: Iterable[int], bound: int, limit: int) -> list[int]:
        keys = [(hour, shard, bound, limit) for hour in hours for shard in range(cql.HOUR_SHARDS)]
        return [row[0] for rows in await self._keyspace.read_each(statement, keys) for row in rows]


def _widening(hours: Sequence[int]) -> Iterable[Sequence[int]]:
    """Yields the hours in order, in groups of 1, 2, 4, … up to MAX_BUCKETS."""
    start, width = 0, 1
    while start < len(hours):
        yield hours[start : start + width]
        start, width = start + width, min(2 * width, MAX_BUCKETS)
