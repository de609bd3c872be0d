"""A queue that is shared fairly."""

from __future__ import annotations

import pytest

from services.identity.fair_queue import FairQueue


def queue_of(most: int, *items: str) -> FairQueue[str]:
    """A queue with items such as `a1`, of the key `a`."""
    queue: FairQueue[str] = FairQueue(most)
    for item in items:
        assert queue.push(item[0], item) is None
    return queue


def test_pop_takes_from_each_key_in_turn() -> None:
    queue = queue_of(9, "a1", "a2", "a3", "b1", "c1", "c2")
    assert [queue.pop() for _ in range(len(queue))] == ["a1", "b1", "c1", "a2", "c2", "a3"]
    with pytest.raises(IndexError):
        queue.pop()


def test_push_to_a_full_queue_makes_the_longest_line_give_way() -> None:
    queue = queue_of(4, "a1", "a2", "a3", "b1")
    assert queue.push("a", "a4") == "a4"
    assert queue.push("c", "c1") == "a3"
    assert queue.push("c", "c2") == "c2"
    assert len(queue) == 4


def test_push_to_a_queue_full_of_equals_is_refused() -> None:
    queue = queue_of(2, "a1", "b1")
    assert queue.push("c", "c1") == "c1"


def test_discard_takes_out_what_is_there_and_nothing_else() -> None:
    queue = queue_of(3, "a1", "a2", "b1")
    queue.discard("b", "b1")
    queue.discard("b", "b1")
    queue.discard("a", "a9")
    assert (len(queue), queue.pop(), queue.pop()) == (2, "a1", "a2")
