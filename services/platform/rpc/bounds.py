"""How long the lists of a request may be, checked before any of their items is looked at.

The field rules cost up to 15 µs for each item that breaks one, and a megabyte holds hundreds of thousands: lists come first, everywhere.
"""

from __future__ import annotations

from typing import Any

from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from services.platform.rpc import errors


def max_items(field: FieldDescriptor) -> int:
    """Returns how many items a repeated field may hold, or 0 if the contract does not say."""
    rules: validate_pb2.FieldRules = field.GetOptions().Extensions[validate_pb2.field]
    return rules.map.max_pairs if rules.WhichOneof("type") == "map" else rules.repeated.max_items


def too_many(most: int) -> str:
    """Returns what a violation tells of a list with more than `most` items."""
    return f"must hold at most {most} item{'' if most == 1 else 's'}"


class Bounds:
    """The bounds of one message type's lists, and of those in the messages inside it. False if there is no list anywhere.

    `most` is how many items they may hold together. Raises TypeError if the contract leaves a list unbounded.
    """

    __slots__ = ("_inside", "_lists", "most")

    def __init__(self, descriptor: Descriptor, holders: tuple[str, ...] = ()) -> None:
        if descriptor.full_name in holders:
            raise TypeError(f"{descriptor.full_name} holds itself: its lists have no bound")
        # (name, items at most); (name, whether it is a list, bounds of the message).
        self._lists: list[tuple[str, int]] = []
        self._inside: list[tuple[str, bool, Bounds]] = []
        self.most = 0
        for field in descriptor.fields:
            times = 1
            if field.is_repeated:
                times = max_items(field)
                if not times:
                    raise TypeError(f"{field.full_name} has no max_items")
                self._lists.append((field.name, times))
                self.most += times
            if field.message_type is None:
                continue
            inside = Bounds(field.message_type, (*holders, descriptor.full_name))
            if not inside:
                continue
            if field.message_type.GetOptions().map_entry:
                raise TypeError(f"{field.full_name} is a map of lists, whose bounds nobody checks")
            self._inside.append((field.name, bool(field.is_repeated), inside))
            self.most += times * inside.most

    def __bool__(self) -> bool:
        return bool(self._lists or self._inside)

    def check(self, message: Any, prefix: str = "") -> None:
        """Raises INVALID_ARGUMENT naming the first list that is too long. Costs under a microsecond if no message lies inside."""
        for name, most in self._lists:
            if len(getattr(message, name)) > most:
                raise errors.broken_rules([errors.Violation(prefix + name, too_many(most))])
        for name, is_list, inside in self._inside:
            if is_list:
                for index, one in enumerate(getattr(message, name)):
                    inside.check(one, f"{prefix}{name}[{index}].")
            elif message.HasField(name):
                inside.check(getattr(message, name), f"{prefix}{name}.")
