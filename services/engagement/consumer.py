"""Consumes the service's own like events to recount tweets that have too many likes to be counted at each read. Cluster
backend only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from roost.event.v1 import event_pb2

from services.platform.events.log import Apply, ConsumedEvent

GROUP = "engagement-counts"
TOPICS = ("tweet.liked", "tweet.unliked")
# Minimum time in seconds between two batches of events, so that a bucket of likes is counted at most once a second,
# however fast a tweet is liked. One count covers all likes in a batch.
ROUND_S = 1.0


def recounting(recount: Callable[[Iterable[tuple[int, int]]], Awaitable[int]]) -> Apply:
    """Returns the `apply` callback of a consumer of like events. It passes the (tweet id, user id) pairs of a batch to
    `recount`, which returns the number of buckets that it counted. If that number is not 0, the next batch begins at
    least ROUND_S seconds after this batch began."""

    async def apply(events: Sequence[ConsumedEvent]) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        if await recount([_changed(event) for event in events]):
            await asyncio.sleep(max(began + ROUND_S - clock(), 0))

    return apply


def _changed(record: ConsumedEvent) -> tuple[int, int]:
    event = event_pb2.Event.FromString(record.payload)
    change = event.tweet_liked if event.HasField("tweet_liked") else event.tweet_unliked
    return change.tweet_id, change.user_id
