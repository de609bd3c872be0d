"""The port of outboxes: events that were committed together with their rows and are not in the log yet."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Protocol

from services.platform.events.log import EventLog, Lag
from services.platform.ids.snowflake import timestamp_ms


class PendingEvents(Protocol):
    """An outbox of this process on any backend; its events are published to `log`."""

    log: EventLog

    async def waiting(self, topics: Sequence[str]) -> tuple[int, int]:
        """How many events of these topics wait here (at most MAX_LAG_COUNTED are counted), and the least id among them (0: none)."""


# Those of this process, for `waiting`; those that are gone drop out by themselves.
_sources: weakref.WeakSet[PendingEvents] = weakref.WeakSet()


def register(source: PendingEvents) -> None:
    """Makes what waits in this outbox known to `waiting`, for as long as it lives."""
    _sources.add(source)


async def waiting(log: EventLog, topics: Sequence[str], now_ms: int) -> Lag:
    """The events of these topics that are committed in this process and not yet in the log; `now_ms` is for their age."""
    count, oldest = 0, 0
    for source in [source for source in _sources if source.log is log]:
        found, first = await source.waiting(topics)
        if found:
            count, oldest = count + found, min(oldest or first, first)
    return Lag(count, max(now_ms - timestamp_ms(oldest), 0) / 1000 if count else 0.0)
