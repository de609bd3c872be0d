"""Defines the port of outboxes. An outbox holds events that were committed with a write and are not published yet."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Protocol

from services.platform.events.log import EventLog, Lag
from services.platform.ids.snowflake import timestamp_ms


class PendingEvents(Protocol):
    """The outbox of a store in this process. A relay publishes its events to `log`."""

    log: EventLog

    async def pending(self, topics: Sequence[str]) -> tuple[int, int]:
        """Returns the number of unpublished events of these topics and the lowest of their ids (0 if there are none).

        Counts at most MAX_LAG_COUNTED events.
        """


# The outboxes of this process. The references are weak, so an outbox leaves the set when nothing else refers to it.
_sources: weakref.WeakSet[PendingEvents] = weakref.WeakSet()


def register(source: PendingEvents) -> None:
    """Includes this outbox in the results of `pending_lag` as long as the object exists."""
    _sources.add(source)


async def pending_lag(log: EventLog, topics: Sequence[str], now_ms: int) -> Lag:
    """Returns the lag of the outboxes of this process: committed events of these topics not yet published to `log`.

    `now_ms` is the current time in Unix milliseconds, from which the age of the oldest event is computed.
    """
    count, oldest = 0, 0
    for source in [source for source in _sources if source.log is log]:
        found, first = await source.pending(topics)
        if found:
            count, oldest = count + found, min(oldest or first, first)
    return Lag(count, max(now_ms - timestamp_ms(oldest), 0) / 1000 if count else 0.0)
