"""What is fetched and not applied yet, while partitions come, go and are sought."""

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
    """Fetches messages; the strange ones are passed over."""
    passed = set(strange)
    backlog.append((partition, offset, None if offset in passed else event(offset)) for offset in offsets)


def offsets_of(backlog: Backlog, most: int = 100) -> list[tuple[int, int]]:
    """Partition and offset of what is taken."""
    return [(entry.partition[1], entry.offset) for entry in backlog.next_batch(most)]


@pytest.fixture
def backlog() -> Backlog:
    backlog = Backlog(10)
    backlog.assign([HERE, THERE])
    return backlog


def test_places_move_with_what_is_applied_and_never_before(backlog: Backlog) -> None:
    append(backlog, HERE, range(5, 8))
    assert backlog.uncommitted() == {HERE: 5}
    assert offsets_of(backlog, 2) == [(0, 5), (0, 6)]
    assert backlog.uncommitted() == {}
    backlog.complete_batch()
    assert backlog.uncommitted() == {HERE: 7}
    backlog.commit_failed([HERE])
    assert backlog.uncommitted() == {HERE: 7}


def test_what_is_passed_over_counts_as_applied_in_its_turn(backlog: Backlog) -> None:
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


def test_what_was_not_applied_comes_again_in_its_order(backlog: Backlog) -> None:
    append(backlog, HERE, range(3))
    append(backlog, THERE, range(2))
    backlog.next_batch(2)
    assert backlog.progress()[HERE].events == 3
    backlog.return_batch()
    assert offsets_of(backlog) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def test_a_seek_outdoes_what_is_at_hand_and_what_waits(backlog: Backlog) -> None:
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


def test_a_failed_batch_from_before_a_seek_is_not_put_back(backlog: Backlog) -> None:
    append(backlog, HERE, range(2))
    backlog.next_batch(2)
    backlog.seek({HERE: 0})
    append(backlog, HERE, range(2))
    backlog.return_batch()
    assert offsets_of(backlog) == [(0, 0), (0, 1)]


def test_a_partition_that_comes_back_forgets_what_was_at_hand(backlog: Backlog) -> None:
    append(backlog, HERE, range(3))
    backlog.next_batch(3)
    # The batch takes longer than the others wait.
    assert backlog.release([HERE], 0.0) == {HERE: 0}
    backlog.assign([HERE])
    append(backlog, HERE, [0])
    backlog.complete_batch()
    assert backlog.progress()[HERE] == PartitionProgress(0, 1, 1, 1_000)


def test_a_release_waits_for_the_batch_and_returns_its_end(backlog: Backlog) -> None:
    append(backlog, HERE, range(4))
    append(backlog, THERE, range(1))
    backlog.next_batch(2)
    released: list[dict[PartitionKey, int]] = []
    thread = threading.Thread(target=lambda: released.append(backlog.release([HERE], 10.0)))
    thread.start()
    while not backlog.is_revocation_pending():
        pass
    # What waits is gone at once: it is not to be begun.
    assert backlog.progress()[HERE].events == 2
    backlog.complete_batch()
    thread.join(10)
    assert released == [{HERE: 2}]
    assert backlog.partitions() == [THERE]
    assert not backlog.is_revocation_pending()
    assert offsets_of(backlog) == [(1, 0)]


def test_what_fails_during_a_release_is_left_to_the_next(backlog: Backlog) -> None:
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


def test_what_comes_late_of_a_lost_partition_is_dropped(backlog: Backlog) -> None:
    backlog.release([HERE], 0.0)
    append(backlog, HERE, range(3))
    assert offsets_of(backlog) == []
    assert HERE not in backlog.progress()


def test_it_is_full_at_its_bound_and_has_room_at_half(backlog: Backlog) -> None:
    append(backlog, HERE, range(9))
    assert not backlog.is_full()
    append(backlog, HERE, [9])
    assert backlog.is_full()
    backlog.next_batch(4)
    backlog.complete_batch()
    assert not backlog.wait_for_room(0.01)
    backlog.next_batch(1)
    assert backlog.wait_for_room(0.0)
