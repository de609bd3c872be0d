"""Responses that services of one process pass to each other without serializing them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from google.protobuf.message import Message


class ByReference(ABC):
    """The base of immutable responses that a servicer may return in place of a message of `wire_type`.

    A subclass has the fields of `wire_type` as attributes. The in-process channel passes the object itself to a caller
    that expects `wire_type`, so the caller can recognize values that it has seen before by their identity. All others
    get the message that `SerializeToString` encodes.

    `is_reused` says whether later calls may return the same object again, so that it is worthwhile to cache what is
    computed from it.
    """

    __slots__ = ()

    wire_type: ClassVar[type[Message]]
    is_reused: bool

    @abstractmethod
    def SerializeToString(self) -> bytes:  # noqa: N802 (the name of Protobuf's method)
        """Returns the encoding of the message."""
