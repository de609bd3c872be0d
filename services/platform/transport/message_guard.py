"""Detects messages that are changed after they were passed to the in-process channel.

The channel passes messages by reference, so such a change would alter the data of the other side.
"""

from __future__ import annotations

from collections import deque

from google.protobuf.message import Message

# Maximum number of recorded messages; older ones are no longer checked. It is enough to detect a servicer that changes
# a message which it has just returned.
CHECKED_MESSAGES = 64


class FrozenMessageChanged(AssertionError):
    """A message was changed after it was passed to the in-process channel."""


class MutationGuard:
    """Serialises each request and response, and detects later changes to them. For tests, because it is slow."""

    def __init__(self) -> None:
        self._seen: deque[tuple[str, Message, bytes]] = deque(maxlen=CHECKED_MESSAGES)

    def freeze(self, path: str, message: Message) -> Message:
        """Records the message of the method `path` and returns a copy of it for the other side.

        The copy is parsed from the serialised message, as over a socket, and recorded as well.
        """
        data = message.SerializeToString(deterministic=True)
        self._seen.append((path, message, data))
        copy = type(message).FromString(data)
        self._seen.append((path, copy, data))
        return copy

    def verify(self) -> None:
        """Raises FrozenMessageChanged if one of the last CHECKED_MESSAGES recorded messages was changed.

        The error names the path of the method and the type of the message.
        """
        for path, message, data in self._seen:
            if message.SerializeToString(deterministic=True) != data:
                raise FrozenMessageChanged(f"{path}: a {type(message).__name__} was changed after it was handed over")
