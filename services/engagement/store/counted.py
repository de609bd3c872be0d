"""Counts that all processes share through Redis, so that a page of tweets need not be counted anew for each reader.

What was counted is kept briefly, and only where nothing is known. Whoever changes a tweet's marks says so before it answers, and for a
while nothing is kept of that tweet: a count that was begun before the change comes too late to be kept. Where Redis does not answer,
nothing is known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from redis.exceptions import RedisClusterException, RedisError

from services.cluster.redis import Redis

# How long a count may be wrong whose changer could not say so.
KEEP_MS = 30_000
# Counts of spread marks are some seconds old anyway, and nobody says when they change.
KEEP_SPREAD_MS = 1_000
# Longer than a count may take, from its first read to the attempt to keep it: two time-outs of the store.
CHANGING_MS = 5_000
_CHANGING = b""
_COUNTED = b"+"
_FAILURES = (RedisError, RedisClusterException, OSError)


class SharedCounts:
    """Frames of counts by tweet id: serialised answers of one tweet, empty where nothing is counted."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._client: Any = redis.client

    async def frames(self, ids: Sequence[int]) -> tuple[dict[int, bytes], set[int]]:
        """The frames that are known, and the ids of which one may be kept if it is counted now."""
        read = self._client.mget_nonatomic if self._redis.clustered else self._client.mget
        try:
            held = await read([_key(tweet_id) for tweet_id in ids]) if ids else []
        except _FAILURES:
            return {}, set()
        known = {i: value[1:] for i, value in zip(ids, held, strict=True) if value}
        return known, {i for i, value in zip(ids, held, strict=True) if value is None}

    async def keep(self, frames: Mapping[int, bytes], spread: Iterable[int]) -> None:
        """Keeps what was counted, unless it changed since; `spread` are those whose marks are spread."""
        short = set(spread)
        terms = {i: KEEP_SPREAD_MS if i in short else KEEP_MS for i in frames}
        await self._set([(i, _COUNTED + frame, terms[i], True) for i, frame in frames.items()])

    async def changed(self, tweet_ids: Iterable[int]) -> None:
        """Says that these tweets' marks changed, after the rows are written."""
        await self._set([(i, _CHANGING, CHANGING_MS, False) for i in set(tweet_ids)])

    async def _set(self, entries: Sequence[tuple[int, bytes, int, bool]]) -> None:
        """Sets (tweet, value, milliseconds, whether only where there is none)."""
        if not entries:
            return
        # What cannot be set leaves what stands there, and that goes by itself, soon.
        with contextlib.suppress(*_FAILURES):
            pipeline = self._client.pipeline(transaction=False)
            for tweet_id, value, keep_ms, only_new in entries:
                pipeline.set(_key(tweet_id), value, px=keep_ms, nx=only_new)
            await pipeline.execute()


def _key(tweet_id: int) -> str:
    return f"c:{tweet_id}"
