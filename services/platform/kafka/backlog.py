"""What one process has fetched of a group's partitions and not applied yet: shared by the thread that fetches and the loop that applies.

A partition may be taken away, given back, or sought elsewhere while some of its events are being applied. So each time it comes to
stand anew it gets a new epoch, and what was taken out under an older one counts no more.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from services.platform.events.log import ConsumedEvent
from services.platform.kafka.records import PartitionKey


class Entry(NamedTuple):
    """A message: where it stands, and the event in it; None where it is one that the group passes over."""

    place: PartitionKey
    offset: int
    event: ConsumedEvent | None
    epoch: int


class PartitionProgress(NamedTuple):
    """How a partition stands here: the next offset to apply and to fetch, how many events lie between, when the oldest was appended."""

    position: int
    fetched: int
    events: int
    oldest_ms: int | None


class Backlog:
    """Entries in the order of fetching, at most about `room_for`; positions of the partitions held. Every method is quick."""

    def __init__(self, room_for: int) -> None:
        self._room_for = room_for
        self._changed = threading.Condition()
        self._entries: deque[Entry] = deque()
        self._at_hand: Sequence[Entry] = ()
        self._count = itertools.count(1)
        self._epochs: dict[PartitionKey, int] = {}
        # The next offset to apply, and to fetch, of partitions where one is known.
        self._positions: dict[PartitionKey, int] = {}
        self._fetched: dict[PartitionKey, int] = {}
        self._committed: dict[PartitionKey, int] = {}
        self._leaving: set[PartitionKey] = set()

    # For the thread that fetches.

    def hold(self, places: Iterable[PartitionKey], positions: Mapping[PartitionKey, int] | None = None) -> None:
        """These partitions are ours from now on; `positions` where they begin, as far as that is known."""
        with self._changed:
            for place in places:
                self._forget(place)
                self._epochs[place] = next(self._count)
                if positions is not None and place in positions:
                    self._positions[place] = self._fetched[place] = positions[place]

    def places(self) -> list[PartitionKey]:
        """The partitions that are held here."""
        with self._changed:
            return list(self._epochs)

    def put(self, messages: Iterable[tuple[PartitionKey, int, ConsumedEvent | None]]) -> None:
        """What was fetched, in order."""
        with self._changed:
            for place, offset, event in messages:
                epoch = self._epochs.get(place)
                if epoch is None:
                    continue
                self._positions.setdefault(place, offset)
                self._fetched[place] = offset + 1
                self._entries.append(Entry(place, offset, event, epoch))

    def is_full(self) -> bool:
        """Whether nothing more should be fetched."""
        with self._changed:
            return len(self._entries) >= self._room_for

    def wait_for_room(self, at_most_s: float) -> bool:
        """Waits until half of it is free; False where it was not."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._entries) <= self._room_for // 2, at_most_s)

    def release(self, places: Collection[PartitionKey], at_most_s: float) -> dict[PartitionKey, int]:
        """Gives partitions up, once those of their events that are at hand are applied or put back, or the time has passed.

        Returns what is to be committed for them.
        """
        gone = set(places)
        with self._changed:
            self._leaving |= gone
            self._drop(gone)
            self._changed.wait_for(lambda: not any(entry.place in gone for entry in self._at_hand), at_most_s)
            changed = {place: offset for place, offset in self._uncommitted().items() if place in gone}
            self._leaving -= gone
            for place in gone:
                self._forget(place)
            return changed

    def seek(self, targets: Mapping[PartitionKey, int]) -> dict[PartitionKey, int]:
        """Goes on at these offsets, in those partitions that are held here: returns them. What is at hand counts no more."""
        with self._changed:
            mine = {place: offset for place, offset in targets.items() if place in self._epochs}
            self._drop(set(mine))
            for place, offset in mine.items():
                self._epochs[place] = next(self._count)
                self._positions[place] = self._fetched[place] = offset
            return mine

    def uncommitted(self) -> dict[PartitionKey, int]:
        """Positions that changed since they were last returned here; `not_committed` takes them back."""
        with self._changed:
            changed = self._uncommitted()
            self._committed |= changed
            return changed

    def not_committed(self, places: Iterable[PartitionKey]) -> None:
        """Their positions are to be committed again."""
        with self._changed:
            for place in places:
                self._committed.pop(place, None)

    # For the loop that applies.

    def take(self, most: int) -> Sequence[Entry]:
        """The next entries, until `most` hold an event; they are at hand until `applied` or `put_back`."""
        with self._changed:
            taken: list[Entry] = []
            events = 0
            while self._entries and events < most:
                entry = self._entries.popleft()
                events += entry.event is not None
                taken.append(entry)
            self._at_hand = taken
            self._changed.notify_all()
            return taken

    def applied(self) -> None:
        """What is at hand is done with."""
        with self._changed:
            for entry in self._at_hand:
                if self._epochs.get(entry.place) == entry.epoch:
                    self._positions[entry.place] = entry.offset + 1
            self._at_hand = ()
            self._changed.notify_all()

    def put_back(self) -> None:
        """What is at hand is to come again, but for what is no longer ours."""
        with self._changed:
            still = [e for e in self._at_hand if self._epochs.get(e.place) == e.epoch and e.place not in self._leaving]
            self._entries.extendleft(reversed(still))
            self._at_hand = ()
            self._changed.notify_all()

    def is_wanted_back(self) -> bool:
        """Whether somebody else waits for a partition of which events are at hand."""
        with self._changed:
            return any(entry.place in self._leaving for entry in self._at_hand)

    def standings(self) -> dict[PartitionKey, PartitionProgress]:
        """How the partitions stand that are held here and whose place is known."""
        with self._changed:
            found = {
                place: PartitionProgress(self._positions[place], self._fetched[place], 0, None)
                for place in self._epochs
                if place in self._positions
            }
            for entry in itertools.chain(self._at_hand, self._entries):
                known = found.get(entry.place)
                if known is None or entry.event is None or self._epochs.get(entry.place) != entry.epoch:
                    continue
                oldest = entry.event.appended_ms if known.oldest_ms is None else known.oldest_ms
                found[entry.place] = known._replace(events=known.events + 1, oldest_ms=oldest)
            return found

    def _drop(self, places: Collection[PartitionKey]) -> None:
        self._entries = deque(entry for entry in self._entries if entry.place not in places)
        self._changed.notify_all()

    def _forget(self, place: PartitionKey) -> None:
        for known in (self._epochs, self._positions, self._fetched, self._committed):
            known.pop(place, None)

    def _uncommitted(self) -> dict[PartitionKey, int]:
        return {
            place: position
            for place, position in self._positions.items()
            if place in self._epochs and self._committed.get(place) != position
        }
