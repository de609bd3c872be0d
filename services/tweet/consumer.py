"""Consumes the service's own events to repeat the follow-up writes of a write, on the cluster backend only: after the
commit the process may have died, or Redis may have rejected the new versions. The repeat is idempotent and independent
of the order of events, because it reads the current state of the tweet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from roost.event.v1 import event_pb2

from services.platform.events.log import Apply, ConsumedEvent

GROUP = "tweet-settle"
# Events of changes after which caches of other processes may be outdated. `tweet.created` is not among them, because no
# process has cached a new tweet.
TOPICS = ("tweet.edited", "tweet.deleted", "tweet.restored")


def finishing_side_effects(finish: Callable[[Sequence[int]], Awaitable[None]]) -> Apply:
    """Returns the callback of a consumer of TOPICS. It passes the tweet ids of a batch, each once, to `finish`, which
    repeats the follow-up writes."""

    async def apply(events: Sequence[ConsumedEvent]) -> None:
        await finish(list(dict.fromkeys(map(_tweet_id, events))))

    return apply


def _tweet_id(record: ConsumedEvent) -> int:
    event = event_pb2.Event.FromString(record.payload)
    # The field of the event in the oneof is named after the topic (`tweet_edited`), and each event of TOPICS has a
    # `tweet_id`.
    return int(getattr(event, record.topic.replace(".", "_")).tweet_id)
