"""Reads the lists of tweets by author and by time from SQLite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson
from roost.tweet.v1 import tweet_service_pb2

from services.platform.sqlite.database import Database
from services.tweet.store.sqlite import schema as sql
from services.tweet.store.sqlite.cached_reads import CachedReads


class SqliteTweetLists:
    """Implements TweetLists on SQLite. The newest ids of authors are cached."""

    def __init__(self, db: Database, cached: CachedReads) -> None:
        self._db = db
        self._cached = cached

    async def batch_list_author_ids(
        self, author_ids: Sequence[int], before_id: int, per_author: int
    ) -> tweet_service_pb2.BatchListAuthorTweetIdsResponse:
        lists = await self._cached.newest_ids(author_ids, before_id, per_author)
        response = tweet_service_pb2.BatchListAuthorTweetIdsResponse()
        add = response.authors.add
        for author_id, ids in lists.items():
            if ids:
                add(author_id=author_id, ids=ids)
        return response

    async def list_author(
        self, author_id: int, before_id: int, limit: int, *, replies: bool = True, retweets: bool = True
    ) -> Sequence[int]:
        if replies and retweets:
            return (await self._cached.newest_ids((author_id,), before_id, limit))[author_id]
        values = (author_id, before_id or sql.NO_BOUND, replies, retweets, limit)
        return await self._db.read(lambda c: [row[0] for row in c.execute(sql.AUTHOR_IDS_NARROWED, values)])

    async def list_removed(self, author_id: int, before_id: int, limit: int) -> Sequence[int]:
        values = (author_id, before_id or sql.NO_BOUND, limit)
        return await self._db.read(lambda c: [row[0] for row in c.execute(sql.REMOVED_IDS, values)])

    async def list_recent(self, before_id: int, limit: int) -> Sequence[int]:
        values = (before_id or sql.NO_BOUND, limit)
        return await self._db.read(lambda c: [row[0] for row in c.execute(sql.RECENT_IDS, values)])

    async def batch_count(self, author_ids: Sequence[int]) -> Mapping[int, int]:
        wanted = orjson.dumps(list(author_ids)).decode()
        return await self._db.read(lambda c: dict(c.execute(sql.COUNTS, (wanted,)).fetchall()))
