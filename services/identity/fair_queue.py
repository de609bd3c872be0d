"""A bounded queue that is shared fairly: who sends much waits behind themselves, not before others."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Up to `most` items, taken in turn from each key's line."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._length = 0
        # The key whose turn it is comes first. No line is empty.
        self._lines: dict[str, deque[T]] = {}

    def __len__(self) -> int:
        return self._length

    def push(self, key: str, item: T) -> T | None:
        """Adds the item to its key's line and returns what had to give way, or None.

        In a full queue that is the last item of the longest line, or the new one if its own line would be as long.
        """
        gave_way: T | None = None
        if self._length >= self._most:
            longest = max(self._lines, key=lambda name: len(self._lines[name]))
            if len(self._lines[longest]) <= len(self._lines.get(key, ())) + 1:
                return item
            gave_way = self._lines[longest].pop()
            self._length -= 1
        self._lines.setdefault(key, deque()).append(item)
        self._length += 1
        return gave_way

    def pop(self) -> T:
        """Takes the first item of the line whose turn it is. Raises IndexError if the queue is empty."""
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
        """Takes the item out, if it is still there."""
        line = self._lines.get(key)
        if line is not None and item in line:
            line.remove(item)
            self._length -= 1
            if not line:
                del self._lines[key]
