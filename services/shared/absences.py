"""People who do not take part for now, suspended or gone by their own will: what a service that counts their acts does about it.

Lists leave them out when they are read. Counts cannot: so what they did is taken out of counts when they go, and put back when they
come back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from roost.event.v1 import event_pb2

from services.platform.events.log import Apply, ConsumedEvent
from services.platform.ids.snowflake import timestamp_ms

TOPICS = ("user.suspended", "user.deleted", "user.reinstated")
_BACK = "user.reinstated"

# Takes what a user did out of counts (True), or puts it back; and when that was decided, in microseconds, later decisions later. It may
# be called again with the same decision, and with an earlier one, which then changes nothing.
SetAbsent = Callable[[int, bool, int], Awaitable[None]]


def following_absences(set_absent: SetAbsent) -> Apply:
    """Has `set_absent` follow identity's events, in their order."""

    async def apply(events: Sequence[ConsumedEvent]) -> None:
        for delivered in events:
            event = event_pb2.Event.FromString(delivered.payload)
            version = int(getattr(event, delivered.topic.replace(".", "_")).version)
            # Two decisions within a millisecond are told apart by the account's version.
            await set_absent(
                delivered.key, delivered.topic != _BACK, timestamp_ms(delivered.event_id) * 1000 + version % 1000
            )

    return apply
