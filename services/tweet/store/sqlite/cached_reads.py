"""Write-through caches of the embedded tweet store: tweets, authors' newest ids and users' retweets."""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from roost.tweet.v1 import tweet_pb2

from services.platform.caching.generational import GenerationalCache
from services.platform.sqlite.database import Database
from services.platform.versions import Kind, MemoryVersions, key_of
from services.shared.hydration.fragments import framed
from services.tweet.store.cache import AuthorIds, OwnRetweets
from services.tweet.store.sqlite import schema as sql

# Size of the cache of tweets. A GenerationalCache holds at most twice its size: 131,072 tweets of about 0.4 KB, 50 MB.
CACHED_CORES = 65_536
# Size of the cache of authors' newest ids. Most authors have few ids; a list takes at most 8 KB.
CACHED_AUTHORS = 16_384
# Minimum number of ids read for an author who is not cached: a few pages.
FILL_IDS = 128
# Maximum number of retweets cached per user. The older retweets of users with more are read from the database.
CACHED_RETWEETS = 1_000
# Size of the cache of users' retweets. Most users have none; an entry takes at most 0.1 MB.
CACHED_RETWEETERS = 16_384

# Tag of the field `cores` of BatchGetTweetCoresResponse. A frame is a serialized TweetCore with tag and length in
# front: frames one after the other are a serialized response.
_FRAME_TAG = b"\x0a"


class CachedReads:
    """Reads tweets and lists of ids from memory, or from SQLite if they are not in memory.

    A read keeps a loaded value in memory only if `versions` shows that no row of the value was written meanwhile. A
    writer calls `add` and the `invalidate_…` methods after its commit and before its response, so that later reads
    return the write. Reads raise the errors of `Database.read`.
    """

    def __init__(self, db: Database, versions: MemoryVersions) -> None:
        self._db = db
        self._versions = versions
        # Frames by tweet id.
        self._cores: GenerationalCache[int, bytes] = GenerationalCache(CACHED_CORES)
        self._authors: GenerationalCache[int, AuthorIds] = GenerationalCache(CACHED_AUTHORS)
        self._retweets: GenerationalCache[int, OwnRetweets] = GenerationalCache(CACHED_RETWEETERS)

    def add(self, core: tweet_pb2.TweetCore) -> None:
        """Caches a new tweet, and adds its id to the cached ids of its author. Call this method after the commit."""
        head = core.head
        self._cores.put(head.id, frame_core(core.SerializeToString()))
        if (known := self._authors.get(head.author_id)) is not None:
            known.add(head.id)
        if head.retweet_of_id and (retweets := self._retweets.get(head.author_id)) is not None:
            retweets.ids[head.retweet_of_id] = head.id
            if len(retweets.ids) > 2 * CACHED_RETWEETS:
                self._retweets.pop(head.author_id)

    def invalidate_tweets(self, tweet_ids: Sequence[int]) -> None:
        """Drops these tweets from memory. Call this method after the tweets or their counts have changed."""
        for tweet_id in tweet_ids:
            self._cores.pop(tweet_id)

    def invalidate_author(self, author_id: int) -> None:
        """Drops the newest ids and the retweets of the author from memory."""
        self._authors.pop(author_id)
        self._retweets.pop(author_id)

    async def frames(self, ids: Sequence[int]) -> list[bytes | None]:
        """Returns the frame of each tweet in the order of `ids`, None for a tweet that does not exist."""
        get = self._cores.get
        frames = [get(tweet_id) for tweet_id in ids]
        if None in frames:
            loaded = await self._load_cores([i for i, frame in zip(ids, frames, strict=True) if frame is None])
            frames = [frame or loaded.get(i) for i, frame in zip(ids, frames, strict=True)]
        return frames

    async def find_retweets(self, user_id: int, original_ids: Sequence[int]) -> Mapping[int, int]:
        """Implements `LinkLists.find_retweets`."""
        known = self._retweets.get(user_id)
        if known is None:
            known = await self._load_retweets(user_id)
        ids = known.ids
        found = {i: ids[i] for i in original_ids if i in ids} if ids else {}
        if not known.complete and len(found) < len(original_ids):
            wanted = orjson.dumps([i for i in original_ids if i not in found]).decode()
            found.update(await self._db.read(lambda c: c.execute(sql.SOME_OWN_RETWEETS, (user_id, wanted)).fetchall()))
        return found

    async def _load_retweets(self, user_id: int) -> OwnRetweets:
        since = self._versions.now
        values = (user_id, CACHED_RETWEETS + 1)
        rows = await self._db.read(lambda c: c.execute(sql.OWN_RETWEETS, values).fetchall())
        loaded = OwnRetweets(dict(rows), complete=len(rows) <= CACHED_RETWEETS)
        if self._versions.unchanged((key_of(Kind.AUTHOR, user_id),), since):
            self._retweets.put(user_id, loaded)
        return loaded

    async def _load_cores(self, ids: Sequence[int]) -> dict[int, bytes]:
        since = self._versions.now
        rows = await self._db.read(lambda c: c.execute(sql.BY_IDS, (orjson.dumps(ids).decode(),)).fetchall())
        loaded = {row[0]: frame_core(core_of(row).SerializeToString()) for row in rows}
        for tweet_id in ids:
            if tweet_id in loaded and self._versions.unchanged((key_of(Kind.TWEET, tweet_id),), since):
                self._cores.put(tweet_id, loaded[tweet_id])
        return loaded

    async def newest_ids(self, author_ids: Sequence[int], before_id: int, per_author: int) -> dict[int, Sequence[int]]:
        """Returns for each author the newest `per_author` ids of live tweets below `before_id` (0: no bound), newest
        first. Each author has an entry."""
        missing: list[int] = []
        lists: dict[int, Sequence[int]] = {}
        for author_id in author_ids:
            known = self._authors.get(author_id)
            cached = known.newest(before_id, per_author) if known is not None else None
            if cached is None:
                missing.append(author_id)
            lists[author_id] = () if cached is None else cached
        if missing:
            lists.update(await self._load_author_ids(missing, before_id, per_author))
        return lists

    async def _load_author_ids(
        self, author_ids: Sequence[int], before_id: int, per_author: int
    ) -> dict[int, Sequence[int]]:
        since = self._versions.now
        fill = max(per_author, FILL_IDS)

        def transaction(connection: sqlite3.Connection) -> list[tuple[AuthorIds, Sequence[int]]]:
            return [_read_author_ids(connection, author_id, before_id, per_author, fill) for author_id in author_ids]

        found: dict[int, Sequence[int]] = {}
        loaded = await self._db.read(transaction)
        for author_id, (newest, ids) in zip(author_ids, loaded, strict=True):
            found[author_id] = ids
            if self._versions.unchanged((key_of(Kind.AUTHOR, author_id),), since):
                self._authors.put(author_id, newest)
        return found


def _read_author_ids(
    connection: sqlite3.Connection, author_id: int, before_id: int, per_author: int, fill: int
) -> tuple[AuthorIds, Sequence[int]]:
    """Returns the author's newest `fill` ids, to be cached, and the newest `per_author` ids below `before_id` (0: no
    bound), newest first."""
    rows = connection.execute(sql.AUTHOR_IDS, (author_id, sql.NO_BOUND, fill)).fetchall()
    newest = AuthorIds(array("q", [row[0] for row in reversed(rows)]), complete=len(rows) < fill)
    ids: Sequence[int] | None = newest.newest(before_id, per_author)
    if ids is None:
        ids = [row[0] for row in connection.execute(sql.AUTHOR_IDS, (author_id, before_id or sql.NO_BOUND, per_author))]
    return newest, ids


def core_of(row: Sequence[Any]) -> tweet_pb2.TweetCore:
    """Returns the TweetCore of a row of the view `cores`. A hidden tweet has an empty core."""
    state = row[8]
    return tweet_pb2.TweetCore(
        head=tweet_pb2.TweetHead(
            id=row[0],
            author_id=row[1],
            reply_to_author_id=row[2],
            reply_to_id=row[3],
            retweet_of_id=row[4],
            retweet_of_author_id=row[5],
            quote_of_id=row[6],
            quote_of_author_id=row[7],
            deleted=state != sql.LIVE,
        ),
        core=row[9] if state == sql.LIVE else b"",
        replies=row[10],
        retweets=row[11],
        quotes=row[12],
    )


def frame_core(core: bytes) -> bytes:
    """Returns the frame of a serialized TweetCore."""
    return framed(_FRAME_TAG, core)
