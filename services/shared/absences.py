"""Consumes the events of suspended, deactivated and reinstated users, for services that count the actions of users.

Lists exclude suspended and deactivated users when they are read. Counts are stored, so the follows, likes and replies
of a user are subtracted from counts when the user is suspended or deactivated, and added again when the user is
reinstated.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from roost.event.v1 import event_pb2

from services.platform.events.log import Apply, ConsumedEvent
from services.platform.ids.snowflake import timestamp_ms

TOPICS = ("user.suspended", "user.deleted", "user.reinstated")
_BACK = "user.reinstated"

# Called with a user id, whether the user's actions are excluded from counts, and the time of the suspension,
# deactivation or reinstatement in Unix microseconds. A further call with the same or an earlier time must change
# nothing.
SetAbsent = Callable[[int, bool, int], Awaitable[None]]


def following_absences(set_absent: SetAbsent) -> Apply:
    """Returns an event handler for TOPICS that calls `set_absent` once for each event, in order."""

    async def apply(events: Sequence[ConsumedEvent]) -> None:
        for delivered in events:
            event = event_pb2.Event.FromString(delivered.payload)
            version = int(getattr(event, delivered.topic.replace(".", "_")).version)
            # An event id has a resolution of 1 ms, so the account's version orders events within one millisecond.
            await set_absent(
                delivered.key, delivered.topic != _BACK, timestamp_ms(delivered.event_id) * 1000 + version % 1000
            )

    return apply
