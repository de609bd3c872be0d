"""The lists and counts of the Cassandra adapter: by author, by time, and by what hangs on what.

Each list reads the newest bucket first, and goes on with twice as many at once while it is not full: a page mostly takes one or two
partitions, and a long way back a few rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from services.platform.cassandra.keyspace import Keyspace, Row
from services.tweet.store import Retweeter
from services.tweet.store.cassandra import schema as cql

# Of an author: eighty years of them.
MAX_MONTHS = 1_000
# Buckets of one list read side by side at most.
MAX_BUCKETS = 8
# Hours with tweets in them that are looked up at once: mostly the first few fill a page.
HOURS_PAGE = 64


class CassandraLists:
    """The reads of the port that go from an author, a time or a tweet to ids. Read from the store each time."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace

    async def list_author(
        self, author_id: int, before_id: int, limit: int, *, replies: bool = True, retweets: bool = True
    ) -> Sequence[int]:
        """See the port."""
        statement = cql.AUTHOR_IDS[replies, retweets]
        return (await self.author_ids((author_id,), before_id, limit, statement))[author_id]

    async def author_ids(
        self, author_ids: Iterable[int], before_id: int, limit: int, statement: str = cql.AUTHOR_IDS[True, True]
    ) -> dict[int, list[int]]:
        """The newest standing ids of each author below `before_id` (0: no bound), newest first; all authors are there."""
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
        """The months that each author has tweets in, newest first; without those who have none."""
        authors = list(author_ids)
        last = cql.month_of(bound)
        answers = await self._keyspace.read_each(cql.MONTHS, [(author_id, last, MAX_MONTHS) for author_id in authors])
        return {a: [row[0] for row in rows] for a, rows in zip(authors, answers, strict=True) if rows}

    async def batch_count(self, author_ids: Sequence[int]) -> Mapping[int, int]:
        """See the port."""
        months = await self._months(dict.fromkeys(author_ids), cql.NO_BOUND)
        keys = [(author_id, month) for author_id, found in months.items() for month in found]
        counts: dict[int, int] = {}
        for (author_id, _), rows in zip(keys, await self._keyspace.read_each(cql.COUNT_OF_AUTHOR, keys), strict=True):
            counts[author_id] = counts.get(author_id, 0) + rows[0][0]
        return {author_id: count for author_id, count in counts.items() if count}

    async def list_recent(self, before_id: int, limit: int) -> Sequence[int]:
        """See the port."""
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
        """The least ids above `after_id` of all tweets, also hidden ones, ascending, at most `limit`; fewer only at the end."""
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
        """See the port."""
        if oldest_first:
            rows = await self._keyspace.read(cql.LINKS_UP, tweet_id, cql.REPLY, bound_id, limit)
        else:
            rows = await self._links_down(tweet_id, cql.REPLY, bound_id, limit)
        return [row[0] for row in rows]

    async def list_quotes(self, tweet_id: int, before_id: int, limit: int) -> Sequence[int]:
        """See the port."""
        return [row[0] for row in await self._links_down(tweet_id, cql.QUOTE, before_id, limit)]

    async def list_retweeters(self, tweet_id: int, before_id: int, limit: int) -> Sequence[Retweeter]:
        """See the port."""
        return [Retweeter(*row) for row in await self._links_down(tweet_id, cql.RETWEET, before_id, limit)]

    async def _links_down(self, tweet_id: int, kind: int, before_id: int, limit: int) -> list[Row]:
        return await self._keyspace.read(cql.LINKS_DOWN, tweet_id, kind, before_id or cql.NO_BOUND, limit)

    async def batch_list_children(
        self, tweet_ids: Sequence[int], per_tweet: int, *, after_id: int = 0
    ) -> Mapping[int, Sequence[int]]:
        """See the port."""
        keys = [(tweet_id, cql.REPLY, after_id, per_tweet) for tweet_id in tweet_ids]
        answers = await self._keyspace.read_each(cql.ALL_LINKS, keys)
        return {i: [row[0] for row in rows] for i, rows in zip(tweet_ids, answers, strict=True) if rows}

    async def list_ancestors(self, tweet_id: int, limit: int) -> Sequence[int]:
        """See the port. Takes a read for every NAMED_ABOVE of them."""
        found: list[int] = []
        above = (await self._above((tweet_id,))).get(tweet_id, ())
        while above:
            known = await self._above(above)
            # The purged one is the last: nothing tells any more what it answered.
            there = next((n for n, i in enumerate(above) if i not in known), len(above) - 1) + 1
            found += above[:there]
            if len(found) >= limit:
                break
            above = known.get(above[there - 1], ())
        return found[:limit]

    async def _above(self, ids: Sequence[int]) -> dict[int, Sequence[int]]:
        rows = await self._keyspace.read(cql.ABOVE, list(ids))
        return {tweet_id: above or () for tweet_id, above in rows}

    async def find_retweets(self, user_id: int, original_ids: Sequence[int]) -> Mapping[int, int]:
        """See the port."""
        keys = [(user_id, lot) for lot in lots_of(original_ids)]
        answers = await self._keyspace.read_each(cql.OWN_RETWEETS, keys)
        return dict(chain.from_iterable(answers))

    async def count_links(self, tweet_ids: Sequence[int]) -> dict[int, dict[int, int]]:
        """How many standing links of each kind each tweet has. Counted where they lie: a count has nothing of its own to go wrong."""
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
    """The rows of a statement that takes a list of ids, in no order."""
    answers = await keyspace.read_each(statement, [(lot,) for lot in lots_of(ids)])
    return list(chain.from_iterable(answers))


def lots_of(ids: Iterable[int]) -> list[list[int]]:
    """The ids, each once, in lists of at most IDS_AT_ONCE."""
    distinct = list(dict.fromkeys(ids))
    return [distinct[start : start + cql.IDS_AT_ONCE] for start in range(0, len(distinct), cql.IDS_AT_ONCE)]


def _widening(hours: Sequence[int]) -> Iterable[Sequence[int]]:
    """The hours in their order: one, then twice as many each time, up to MAX_BUCKETS."""
    start, width = 0, 1
    while start < len(hours):
        yield hours[start : start + width]
        start, width = start + width, min(2 * width, MAX_BUCKETS)
