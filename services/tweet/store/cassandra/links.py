"""Reads the replies, quotes, retweets and ancestors of a tweet from Cassandra. Only the retweets of a user are
cached."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from services.platform.cassandra.keyspace import Keyspace, Row
from services.platform.redis.shared_versions import SharedVersions
from services.tweet.store import Retweeter
from services.tweet.store.cache import OwnRetweets
from services.tweet.store.cassandra import schema as cql
from services.tweet.store.cassandra.id_batches import batches_of, by_ids
from services.tweet.store.cassandra.versioned_cache import CACHED_AUTHORS, VersionedCache, author_versions

# Maximum number of retweets cached per user. The older retweets of users with more are read from Cassandra.
CACHED_RETWEETS = 1_000


class CassandraLinkLists:
    """Implements LinkLists on Cassandra and Redis. `fallback_version` returns another number at each call."""

    def __init__(self, keyspace: Keyspace, shared: SharedVersions, fallback_version: Callable[[], int]) -> None:
        self._keyspace = keyspace
        self._shared = shared
        self._fallback_version = fallback_version
        self._retweets: VersionedCache[OwnRetweets] = VersionedCache(CACHED_AUTHORS, time.monotonic)

    async def find_retweets(self, user_id: int, original_ids: Sequence[int]) -> Mapping[int, int]:
        async def load(_: Sequence[int]) -> dict[int, OwnRetweets]:
            rows = await self._keyspace.read(cql.NEWEST_RETWEETS, user_id, CACHED_RETWEETS + 1)
            return {user_id: OwnRetweets(dict(rows), complete=len(rows) <= CACHED_RETWEETS)}

        own = (await self._retweets.get_many(await author_versions(self._shared, (user_id,)), load))[user_id]
        found = {i: own.ids[i] for i in original_ids if i in own.ids} if own.ids else {}
        if not own.complete and len(found) < len(original_ids):
            found.update(await self._read_retweets(user_id, [i for i in original_ids if i not in found]))
        return found

    async def _read_retweets(self, user_id: int, original_ids: Sequence[int]) -> Mapping[int, int]:
        keys = [(user_id, batch) for batch in batches_of(original_ids)]
        answers = await self._keyspace.read_each(cql.OWN_RETWEETS, keys)
        return dict(chain.from_iterable(answers))

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
        """Implements `LinkLists.list_ancestors`. One read returns up to ANCESTORS_PER_ROW ancestors."""
        found: list[int] = []
        ancestors = (await self._stored_ancestors((tweet_id,))).get(tweet_id, ())
        while ancestors:
            known = await self._stored_ancestors(ancestors)
            # A purged tweet has no row in `known`. It is the last ancestor, because its row contained the id of its
            # parent.
            there = next((n for n, i in enumerate(ancestors) if i not in known), len(ancestors) - 1) + 1
            found += ancestors[:there]
            if len(found) >= limit:
                break
            ancestors = known.get(ancestors[there - 1], ())
        return found[:limit]

    async def _stored_ancestors(self, ids: Sequence[int]) -> dict[int, Sequence[int]]:
        rows = await self._keyspace.read(cql.ABOVE, list(ids))
        return {tweet_id: ancestors or () for tweet_id, ancestors in rows}

    async def thread_version(self, conversation_id: int) -> int:
        """Implements `LinkLists.thread_version`. While Redis is unavailable, each call returns another version, so that
        nothing cached is used."""
        version = await self._shared.thread_version(conversation_id)
        return self._fallback_version() if version is None else version

    async def count_links(self, tweet_ids: Sequence[int]) -> dict[int, dict[int, int]]:
        """Returns for each tweet the number of its live links by kind (REPLY, RETWEET, QUOTE), without links by absent
        authors. Counts the rows at each call: a Cassandra counter could be wrong after a timeout."""
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
