"""JSON objects, query parameters and path variables → request messages, by a table compiled once per message type.

Every fault is a violation that names its field; one answer lists the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from gateway_http.codec import field_values
from gateway_http.codec.field_values import Malformed
from services.platform.rpc import errors
from services.platform.rpc.bounds import max_items, too_many
from services.platform.rpc.contract import field_policy
from services.platform.rpc.errors import MAX_VIOLATIONS, Violation

# What a violation quotes of a name the caller made up.
QUOTED_NAME = 64

ME = "me"


class DecodeErrors:
    """One request being read: who `me` is, and what was found wrong so far."""

    __slots__ = ("me", "said_me", "violations")

    def __init__(self, me: int) -> None:
        self.me = me
        self.said_me = False
        self.violations: list[Violation] = []

    def add_violation(self, path: str, message: str) -> None:
        """Notes a violation. The last that is told ends the reading: raises INVALID_ARGUMENT with MAX_VIOLATIONS of them."""
        self.violations.append(Violation(path, message))
        if len(self.violations) == MAX_VIOLATIONS:
            self.finish()

    def finish(self) -> None:
        """Raises INVALID_ARGUMENT where anything was wrong."""
        if self.violations:
            raise errors.broken_rules(self.violations)

    def caller(self) -> int:
        """Whom `me` means; UNAUTHENTICATED where nobody is signed in."""
        if not self.me:
            raise errors.unauthenticated("`me` needs a token")
        self.said_me = True
        return self.me


class EncoderRegistry(dict[str, "MessageDecoder"]):
    """The decoders of one dialect, by the full name of their type; `protobuf_json` is as of `convert.converters`."""

    def __init__(self, *, protobuf_json: bool = False) -> None:
        super().__init__()
        self.protobuf_json = protobuf_json


Assign = Callable[[Message, Any, DecodeErrors, str], None]


class Field:
    """One field of a request message: how it is written from JSON and from text. `most` is how many items a list may have."""

    __slots__ = ("assign", "is_id", "is_text", "most", "name", "oneof", "read_text", "repeated", "takes_me")

    def __init__(self, descriptor: FieldDescriptor, book: EncoderRegistry) -> None:
        self.name = descriptor.name
        self.takes_me = field_policy(descriptor).accepts_me
        self.is_id = descriptor.cpp_type == FieldDescriptor.CPPTYPE_INT64
        self.is_text = descriptor.cpp_type == FieldDescriptor.CPPTYPE_STRING
        self.repeated = descriptor.is_repeated
        self.most = max_items(descriptor)
        if self.repeated and not self.most:
            raise TypeError(f"{descriptor.full_name} has no max_items")
        oneof = descriptor.containing_oneof
        # `optional` makes a oneof of one, which cannot be given twice.
        self.oneof = oneof.name if oneof is not None and len(oneof.fields) > 1 else ""
        self.read_text: Callable[[str], Any] | None = None
        self.assign = self._compile(descriptor, book)

    def _compile(self, descriptor: FieldDescriptor, book: EncoderRegistry) -> Assign:
        message = descriptor.message_type
        if message is None or message.full_name in field_values.WELL_KNOWN:
            from_json, self.read_text = field_values.converters(descriptor, protobuf_json=book.protobuf_json)
            if self.repeated:
                return _assign_list(self.name, from_json, self.most, copies=message is not None)
            return _assign_one(self.name, from_json, copies=message is not None, takes_me=self.takes_me)
        if message.GetOptions().map_entry:
            raise TypeError(f"the gateway reads no maps ({descriptor.full_name})")
        nested = decoder_of(message, book)
        return _assign_messages(self.name, nested, self.most) if self.repeated else _assign_message(self.name, nested)

    def assign_text(self, message: Message, values: Iterable[str], reading: DecodeErrors, path: str) -> None:
        """Writes what a query or a path says; a field that is not repeated takes one value."""
        assert self.read_text is not None
        found: list[Any] = []
        for value in values:
            if self.repeated and len(found) == self.most:
                reading.add_violation(path, too_many(self.most))
                return
            try:
                found.append(reading.caller() if self.takes_me and value == ME else self.read_text(value))
            except Malformed as error:
                reading.add_violation(path, str(error))
                return
        if self.repeated:
            getattr(message, self.name).extend(found)
        elif len(found) != 1:
            reading.add_violation(path, "must be given once")
        elif isinstance(found[0], Message):
            getattr(message, self.name).CopyFrom(found[0])
        else:
            setattr(message, self.name, found[0])


def _assign_one(name: str, read: field_values.Converter, *, copies: bool, takes_me: bool) -> Assign:
    def assign(message: Message, value: Any, reading: DecodeErrors, path: str) -> None:
        try:
            found = reading.caller() if takes_me and value == ME else read(value)
        except Malformed as error:
            reading.add_violation(path, str(error))
            return
        if copies:
            getattr(message, name).CopyFrom(found)
        else:
            setattr(message, name, found)

    return assign


def _is_list(value: Any, most: int, reading: DecodeErrors, path: str) -> bool:
    """Whether it is a list of at most `most` items, whatever they are; notes the violation if not."""
    if type(value) is not list:
        reading.add_violation(path, "must be a list")
        return False
    if len(value) > most:
        reading.add_violation(path, too_many(most))
        return False
    return True


def _assign_list(name: str, read: field_values.Converter, most: int, *, copies: bool) -> Assign:
    def assign(message: Message, value: Any, reading: DecodeErrors, path: str) -> None:
        if not _is_list(value, most, reading, path):
            return
        found: list[Any] = []
        for index, item in enumerate(value):
            try:
                found.append(read(item))
            except Malformed as error:
                reading.add_violation(f"{path}[{index}]", str(error))
        target = getattr(message, name)
        if copies:
            for one in found:
                target.add().CopyFrom(one)
        else:
            target.extend(found)

    return assign


def _assign_message(name: str, nested: MessageDecoder) -> Assign:
    def assign(message: Message, value: Any, reading: DecodeErrors, path: str) -> None:
        if type(value) is not dict:
            reading.add_violation(path, "must be an object")
            return
        target = getattr(message, name)
        target.SetInParent()
        nested.read_object(value, target, reading, f"{path}.")

    return assign


def _assign_messages(name: str, nested: MessageDecoder, most: int) -> Assign:
    def assign(message: Message, value: Any, reading: DecodeErrors, path: str) -> None:
        if not _is_list(value, most, reading, path):
            return
        for index, item in enumerate(value):
            if type(item) is not dict:
                reading.add_violation(f"{path}[{index}]", "must be an object")
                continue
            nested.read_object(item, getattr(message, name).add(), reading, f"{path}[{index}].")

    return assign


class MessageDecoder:
    """Reads one message type. `fields` maps every accepted spelling to its field."""

    __slots__ = ("fields",)

    def __init__(self, descriptor: Descriptor, book: EncoderRegistry) -> None:
        # Before the fields, so that a type that holds itself finds this decoder.
        book[descriptor.full_name] = self
        self.fields: dict[str, Field] = {}
        for one in descriptor.fields:
            field = Field(one, book)
            for name in {one.name, one.json_name, *field_policy(one).aliases}:
                if name in self.fields:
                    raise ValueError(f"{descriptor.full_name} has two fields spelt {name}")
                self.fields[name] = field

    def read_object(self, value: Mapping[str, Any], message: Message, reading: DecodeErrors, prefix: str = "") -> None:
        """Writes a JSON object into the message; null leaves a field unset."""
        taken: set[str] = set()
        for name, item in value.items():
            field = self.fields.get(name)
            if field is None:
                reading.add_violation(prefix + name[:QUOTED_NAME], "is not a field of this request")
                continue
            path = prefix + field.name
            if item is None:
                continue
            key = field.oneof or field.name
            if key in taken:
                reading.add_violation(path, "is given twice, or beside a field that excludes it")
                continue
            taken.add(key)
            field.assign(message, item, reading, path)


def decoder_of(descriptor: Descriptor, book: EncoderRegistry) -> MessageDecoder:
    """The type's decoder, compiled at the first use. TypeError where the gateway cannot read one of its fields."""
    return book.get(descriptor.full_name) or MessageDecoder(descriptor, book)
