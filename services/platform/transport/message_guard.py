"""Catches messages that change after they were handed over: in process they pass by reference and must be left alone."""

from __future__ import annotations

from collections import deque

from google.protobuf.message import Message

# Messages it keeps an eye on: enough to catch a servicer that changes what it returned a moment ago.
CHECKED_MESSAGES = 64


class FrozenMessageChanged(AssertionError):
    """A message was changed after it was handed over."""


class MutationGuard:
    """The test mode: serialises both ways and fails on any message that changed after the call."""

    def __init__(self) -> None:
        self._seen: deque[tuple[str, Message, bytes]] = deque(maxlen=CHECKED_MESSAGES)

    def freeze(self, path: str, message: Message) -> Message:
        """Watches a message and returns what the other side gets, having crossed the wire format."""
        data = message.SerializeToString(deterministic=True)
        self._seen.append((path, message, data))
        copy = type(message).FromString(data)
        self._seen.append((path, copy, data))
        return copy

    def verify(self) -> None:
        """Raises FrozenMessageChanged naming the method whose message was changed."""
        for path, message, data in self._seen:
            if message.SerializeToString(deterministic=True) != data:
                raise FrozenMessageChanged(f"{path}: a {type(message).__name__} was changed after it was handed over")
