"""Caches the tweets, author lists and counts that the Cassandra adapter reads, each with its version in Redis.

A writer changes the version after its batch and before its response. A reader gets the version before it reads. So a
value cached under a version contains every write that completed before that version was read. One round trip to Redis
gets the versions of a whole page.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from roost.tweet.v1 import tweet_pb2, tweet_service_pb2

from services.platform.cassandra.keyspace import Keyspace
from services.platform.redis.shared_versions import SharedVersions
from services.shared.hydration.fragments import framed
from services.tweet.store.cache import AuthorIds, OwnRetweets
from services.tweet.store.cassandra import schema as cql
from services.tweet.store.cassandra.queries import CassandraLists, by_ids
from services.tweet.store.cassandra.rows import head_of
from services.tweet.store.cassandra.versioned_cache import VersionedCache

# About 0.5 KB each: at most some 65 MB.
CACHED_CORES = 65_536
# Mostly a few ids, at most 8 KB each.
CACHED_AUTHORS = 16_384
# Ids loaded for an author who is not cached: a few pages.
FILL_IDS = 128
# Retweets cached per user; those of more active users are read from Cassandra.
CACHED_RETWEETS = 1_000

_FRAME_TAG = b"\x0a"


class CachedQueries(CassandraLists):
    """The frequent reads of TweetStore, with caches in process memory."""

    def __init__(self, keyspace: Keyspace, shared: SharedVersions) -> None:
        super().__init__(keyspace)
        self._shared = shared
        # Serialized TweetCore messages, each with the field tag of BatchGetTweetCoresResponse in front.
        self._frames: VersionedCache[bytes] = VersionedCache(CACHED_CORES, time.monotonic)
        self._newest: VersionedCache[AuthorIds] = VersionedCache(CACHED_AUTHORS, time.monotonic)
        self._counts: VersionedCache[int] = VersionedCache(CACHED_AUTHORS, time.monotonic)
        self._retweets: VersionedCache[OwnRetweets] = VersionedCache(CACHED_AUTHORS, time.monotonic)

    async def batch_get(self, ids: Sequence[int], viewer_id: int = 0) -> tweet_service_pb2.BatchGetTweetCoresResponse:
        frames = await self.batch_get_serialized(ids, viewer_id)
        return tweet_service_pb2.BatchGetTweetCoresResponse.FromString(frames)

    async def batch_get_serialized(self, ids: Sequence[int], viewer_id: int = 0) -> bytes:
        if viewer_id:
            found, retweeted = await asyncio.gather(self._frames_of(ids), self.find_retweets(viewer_id, ids))
        else:
            found, retweeted = await self._frames_of(ids), {}
        for tweet_id in retweeted:
            if tweet_id in found:
                found[tweet_id] = _with_retweeted(found[tweet_id])
        return b"".join([found[tweet_id] for tweet_id in ids if tweet_id in found])

    async def _frames_of(self, ids: Sequence[int]) -> dict[int, bytes]:
        async def load(missing: Sequence[int]) -> dict[int, bytes]:
            cores = await self.cores(missing)
            return {tweet_id: framed(_FRAME_TAG, core.SerializeToString()) for tweet_id, core in cores.items()}

        return await self._frames.get_many(dict(zip(ids, await self._shared.tweet_versions(ids), strict=True)), load)

    async def cores(self, ids: Sequence[int]) -> dict[int, tweet_pb2.TweetCore]:
        """Returns the tweets that exist by id, with their counts, from Cassandra."""
        rows, counts = await asyncio.gather(by_ids(self._keyspace, cql.CORES, ids), self.count_links(ids))
        return {row[0]: _core(row, counts.get(row[0], {})) for row in rows if row[1] is not None}

    async def find_retweets(self, user_id: int, original_ids: Sequence[int]) -> Mapping[int, int]:
        async def load(_: Sequence[int]) -> dict[int, OwnRetweets]:
            rows = await self._keyspace.read(cql.NEWEST_RETWEETS, user_id, CACHED_RETWEETS + 1)
            return {user_id: OwnRetweets(dict(rows), complete=len(rows) <= CACHED_RETWEETS)}

        own = (await self._retweets.get_many(await self._author_versions((user_id,)), load))[user_id]
        found = {i: own.ids[i] for i in original_ids if i in own.ids} if own.ids else {}
        if not own.complete and len(found) < len(original_ids):
            found.update(await super().find_retweets(user_id, [i for i in original_ids if i not in found]))
        return found

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
        return await super().list_author(author_id, before_id, limit, replies=replies, retweets=retweets)

    async def _newest_of(self, author_ids: Sequence[int], before_id: int, limit: int) -> dict[int, Sequence[int]]:
        """Returns the newest ids of each author below `before_id`, from the cache as far as it reaches, then from
        Cassandra. Every author has an entry."""
        # The list is cached without the bound, so that it serves other callers too; it mostly contains the ids asked
        # for.
        fill = FILL_IDS if before_id else max(limit, FILL_IDS)

        async def load(missing: Sequence[int]) -> dict[int, AuthorIds]:
            found = await self.author_ids(missing, 0, fill)
            return {a: AuthorIds(array("q", reversed(ids)), complete=len(ids) < fill) for a, ids in found.items()}

        known = await self._newest.get_many(await self._author_versions(author_ids), load)
        lists: dict[int, Sequence[int]] = {}
        deeper: list[int] = []
        for author_id, newest in known.items():
            ids_known = newest.newest(before_id, limit)
            lists[author_id] = () if ids_known is None else ids_known
            if ids_known is None:
                deeper.append(author_id)
        return lists | await self.author_ids(deeper, before_id, limit) if deeper else lists

    async def batch_count(self, author_ids: Sequence[int]) -> Mapping[int, int]:
        async def load(missing: Sequence[int]) -> dict[int, int]:
            found = await super(CachedQueries, self).batch_count(missing)
            return {author_id: found.get(author_id, 0) for author_id in missing}

        counts = await self._counts.get_many(await self._author_versions(author_ids), load)
        return {author_id: count for author_id, count in counts.items() if count}

    async def _author_versions(self, author_ids: Sequence[int]) -> dict[int, int | None]:
        return dict(zip(author_ids, await self._shared.author_versions(author_ids), strict=True))


def _core(row: Sequence[Any], counts: Mapping[int, int]) -> tweet_pb2.TweetCore:
    head = head_of(row)
    return tweet_pb2.TweetCore(
        head=head,
        core=b"" if head.deleted else row[9],
        replies=counts.get(cql.REPLY, 0),
        retweets=counts.get(cql.RETWEET, 0),
        quotes=counts.get(cql.QUOTE, 0),
    )


def _with_retweeted(frame: bytes) -> bytes:
    """Returns the framed TweetCore with `retweeted` set."""
    core = tweet_service_pb2.BatchGetTweetCoresResponse.FromString(frame).cores[0]
    core.retweeted = True
    return framed(_FRAME_TAG, core.SerializeToString())
