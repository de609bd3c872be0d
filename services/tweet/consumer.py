"""Consumes the service's own events to finish the side effects of a write, in the cluster backend only. After the
commit of a write the process may die, or Redis may reject the new versions. The work is idempotent and independent of
the order of events, because it depends on the present state of the tweet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from roost.event.v1 import event_pb2

from services.platform.events.log import Apply, ConsumedEvent

GROUP = "tweet-settle"
# Events after which other processes may hold stale cache entries. A new tweet is cached nowhere, so `tweet.created` is
# not among them.
TOPICS = ("tweet.edited", "tweet.deleted", "tweet.restored")


def finishing_side_effects(finish: Callable[[Sequence[int]], Awaitable[None]]) -> Apply:
    """Returns the `apply` callback of a consumer of TOPICS. It passes the ids of a batch's tweets, each once, to
    `finish`."""

    async def apply(events: Sequence[ConsumedEvent]) -> None:
        await finish(list(dict.fromkeys(map(_tweet_id, events))))

    return apply


def _tweet_id(record: ConsumedEvent) -> int:
    event = event_pb2.Event.FromString(record.payload)
    # Each of TOPICS has a `tweet_id`.
    return int(getattr(event, record.topic.replace(".", "_")).tweet_id)
