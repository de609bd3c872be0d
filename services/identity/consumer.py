"""Consumes identity's own user events on the cluster backend: writes the user reference to Redis again.

The RPC that changes an account writes the reference before it responds. This consumer repeats the write, in case Redis
was unavailable then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from services.platform.events.log import Apply, ConsumedEvent

GROUP = "identity-shared"
TOPICS = ("user.updated", "user.suspended", "user.reinstated", "user.deleted")


def publish_refs(write_refs: Callable[[Sequence[int]], Awaitable[None]]) -> Apply:
    """Returns a consumer that calls `write_refs` with the user ids of each batch. If `write_refs` raises, the log
    retries the batch."""

    async def apply(events: Sequence[ConsumedEvent]) -> None:
        await write_refs(list(dict.fromkeys(event.key for event in events)))

    return apply
