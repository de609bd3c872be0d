"""Holds the events that a consumer in this process has fetched but not applied yet. Its fetcher thread and the event
loop share it.

A partition can be revoked, assigned again or moved by a seek while some of its events are being applied. Each
assignment and each seek therefore gives the partition a new epoch (a number), and an entry with an older epoch does not
change the partition's offsets when its batch completes.
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
    """A fetched message. `event` is None if the group does not consume events of this name: the entry then only
    advances the offset. `epoch` is the epoch of the partition when the message was fetched."""

    partition: PartitionKey
    offset: int
    event: ConsumedEvent | None
    epoch: int


class PartitionProgress(NamedTuple):
    """Progress of one partition: the next offset to apply (`position`), the next to fetch (`fetched`), the number of
    events between the two, and the append time of the oldest of these events in Unix milliseconds."""

    position: int
    fetched: int
    events: int
    oldest_ms: int | None


class Backlog:
    """A queue of fetched messages in fetch order, and two offsets of each assigned partition: the next one to fetch and
    the next one to apply. If `max_entries` messages are queued, `is_full` returns True and the fetcher stops fetching.
    Thread-safe."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._changed = threading.Condition()
        self._entries: deque[FetchedEntry] = deque()
        self._in_progress: Sequence[FetchedEntry] = ()
        self._count = itertools.count(1)
        self._epochs: dict[PartitionKey, int] = {}
        # `_positions`: the next offset to apply; `_fetched`: the next offset to fetch. If a partition was assigned
        # without a start offset, both are absent until its first message arrives.
        self._positions: dict[PartitionKey, int] = {}
        self._fetched: dict[PartitionKey, int] = {}
        self._committed: dict[PartitionKey, int] = {}
        self._revoking: set[PartitionKey] = set()

    # The fetcher thread calls the following methods.

    def assign(self, partitions: Iterable[PartitionKey], positions: Mapping[PartitionKey, int] | None = None) -> None:
        """Adds assigned partitions; `positions` are their start offsets, if known."""
        with self._changed:
            for partition in partitions:
                self._forget(partition)
                self._epochs[partition] = next(self._count)
                if positions is not None and partition in positions:
                    self._positions[partition] = self._fetched[partition] = positions[partition]

    def partitions(self) -> list[PartitionKey]:
        """Returns the assigned partitions."""
        with self._changed:
            return list(self._epochs)

    def append(self, messages: Iterable[tuple[PartitionKey, int, ConsumedEvent | None]]) -> None:
        """Queues fetched messages in order; ignores messages of partitions that are not assigned."""
        with self._changed:
            for partition, offset, event in messages:
                epoch = self._epochs.get(partition)
                if epoch is None:
                    continue
                self._positions.setdefault(partition, offset)
                self._fetched[partition] = offset + 1
                self._entries.append(FetchedEntry(partition, offset, event, epoch))

    def is_full(self) -> bool:
        """Returns True if `max_entries` messages are queued: then the fetcher should stop fetching."""
        with self._changed:
            return len(self._entries) >= self._max_entries

    def wait_for_room(self, at_most_s: float) -> bool:
        """Waits until at most `max_entries` / 2 messages are queued. Returns False if this takes longer than
        `at_most_s` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._entries) <= self._max_entries // 2, at_most_s)

    def release(self, partitions: Collection[PartitionKey], at_most_s: float) -> dict[PartitionKey, int]:
        """Removes partitions. If the batch in progress has entries of these partitions, first waits until it is
        completed or returned, at most `at_most_s` seconds.

        Returns the offsets to commit for these partitions.
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
        """Moves assigned partitions to these offsets and drops their queued entries; ignores other partitions. Returns
        the new offsets of the partitions that it moved.

        Entries of the batch in progress no longer advance the offsets of these partitions.
        """
        with self._changed:
            assigned = {partition: offset for partition, offset in targets.items() if partition in self._epochs}
            self._remove_entries(set(assigned))
            for partition, offset in assigned.items():
                self._epochs[partition] = next(self._count)
                self._positions[partition] = self._fetched[partition] = offset
            return assigned

    def uncommitted(self) -> dict[PartitionKey, int]:
        """Returns, by partition, the offsets that changed since the last call. They count as committed unless
        `commit_failed` is called."""
        with self._changed:
            changed = self._uncommitted()
            self._committed |= changed
            return changed

    def commit_failed(self, partitions: Iterable[PartitionKey]) -> None:
        """Makes `uncommitted` return the offsets of these partitions again."""
        with self._changed:
            for partition in partitions:
                self._committed.pop(partition, None)

    # The event loop calls the following methods.

    def next_batch(self, max_events: int) -> Sequence[FetchedEntry]:
        """Returns the next entries, with at most `max_events` events. These entries are in progress until
        `complete_batch` or `return_batch` is called."""
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
        """Advances the offsets past the entries in progress."""
        with self._changed:
            for entry in self._in_progress:
                if self._epochs.get(entry.partition) == entry.epoch:
                    self._positions[entry.partition] = entry.offset + 1
            self._in_progress = ()
            self._changed.notify_all()

    def return_batch(self) -> None:
        """Puts the entries in progress back into the queue. Drops entries of partitions that were revoked, or whose
        position a seek changed, in the meantime."""
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
        """Returns True if a partition with entries in progress is being revoked: then the batch should end soon."""
        with self._changed:
            return any(entry.partition in self._revoking for entry in self._in_progress)

    def progress(self) -> dict[PartitionKey, PartitionProgress]:
        """Returns the progress of the assigned partitions whose offset is known."""
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
