"""Counts that all processes share through Redis, so that a page of tweets need not be counted anew for each reader.

What was counted is kept for a while, and only where nothing is known. Whoever changes a tweet's marks says so before it answers, and for
a while nothing is kept of that tweet: a count that was begun before the change comes too late to be kept. Where Redis does not answer,
nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from services.platform.redis.client import Redis
from services.platform.redis.connection import command
from services.platform.redis.node_pool import Node
from services.platform.redis.shared_keys import SharedKeyClient, key_of

# How long a count may be wrong whose changer could not say so, and died before it could say it again.
KEEP_MS = 600_000
# Counts of spread marks are some seconds old anyway, and nobody says when they change.
KEEP_SPREAD_MS = 1_000
# Longer than a count that is kept may have taken, and Redis to take it.
CHANGING_MS = 5_000
MAX_COUNTING_S = 3.0
_CHANGING = b"-"
_COUNTED = b"+"
_KIND = "c"


class CachedCounts(SharedKeyClient):
    """Frames of counts by tweet id: serialised answers of one tweet, empty where nothing is counted. `monotonic` gives seconds."""

    def __init__(self, redis: Redis, monotonic: Callable[[], float]) -> None:
        super().__init__(redis, "shared-counts")
        self._monotonic = monotonic

    def now(self) -> float:
        """When a count begins, for `keep`."""
        return self._monotonic()

    async def frames(self, ids: Sequence[int]) -> tuple[dict[int, bytes], set[int]]:
        """The frames that are known, and the ids of which one may be kept if it is counted now."""
        held = await self._read_values(_KIND, ids)
        known = {i: value[1:] for i, value in held.items() if value and value.startswith(_COUNTED)}
        return known, {i for i, value in held.items() if value is None}

    async def keep(self, frames: Mapping[int, bytes], spread: Iterable[int], began: float) -> None:
        """Keeps what was counted, unless it changed since `began`; `spread` are those whose marks are spread."""
        short = set(spread)

        async def fill(node: Node, some: Sequence[int]) -> None:
            pipe = await node.reads()
            terms = [KEEP_SPREAD_MS if i in short else KEEP_MS for i in some]
            # That a change was said is known for so long: what took longer may have missed it.
            if self._monotonic() < began + MAX_COUNTING_S:
                sets = [
                    command("SET", key_of(_KIND, i, pipe), _COUNTED + frames[i], "NX", "PX", term)
                    for i, term in zip(some, terms, strict=True)
                ]
                await self._replies(pipe, sets)

        await self._for_each_node(frames, fill)

    async def changed(self, tweet_ids: Iterable[int]) -> None:
        """Says that these tweets' marks changed, after the rows are written; where Redis does not take it, as soon as it does."""
        ids = list(dict.fromkeys(tweet_ids))
        if not await self._say_changed(ids):
            self._queue_retry(self._say_changed, ids)

    async def _say_changed(self, ids: Sequence[int]) -> bool:
        async def change(node: Node, some: Sequence[int]) -> None:
            pipe = await node.reads()
            keys = [key_of(_KIND, i, pipe) for i in some]
            await self._replies(pipe, [command("SET", key, _CHANGING, "PX", CHANGING_MS) for key in keys])

        return await self._for_each_node(ids, change)
