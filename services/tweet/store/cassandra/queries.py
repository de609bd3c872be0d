"""The lists and counts of the Cassandra adapter: by author, by time, and by the tweet that others link to.

Rows by author and by time lie in buckets, one partition each. A list reads the newest bucket first and doubles the
number of buckets per round until it is full: a page mostly takes one or two partitions, a sparse list a few rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from services.platform.cassandra.keyspace import Keyspace, Row
from services.tweet.store import Retweeter
from services.tweet.store.cassandra import schema as cql

# Months of one author that a list considers: eighty years.
MAX_MONTHS = 1_000
# The most buckets that one list reads concurrently.
MAX_BUCKETS = 8
# Hours with tweets that one read looks up: mostly the first few fill a page.
HOURS_PAGE = 64


class CassandraLists:
    """The methods of TweetStore that lead from an author, a time or a tweet to ids. They are not cached: each call
    reads Cassandra."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace

    async def list_author(
        self, author_id: int, before_id: int, limit: int, *, replies: bool = True, retweets: bool = True
    ) -> Sequence[int]:
        statement = cql.AUTHOR_IDS[replies, retweets]
        return (await self.author_ids((author_id,), before_id, limit, statement))[author_id]

    async def author_ids(
        self, author_ids: Iterable[int], before_id: int, limit: int, statement: str = cql.AUTHOR_IDS[True, True]
    ) -> dict[int, list[int]]:
        """Returns the newest live ids of each author below `before_id` (0: no bound), newest first, at most `limit`
        each. Authors without any have an empty list."""
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

    async def _months(self, author_ids: Iterable[int], bound: int) -> dict[int, list[int]]:
        """Returns the months in which each author has tweets, newest first. Authors without tweets are left out."""
        authors = list(author_ids)
        last = cql.month_of(bound)
        answers = await self._keyspace.read_each(cql.MONTHS, [(author_id, last, MAX_MONTHS) for author_id in authors])
        return {a: [row[0] for row in rows] for a, rows in zip(authors, answers, strict=True) if rows}

    async def batch_count(self, author_ids: Sequence[int]) -> Mapping[int, int]:
        months = await self._months(dict.fromkeys(author_ids), cql.NO_BOUND)
        keys = [(author_id, month) for author_id, found in months.items() for month in found]
        counts: dict[int, int] = {}
        for (author_id, _), rows in zip(keys, await self._keyspace.read_each(cql.COUNT_OF_AUTHOR, keys), strict=True):
            counts[author_id] = counts.get(author_id, 0) + rows[0][0]
        return {author_id: count for author_id, count in counts.items() if count}

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

    async def ids_from(self, after_id: int, limit: int) -> list[int]:
        """Returns the smallest ids above `after_id` in ascending order, hidden tweets included, at most `limit`. Fewer
        than `limit` means that the end was reached."""
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

    async def _hours(self, statement: str, hour: int) -> list[int]:
        return [row[0] for row in await self._keyspace.read(statement, cql.ALL_HOURS, hour, HOURS_PAGE)]

    async def _of_hours(self, statement: str, hours: Iterable[int], bound: int, limit: int) -> list[int]:
        keys = [(hour, shard, bound, limit) for hour in hours for shard in range(cql.HOUR_SHARDS)]
        return [row[0] for rows in await self._keyspace.read_each(statement, keys) for row in rows]

    async def list_replies(
        self, tweet_id: int, bound_id: int, limit: int, *, oldest_first: bool = False
    ) -> Sequence[int]:
        if oldest_first:
            rows = await self._keyspace.read(cql.LINKS_UP, tweet_id, cql.REPLY, bound_id, limit)
        else:
            rows = await self._links_down(tweet_id, cql.REPLY, bound_id, limit)
        return [row[0] for row in rows]

    async def list_quotes(self, tweet_id: int, before_id: int, limit: int) -> Sequence[int]:
        return [row[0] for row in await self._links_down(tweet_id, cql.QUOTE, before_id, limit)]

    async def list_retweeters(self, tweet_id: int, before_id: int, limit: int) -> Sequence[Retweeter]:
        return [Retweeter(*row) for row in await self._links_down(tweet_id, cql.RETWEET, before_id, limit)]

    async def _links_down(self, tweet_id: int, kind: int, before_id: int, limit: int) -> list[Row]:
        return await self._keyspace.read(cql.LINKS_DOWN, tweet_id, kind, before_id or cql.NO_BOUND, limit)

    async def batch_list_children(
        self, tweet_ids: Sequence[int], per_tweet: int, *, after_id: int = 0
    ) -> Mapping[int, Sequence[int]]:
        keys = [(tweet_id, cql.REPLY, after_id, per_tweet) for tweet_id in tweet_ids]
        answers = await self._keyspace.read_each(cql.ALL_LINKS, keys)
        return {i: [row[0] for row in rows] for i, rows in zip(tweet_ids, answers, strict=True) if rows}

    async def list_ancestors(self, tweet_id: int, limit: int) -> Sequence[int]:
        """Implements `TweetStore.list_ancestors`, with one read per ANCESTORS_PER_ROW ancestors."""
        found: list[int] = []
        ancestors = (await self._stored_ancestors((tweet_id,))).get(tweet_id, ())
        while ancestors:
            known = await self._stored_ancestors(ancestors)
            # The list ends with the first purged tweet, because the row that named its parent is gone.
            there = next((n for n, i in enumerate(ancestors) if i not in known), len(ancestors) - 1) + 1
            found += ancestors[:there]
            if len(found) >= limit:
                break
            ancestors = known.get(ancestors[there - 1], ())
        return found[:limit]

    async def _stored_ancestors(self, ids: Sequence[int]) -> dict[int, Sequence[int]]:
        rows = await self._keyspace.read(cql.ABOVE, list(ids))
        return {tweet_id: ancestors or () for tweet_id, ancestors in rows}

    async def find_retweets(self, user_id: int, original_ids: Sequence[int]) -> Mapping[int, int]:
        keys = [(user_id, batch) for batch in batches_of(original_ids)]
        answers = await self._keyspace.read_each(cql.OWN_RETWEETS, keys)
        return dict(chain.from_iterable(answers))

    async def count_links(self, tweet_ids: Sequence[int]) -> dict[int, dict[int, int]]:
        """Returns the number of live links of each tweet by kind (REPLY, RETWEET, QUOTE). The rows are counted at each
        call, so no stored counter can be wrong."""
        linked = [row[0] for row in await by_ids(self._keyspace, cql.ANY_LINKS, tweet_ids)]
        answers = await self._keyspace.read_each(cql.COUNT_LINKS, [(tweet_id,) for tweet_id in linked])
        counted: dict[int, dict[int, int]] = {
            tweet_id: dict(rows) for tweet_id, rows in zip(linked, answers, strict=True)
        }
        return {
            tweet_id: {
                kind: max(count - kinds.get(kind + cql.UNCOUNTED, 0), 0)
                for kind, count in kinds.items()
                if kind < cql.UNCOUNTED
            }
            for tweet_id, kinds in counted.items()
        }


async def by_ids(keyspace: Keyspace, statement: str, ids: Iterable[int]) -> list[Row]:
    """Returns the rows of a statement that takes a list of ids, in no particular order."""
    answers = await keyspace.read_each(statement, [(batch,) for batch in batches_of(ids)])
    return list(chain.from_iterable(answers))


def batches_of(ids: Iterable[int]) -> list[list[int]]:
    """Returns the distinct ids in batches of at most IDS_PER_READ."""
    distinct = list(dict.fromkeys(ids))
    return [distinct[start : start + cql.IDS_PER_READ] for start in range(0, len(distinct), cql.IDS_PER_READ)]


def _widening(hours: Sequence[int]) -> Iterable[Sequence[int]]:
    """Yields the hours in order, in groups of 1, 2, 4, … up to MAX_BUCKETS."""
    start, width = 0, 1
    while start < len(hours):
        yield hours[start : start + width]
        start, width = start + width, min(2 * width, MAX_BUCKETS)
