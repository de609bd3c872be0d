"""The newest events of the embedded log in memory: a consumer that is up to date reads them without a query, which would
cost two switches of threads for each event and consumer."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from services.platform.events.log import ConsumedEvent

# Maximum number of events, and maximum size in bytes of their payloads: a second of posts at full speed. A consumer that
# is further behind reads batches of events, for which the cost of a query does not matter.
MAX_EVENTS = 2_000
MAX_BYTES = 4 * 1024 * 1024


class LogTail:
    """The events with the highest offsets, without gaps between them. To be used on one event loop."""

    def __init__(self) -> None:
        self._events: list[ConsumedEvent] = []
        self._bytes = 0

    def extend(self, events: Sequence[ConsumedEvent]) -> None:
        """Adds committed events, in the order of their offsets. If an event between the tail and these events is
        missing, the tail begins with these events. Drops the older half of the tail if it exceeds a bound."""
        if self._events and events[0].offset != self._events[-1].offset + 1:
            self.clear()
        self._events += events
        self._bytes += sum(len(event.payload) for event in events)
        while len(self._events) > MAX_EVENTS or self._bytes > MAX_BYTES:
            dropped = (len(self._events) + 1) // 2
            self._bytes -= sum(len(event.payload) for event in self._events[:dropped])
            del self._events[:dropped]

    def clear(self) -> None:
        """Drops all events. Call this method if events may have been added to or deleted from the log that `extend` did
        not get."""
        self._events.clear()
        self._bytes = 0

    def after(self, position: int, topics: Collection[str], max_events: int) -> tuple[list[ConsumedEvent], int] | None:
        """Returns the first events of these topics after the offset `position`, at most `max_events`, and the highest
        offset of the tail, or `position` if that is higher. Returns None if the tail does not have all events after
        `position`."""
        if not self._events or position + 1 < self._events[0].offset:
            return None
        found: list[ConsumedEvent] = []
        for at in range(position + 1 - self._events[0].offset, len(self._events)):
            event = self._events[at]
            if event.topic in topics:
                found.append(event)
                if len(found) == max_events:
                    break
        # A position is higher if the consumer has queried an event whose commit `extend` has not got yet.
        return found, max(position, self._events[-1].offset)
