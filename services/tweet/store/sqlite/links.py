"""Reads the replies, quotes, retweets and ancestors of a tweet from SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from services.platform.sqlite.database import Database
from services.tweet.store import Retweeter
from services.tweet.store.cache import ShardedVersions
from services.tweet.store.sqlite import schema as sql
from services.tweet.store.sqlite.cached_reads import CachedReads


class SqliteLinkLists:
    """Implements LinkLists on SQLite. Only the retweets of a user are cached. `versions` has the versions of
    conversations; the writer of a reply changes them."""

    def __init__(self, db: Database, cached: CachedReads, versions: ShardedVersions) -> None:
        self._db = db
        self._cached = cached
        self._versions = versions

    async def find_retweets(self, user_id: int, original_ids: Sequence[int]) -> Mapping[int, int]:
        return await self._cached.find_retweets(user_id, original_ids)

    async def list_replies(
        self, tweet_id: int, bound_id: int, limit: int, *, oldest_first: bool = False
    ) -> Sequence[int]:
        if oldest_first:
            return await self._ids(sql.LIST_REPLIES_UP, tweet_id, bound_id, limit)
        return await self._ids(sql.LIST_REPLIES_DOWN, tweet_id, bound_id or sql.NO_BOUND, limit)

    async def list_quotes(self, tweet_id: int, before_id: int, limit: int) -> Sequence[int]:
        return await self._ids(sql.LIST_QUOTES, tweet_id, before_id or sql.NO_BOUND, limit)

    async def list_retweeters(self, tweet_id: int, before_id: int, limit: int) -> Sequence[Retweeter]:
        values = (tweet_id, before_id or sql.NO_BOUND, limit)
        return await self._db.read(lambda c: [Retweeter(*row) for row in c.execute(sql.LIST_RETWEETERS, values)])

    async def batch_list_children(
        self, tweet_ids: Sequence[int], per_tweet: int, *, after_id: int = 0
    ) -> Mapping[int, Sequence[int]]:
        def transaction(connection: sqlite3.Connection) -> dict[int, Sequence[int]]:
            found: dict[int, Sequence[int]] = {}
            for tweet_id in tweet_ids:
                if ids := [row[0] for row in connection.execute(sql.LIST_CHILDREN, (tweet_id, after_id, per_tweet))]:
                    found[tweet_id] = ids
            return found

        return await self._db.read(transaction)

    async def list_ancestors(self, tweet_id: int, limit: int) -> Sequence[int]:
        def transaction(connection: sqlite3.Connection) -> list[int]:
            found: list[int] = []
            row = connection.execute(sql.PARENT, (tweet_id,)).fetchone()
            while row is not None and row[0] and len(found) < limit:
                found.append(row[0])
                row = connection.execute(sql.PARENT, (row[0],)).fetchone()
            return found

        return await self._db.read(transaction)

    async def thread_version(self, conversation_id: int) -> int:
        return self._versions.now(conversation_id)

    async def _ids(self, statement: str, *values: int) -> Sequence[int]:
        return await self._db.read(lambda c: [row[0] for row in c.execute(statement, values)])
