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


class FetchedEntry(NamedTuple):
    """A message: where it stands, and the event in it; None where it is one that the group passes over."""

    partition: PartitionKey
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
    """Entries in the order of fetching, at most about `max_entries`; positions of the partitions held. Every method is quick."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._changed = threading.Condition()
        self._entries: deque[FetchedEntry] = deque()
        self._in_progress: Sequence[FetchedEntry] = ()
        self._count = itertools.count(1)
        self._epochs: dict[PartitionKey, int] = {}
        # The next offset to apply, and to fetch, of partitions where one is known.
        self._positions: dict[PartitionKey, int] = {}
        self._fetched: dict[PartitionKey, int] = {}
        self._committed: dict[PartitionKey, int] = {}
        self._revoking: set[PartitionKey] = set()

    # For the thread that fetches.

    def assign(self, partitions: Iterable[PartitionKey], positions: Mapping[PartitionKey, int] | None = None) -> None:
        """These partitions are ours from now on; `positions` where they begin, as far as that is known."""
        with self._changed:
            for partition in partitions:
                self._forget(partition)
                self._epochs[partition] = next(self._count)
                if positions is not None and partition in positions:
                    self._positions[partition] = self._fetched[partition] = positions[partition]

    def partitions(self) -> list[PartitionKey]:
        """The partitions that are held here."""
        with self._changed:
            return list(self._epochs)

    def append(self, messages: Iterable[tuple[PartitionKey, int, ConsumedEvent | None]]) -> None:
        """What was fetched, in order."""
        with self._changed:
            for partition, offset, event in messages:
                epoch = self._epochs.get(partition)
                if epoch is None:
                    continue
                self._positions.setdefault(partition, offset)
                self._fetched[partition] = offset + 1
                self._entries.append(FetchedEntry(partition, offset, event, epoch))

    def is_full(self) -> bool:
        """Whether nothing more should be fetched."""
        with self._changed:
            return len(self._entries) >= self._max_entries

    def wait_for_room(self, at_most_s: float) -> bool:
        """Waits until half of it is free; False where it was not."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._entries) <= self._max_entries // 2, at_most_s)

    def release(self, partitions: Collection[PartitionKey], at_most_s: float) -> dict[PartitionKey, int]:
        """Gives partitions up, once those of their events that are at hand are applied or put back, or the time has passed.

        Returns what is to be committed for them.
        """
        released = set(partitions)
        with self._changed:
            self._revoking |= released
            self._remove_entries(released)
            self._changed.wait_for(
                lambda: not any(entry.partition in released for entry in self._in_progress), at_most_s
            )
            changed = {partition: offset for partition, offset in self._uncommitted().items() if partition in released}
            self._revoking -= released
            for partition in released:
                self._forget(partition)
            return changed

    def seek(self, targets: Mapping[PartitionKey, int]) -> dict[PartitionKey, int]:
        """Goes on at these offsets, in those partitions that are held here: returns them. What is at hand counts no more."""
        with self._changed:
            assigned = {partition: offset for partition, offset in targets.items() if partition in self._epochs}
            self._remove_entries(set(assigned))
            for partition, offset in assigned.items():
                self._epochs[partition] = next(self._count)
                self._positions[partition] = self._fetched[partition] = offset
            return assigned

    def uncommitted(self) -> dict[PartitionKey, int]:
        """Positions that changed since they were last returned here; `commit_failed` takes them back."""
        with self._changed:
            changed = self._uncommitted()
            self._committed |= changed
            return changed

    def commit_failed(self, partitions: Iterable[PartitionKey]) -> None:
        """Their positions are to be committed again."""
        with self._changed:
            for partition in partitions:
                self._committed.pop(partition, None)

    # For the loop that applies.

    def next_batch(self, max_events: int) -> Sequence[FetchedEntry]:
        """The next entries, until `max_events` hold an event; they are at hand until `complete_batch` or `return_batch`."""
        with self._changed:
            batch: list[FetchedEntry] = []
            events = 0
            while self._entries and events < max_events:
                entry = self._entries.popleft()
                events += entry.event is not None
                batch.append(entry)
            self._in_progress = batch
            self._changed.notify_all()
            return batch

    def complete_batch(self) -> None:
        """What is at hand is done with."""
        with self._changed:
            for entry in self._in_progress:
                if self._epochs.get(entry.partition) == entry.epoch:
                    self._positions[entry.partition] = entry.offset + 1
            self._in_progress = ()
            self._changed.notify_all()

    def return_batch(self) -> None:
        """What is at hand is to come again, but for what is no longer ours."""
        with self._changed:
            returned = [
                e
                for e in self._in_progress
                if self._epochs.get(e.partition) == e.epoch and e.partition not in self._revoking
            ]
            self._entries.extendleft(reversed(returned))
            self._in_progress = ()
            self._changed.notify_all()

    def is_revocation_pending(self) -> bool:
        """Whether somebody else waits for a partition of which events are at hand."""
        with self._changed:
            return any(entry.partition in self._revoking for entry in self._in_progress)

    def progress(self) -> dict[PartitionKey, PartitionProgress]:
        """How the partitions stand that are held here and whose place is known."""
        with self._changed:
            found = {
                partition: PartitionProgress(self._positions[partition], self._fetched[partition], 0, None)
                for partition in self._epochs
                if partition in self._positions
            }
            for entry in itertools.chain(self._in_progress, self._entries):
                known = found.get(entry.partition)
                if known is None or entry.event is None or self._epochs.get(entry.partition) != entry.epoch:
                    continue
                oldest = entry.event.appended_ms if known.oldest_ms is None else known.oldest_ms
                found[entry.partition] = known._replace(events=known.events + 1, oldest_ms=oldest)
            return found

    def _remove_entries(self, partitions: Collection[PartitionKey]) -> None:
        self._entries = deque(entry for entry in self._entries if entry.partition not in partitions)
        self._changed.notify_all()

    def _forget(self, partition: PartitionKey) -> None:
        for known in (self._epochs, self._positions, self._fetched, self._committed):
            known.pop(partition, None)

    def _uncommitted(self) -> dict[PartitionKey, int]:
        return {
            partition: position
            for partition, position in self._positions.items()
            if partition in self._epochs and self._committed.get(partition) != position
        }
