"""What identity does about its own events, where it has replicas: the shared reference of a user is put again.

The writer puts it before it answers. This repeats what could not be done then, because Redis did not answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from services.platform.events.log import Apply, ConsumedEvent

GROUP = "identity-shared"
TOPICS = ("user.updated", "user.suspended", "user.reinstated", "user.deleted")


def sharing(share: Callable[[Sequence[int]], Awaitable[None]]) -> Apply:
    """Shares each user that the events are about. What `share` cannot do for now is retried by the log."""

    async def apply(events: Sequence[ConsumedEvent]) -> None:
        await share(list(dict.fromkeys(event.key for event in events)))

    return apply
