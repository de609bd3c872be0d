"""The backlog of fetched, unapplied events during assignments, revocations and seeks."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import pytest

from services.platform.events.log import ConsumedEvent
from services.platform.kafka.backlog import Backlog, PartitionProgress
from services.platform.kafka.records import PartitionKey

HERE: PartitionKey = ("tweet", 0)
THERE: PartitionKey = ("tweet", 1)


def event(offset: int, appended_ms: int = 0) -> ConsumedEvent:
    return ConsumedEvent(offset, appended_ms or 1_000 + offset, "tweet.created", 7, offset, b"", "")


def append(backlog: Backlog, partition: PartitionKey, offsets: Iterable[int], strange: Iterable[int] = ()) -> None:
    """Fetches messages; `strange` ones hold no event of the group."""
    passed = set(strange)
    backlog.append((partition, offset, None if offset in passed else event(offset)) for offset in offsets)


def offsets_of(backlog: Backlog, most: int = 100) -> list[tuple[int, int]]:
    """Returns partition and offset of each entry of the next batch."""
    return [(entry.partition[1], entry.offset) for entry in backlog.next_batch(most)]


@pytest.fixture
def backlog() -> Backlog:
    backlog = Backlog(10)
    backlog.assign([HERE, THERE])
    return backlog


def test_complete_batch_advances_offsets(backlog: Backlog) -> None:
    append(backlog, HERE, range(5, 8))
    assert backlog.uncommitted() == {HERE: 5}
    assert offsets_of(backlog, 2) == [(0, 5), (0, 6)]
    assert backlog.uncommitted() == {}
    backlog.complete_batch()
    assert backlog.uncommitted() == {HERE: 7}
    backlog.commit_failed([HERE])
    assert backlog.uncommitted() == {HERE: 7}


def test_skipped_messages_advance_offsets_in_order(backlog: Backlog) -> None:
    append(backlog, HERE, range(6), strange=[0, 2, 4, 5])
    assert backlog.progress()[HERE] == PartitionProgress(0, 6, 2, 1_001)
    assert offsets_of(backlog, 1) == [(0, 0), (0, 1)]
    backlog.complete_batch()
    assert backlog.progress()[HERE] == PartitionProgress(2, 6, 1, 1_003)
    assert offsets_of(backlog, 1) == [(0, 2), (0, 3)]
    backlog.complete_batch()
    assert offsets_of(backlog, 1) == [(0, 4), (0, 5)]
    backlog.complete_batch()
    assert backlog.progress()[HERE] == PartitionProgress(6, 6, 0, None)


def test_return_batch_queues_entries_in_order(backlog: Backlog) -> None:
    append(backlog, HERE, range(3))
    append(backlog, THERE, range(2))
    backlog.next_batch(2)
    assert backlog.progress()[HERE].events == 3
    backlog.return_batch()
    assert offsets_of(backlog) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def test_seek_drops_queued_and_overrides_batch(backlog: Backlog) -> None:
    append(backlog, HERE, range(4))
    append(backlog, THERE, range(2))
    backlog.next_batch(2)
    assert backlog.seek({HERE: 1, ("user", 0): 9}) == {HERE: 1}
    backlog.complete_batch()
    assert backlog.progress()[HERE] == PartitionProgress(1, 1, 0, None)
    assert offsets_of(backlog) == [(1, 0), (1, 1)]
    append(backlog, HERE, range(1, 3))
    backlog.return_batch()
    assert offsets_of(backlog) == [(1, 0), (1, 1), (0, 1), (0, 2)]


def test_return_batch_after_seek_drops_entries(backlog: Backlog) -> None:
    append(backlog, HERE, range(2))
    backlog.next_batch(2)
    backlog.seek({HERE: 0})
    append(backlog, HERE, range(2))
    backlog.return_batch()
    assert offsets_of(backlog) == [(0, 0), (0, 1)]


def test_reassigned_partition_ignores_earlier_batch(backlog: Backlog) -> None:
    append(backlog, HERE, range(3))
    backlog.next_batch(3)
    # The batch takes longer than the rebalance waits.
    assert backlog.release([HERE], 0.0) == {HERE: 0}
    backlog.assign([HERE])
    append(backlog, HERE, [0])
    backlog.complete_batch()
    assert backlog.progress()[HERE] == PartitionProgress(0, 1, 1, 1_000)


def test_release_waits_for_batch_and_returns_offsets(backlog: Backlog) -> None:
    append(backlog, HERE, range(4))
    append(backlog, THERE, range(1))
    backlog.next_batch(2)
    released: list[dict[PartitionKey, int]] = []
    thread = threading.Thread(target=lambda: released.append(backlog.release([HERE], 10.0)))
    thread.start()
    while not backlog.is_revocation_pending():
        pass
    # Queued entries are removed at once, so they are not started.
    assert backlog.progress()[HERE].events == 2
    backlog.complete_batch()
    thread.join(10)
    assert released == [{HERE: 2}]
    assert backlog.partitions() == [THERE]
    assert not backlog.is_revocation_pending()
    assert offsets_of(backlog) == [(1, 0)]


def test_return_batch_during_release_drops_entries(backlog: Backlog) -> None:
    append(backlog, HERE, range(2))
    backlog.next_batch(2)
    released: list[dict[PartitionKey, int]] = []
    thread = threading.Thread(target=lambda: released.append(backlog.release([HERE], 10.0)))
    thread.start()
    while not backlog.is_revocation_pending():
        pass
    backlog.return_batch()
    thread.join(10)
    assert released == [{HERE: 0}]
    assert offsets_of(backlog) == []


def test_append_unassigned_partition_is_ignored(backlog: Backlog) -> None:
    backlog.release([HERE], 0.0)
    append(backlog, HERE, range(3))
    assert offsets_of(backlog) == []
    assert HERE not in backlog.progress()


def test_is_full_at_limit_and_has_room_at_half(backlog: Backlog) -> None:
    append(backlog, HERE, range(9))
    assert not backlog.is_full()
    append(backlog, HERE, [9])
    assert backlog.is_full()
    backlog.next_batch(4)
    backlog.complete_batch()
    assert not backlog.wait_for_room(0.01)
    backlog.next_batch(1)
    assert backlog.wait_for_room(0.0)
