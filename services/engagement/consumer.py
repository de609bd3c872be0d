"""What engagement does about its own events, where a tweet has too many likes to be counted at each read: what changed is counted again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from roost.event.v1 import event_pb2

from services.platform.events.log import Apply, ConsumedEvent

GROUP = "engagement-counts"
TOPICS = ("tweet.liked", "tweet.unliked")
# However fast a tweet is liked, each part of its likes is counted at most this often: what came meanwhile is counted along.
ROUND_S = 1.0


def recounting(recount: Callable[[Iterable[tuple[int, int]]], Awaitable[int]]) -> Apply:
    """Has `recount` count what the events changed, given as (tweet, user); it answers how much it had to count."""

    async def apply(events: Sequence[ConsumedEvent]) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        if await recount([_changed(delivered) for delivered in events]):
            await asyncio.sleep(max(began + ROUND_S - clock(), 0))

    return apply


def _changed(delivered: ConsumedEvent) -> tuple[int, int]:
    event = event_pb2.Event.FromString(delivered.payload)
    change = event.tweet_liked if event.HasField("tweet_liked") else event.tweet_unliked
    return change.tweet_id, change.user_id
