"""The fair queue."""

from __future__ import annotations

import pytest

from services.identity.fair_queue import FairQueue


def queue_of(most: int, *items: str) -> FairQueue[str]:
    """Returns a queue with items such as `a1`, whose key is `a`."""
    queue: FairQueue[str] = FairQueue(most)
    for item in items:
        assert queue.push(item[0], item) is None
    return queue


def test_pop_serves_keys_round_robin() -> None:
    queue = queue_of(9, "a1", "a2", "a3", "b1", "c1", "c2")
    assert [queue.pop() for _ in range(len(queue))] == ["a1", "b1", "c1", "a2", "c2", "a3"]
    with pytest.raises(IndexError):
        queue.pop()


def test_push_to_full_queue_evicts_last_of_longest_line() -> None:
    queue = queue_of(4, "a1", "a2", "a3", "b1")
    assert queue.push("a", "a4") == "a4"
    assert queue.push("c", "c1") == "a3"
    assert queue.push("c", "c2") == "c2"
    assert len(queue) == 4


def test_push_to_full_queue_with_equal_lines_rejects_item() -> None:
    queue = queue_of(2, "a1", "b1")
    assert queue.push("c", "c1") == "c1"


def test_discard_removes_only_queued_item() -> None:
    queue = queue_of(3, "a1", "a2", "b1")
    queue.discard("b", "b1")
    queue.discard("b", "b1")
    queue.discard("a", "a9")
    assert (len(queue), queue.pop(), queue.pop()) == (2, "a1", "a2")
