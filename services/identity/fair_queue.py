"""A bounded queue with round-robin over keys: items of a busy key delay only items of the same key."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Holds up to `max_items` items in one FIFO line per key; `pop` serves the lines round-robin."""

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._length = 0
        # The lines by key, in round-robin order: `pop` serves the first. No line is empty.
        self._lines: dict[str, deque[T]] = {}

    def __len__(self) -> int:
        return self._length

    def push(self, key: str, item: T) -> T | None:
        """Adds the item to its key's line. Returns the item that was evicted, or None.

        If the queue is full, evicts the last item of the longest line. If the line of `key` would then be at least as
        long as the longest line, returns `item` without adding it.
        """
        evicted: T | None = None
        if self._length >= self._max_items:
            longest = max(self._lines, key=lambda name: len(self._lines[name]))
            if len(self._lines[longest]) <= len(self._lines.get(key, ())) + 1:
                return item
            evicted = self._lines[longest].pop()
            self._length -= 1
        self._lines.setdefault(key, deque()).append(item)
        self._length += 1
        return evicted

    def pop(self) -> T:
        """Removes and returns the first item of the next line in round-robin order. Raises IndexError if the queue is
        empty."""
        if not self._lines:
            raise IndexError("the queue is empty")
        key = next(iter(self._lines))
        line = self._lines.pop(key)
        item = line.popleft()
        self._length -= 1
        if line:
            self._lines[key] = line
        return item

    def discard(self, key: str, item: T) -> None:
        """Removes the item from the line of `key`. Does nothing if the item is not in the line."""
        line = self._lines.get(key)
        if line is not None and item in line:
            line.remove(item)
            self._length -= 1
            if not line:
                del self._lines[key]
