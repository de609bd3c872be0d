"""The service's own events in, what must follow a write done. In the cluster backend alone: a process may die, or Redis refuse, between
a write's commit and its answer. Idempotent, in any order: what is done follows from the tweet as it stands."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from roost.event.v1 import event_pb2

from services.platform.events.log import Apply, ConsumedEvent

GROUP = "tweet-settle"
# What others may have remembered otherwise. Of new tweets nobody remembers anything.
TOPICS = ("tweet.edited", "tweet.deleted", "tweet.restored")


def settling(settle: Callable[[Sequence[int]], Awaitable[None]]) -> Apply:
    """Has `settle` see to the tweets that the events are about, each once."""

    async def apply(events: Sequence[ConsumedEvent]) -> None:
        await settle(list(dict.fromkeys(map(_tweet_id, events))))

    return apply


def _tweet_id(delivered: ConsumedEvent) -> int:
    event = event_pb2.Event.FromString(delivered.payload)
    # Every kind of these names its tweet.
    return int(getattr(event, delivered.topic.replace(".", "_")).tweet_id)
