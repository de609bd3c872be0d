"""Reads tweets with their counts from Cassandra, and caches each with its version in Redis.

A writer changes the version after its batch and before its response, and a reader reads the version before the tweet.
So a tweet that is cached with the current version includes every write whose response was sent before. One round trip
to Redis reads the versions of a whole page.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from roost.tweet.v1 import tweet_pb2, tweet_service_pb2

from services.platform.cassandra.keyspace import Keyspace
from services.platform.redis.shared_versions import SharedVersions
from services.shared.hydration.fragments import framed
from services.tweet.store.cassandra import schema as cql
from services.tweet.store.cassandra.id_batches import by_ids
from services.tweet.store.cassandra.links import CassandraLinkLists
from services.tweet.store.cassandra.rows import head_of
from services.tweet.store.cassandra.versioned_cache import VersionedCache

# Size of the cache of tweets. A GenerationalCache holds at most twice its size: 131,072 tweets of about 0.5 KB, 65 MB.
CACHED_CORES = 65_536
# Tag of the field `cores` of BatchGetTweetCoresResponse. A frame is a serialized TweetCore with tag and length in
# front: frames one after the other are a serialized response.
_FRAME_TAG = b"\x0a"


class TweetCores:
    """Reads tweets by id. `links` counts their replies, retweets and quotes."""

    def __init__(self, keyspace: Keyspace, shared: SharedVersions, links: CassandraLinkLists) -> None:
        self._keyspace = keyspace
        self._shared = shared
        self._links = links
        # Frames by tweet id.
        self._frames: VersionedCache[bytes] = VersionedCache(CACHED_CORES, time.monotonic)

    async def get_serialized(self, ids: Sequence[int], viewer_id: int = 0) -> bytes:
        """Implements `TweetStore.batch_get_serialized`."""
        if viewer_id:
            found, retweeted = await asyncio.gather(self._frames_of(ids), self._links.find_retweets(viewer_id, ids))
        else:
            found, retweeted = await self._frames_of(ids), {}
        for tweet_id in retweeted:
            if tweet_id in found:
                found[tweet_id] = _with_retweeted(found[tweet_id])
        return b"".join([found[tweet_id] for tweet_id in ids if tweet_id in found])

    async def read(self, ids: Sequence[int]) -> dict[int, tweet_pb2.TweetCore]:
        """Reads the tweets with their counts from Cassandra, not from memory, and returns them by tweet id. Leaves out
        unknown ids. Raises the errors of Keyspace."""
        rows, counts = await asyncio.gather(by_ids(self._keyspace, cql.CORES, ids), self._links.count_links(ids))
        return {row[0]: _core(row, counts.get(row[0], {})) for row in rows if row[1] is not None}

    async def _frames_of(self, ids: Sequence[int]) -> dict[int, bytes]:
        async def load(missing: Sequence[int]) -> dict[int, bytes]:
            cores = await self.read(missing)
            return {tweet_id: framed(_FRAME_TAG, core.SerializeToString()) for tweet_id, core in cores.items()}

        return await self._frames.get_many(dict(zip(ids, await self._shared.tweet_versions(ids), strict=True)), load)


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
    """Returns the frame of the same tweet with `retweeted` set to true."""
    core = tweet_service_pb2.BatchGetTweetCoresResponse.FromString(frame).cores[0]
    core.retweeted = True
    return framed(_FRAME_TAG, core.SerializeToString())
