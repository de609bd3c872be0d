"""Checks the lengths of a request's lists, before any of their items is validated.

Validation takes up to 15 µs for each item that breaks a field rule, and a request of one megabyte holds hundreds of
thousands of items.
"""

from __future__ import annotations

from typing import Any

from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from services.platform.rpc import errors


def max_items(field: FieldDescriptor) -> int:
    """Returns `repeated.max_items` or `map.max_pairs` of the field's protovalidate rules, or 0 if the contract declares
    none."""
    rules: validate_pb2.FieldRules = field.GetOptions().Extensions[validate_pb2.field]
    return rules.map.max_pairs if rules.WhichOneof("type") == "map" else rules.repeated.max_items


def too_many(most: int) -> str:
    """Returns the text of the violation for a list with more than `most` items, such as "must hold at most 20
    items"."""
    return f"must hold at most {most} item{'' if most == 1 else 's'}"


class Bounds:
    """The maximum lengths of all lists of one message type, nested messages included. An instance is falsy if the type
    has no list.

    `most` is the number of items that all lists together may hold. The constructor raises TypeError if the contract
    leaves a list unbounded: a list without `max_items`, a message that contains itself, or a map of messages with
    lists.
    """

    __slots__ = ("_inside", "_lists", "most")

    def __init__(self, descriptor: Descriptor, holders: tuple[str, ...] = ()) -> None:
        if descriptor.full_name in holders:
            raise TypeError(f"{descriptor.full_name} contains itself: its lists have no bound")
        # `_lists`: (field name, maximum number of items). `_inside`: (field name, whether the field is repeated, bounds
        # of its message type).
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
                raise TypeError(
                    f"{field.full_name} is a map of messages with lists, whose lengths `check` cannot check"
                )
            self._inside.append((field.name, bool(field.is_repeated), inside))
            self.most += times * inside.most

    def __bool__(self) -> bool:
        return bool(self._lists or self._inside)

    def check(self, message: Any, prefix: str = "") -> None:
        """Raises INVALID_ARGUMENT naming the first list that is too long. `prefix` precedes field paths, such as
        "items[3].".

        Takes under a microsecond for a message without nested messages.
        """
        for name, most in self._lists:
            if len(getattr(message, name)) > most:
                raise errors.broken_rules([errors.Violation(prefix + name, too_many(most))])
        for name, is_list, inside in self._inside:
            if is_list:
                for index, one in enumerate(getattr(message, name)):
                    inside.check(one, f"{prefix}{name}[{index}].")
            elif message.HasField(name):
                inside.check(getattr(message, name), f"{prefix}{name}.")
