"""Decodes JSON objects, query parameters and path variables into request messages, with a table built once per message
type.

Each invalid value causes a violation, which names the field. An error response lists up to MAX_VIOLATIONS violations.
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

# Maximum number of characters of an unknown field name that a violation quotes; a longer name is truncated.
QUOTED_NAME = 64

# The text that clients may send in place of their own user id.
ME = "me"


class DecodeErrors:
    """Collects the violations of one request. `me` is the actor's user id, 0 if anonymous. `used_me` becomes true if
    the request contains the id `me`."""

    __slots__ = ("me", "used_me", "violations")

    def __init__(self, me: int) -> None:
        self.me = me
        self.used_me = False
        self.violations: list[Violation] = []

    def add_violation(self, path: str, message: str) -> None:
        """Adds a violation: `path` names the field, such as `media[0].url`. If it is the MAX_VIOLATIONS-th, raises
        INVALID_ARGUMENT with all of them."""
        self.violations.append(Violation(path, message))
        if len(self.violations) == MAX_VIOLATIONS:
            self.finish()

    def finish(self) -> None:
        """Raises INVALID_ARGUMENT with all violations, if there are any."""
        if self.violations:
            raise errors.broken_rules(self.violations)

    def caller(self) -> int:
        """Returns the user id that replaces `me`, and sets `used_me`. Raises UNAUTHENTICATED if the request has no
        token."""
        if not self.me:
            raise errors.unauthenticated("the id `me` needs a token: send the header authorization")
        self.used_me = True
        return self.me


class DecoderRegistry(dict[str, "MessageDecoder"]):
    """Message decoders by the full name of the message type. If `protobuf_json` is true, they accept every form of
    integers and enums that Protobuf's JSON allows."""

    def __init__(self, *, protobuf_json: bool = False) -> None:
        super().__init__()
        self.protobuf_json = protobuf_json


Assign = Callable[[Message, Any, DecodeErrors, str], None]


class Field:
    """Sets one field of a request message: `assign` from a JSON value, `assign_text` from the text of a query
    parameter.

    `limit` is the maximum number of items of a list. The constructor raises TypeError if the gateway cannot decode the
    field's type, or if a list has no maximum in the proto.
    """

    __slots__ = ("assign", "is_id", "is_text", "limit", "name", "oneof", "read_text", "repeated", "takes_me")

    def __init__(self, descriptor: FieldDescriptor, registry: DecoderRegistry) -> None:
        self.name = descriptor.name
        self.takes_me = field_policy(descriptor).accepts_me
        self.is_id = descriptor.cpp_type == FieldDescriptor.CPPTYPE_INT64
        self.is_text = descriptor.cpp_type == FieldDescriptor.CPPTYPE_STRING
        self.repeated = descriptor.is_repeated
        self.limit = max_items(descriptor)
        if self.repeated and not self.limit:
            raise TypeError(f"{descriptor.full_name} has no max_items")
        oneof = descriptor.containing_oneof
        # An `optional` field is a oneof with one member in its descriptor. No other field excludes it, so it is not
        # treated as a oneof.
        self.oneof = oneof.name if oneof is not None and len(oneof.fields) > 1 else ""
        self.read_text: Callable[[str], Any] | None = None
        self.assign = self._compile(descriptor, registry)

    def _compile(self, descriptor: FieldDescriptor, registry: DecoderRegistry) -> Assign:
        message = descriptor.message_type
        if message is None or message.full_name in field_values.WELL_KNOWN:
            from_json, self.read_text = field_values.converters(descriptor, protobuf_json=registry.protobuf_json)
            if self.repeated:
                return _assign_list(self.name, from_json, self.limit, copies=message is not None)
            return _assign_one(self.name, from_json, copies=message is not None, takes_me=self.takes_me)
        if message.GetOptions().map_entry:
            raise TypeError(f"the gateway reads no maps ({descriptor.full_name})")
        nested = decoder_of(message, registry)
        return _assign_messages(self.name, nested, self.limit) if self.repeated else _assign_message(self.name, nested)

    def assign_text(self, message: Message, values: Iterable[str], decode_errors: DecodeErrors, path: str) -> None:
        """Sets the field from the values of a query parameter. Adds a violation for an invalid value, for too many
        values in a list, and for no value or several values if the field is not a list."""
        assert self.read_text is not None
        found: list[Any] = []
        for value in values:
            if self.repeated and len(found) == self.limit:
                decode_errors.add_violation(path, too_many(self.limit))
                return
            try:
                found.append(decode_errors.caller() if self.takes_me and value == ME else self.read_text(value))
            except Malformed as error:
                decode_errors.add_violation(path, str(error))
                return
        if self.repeated:
            getattr(message, self.name).extend(found)
        elif len(found) != 1:
            decode_errors.add_violation(path, "must be given once")
        elif isinstance(found[0], Message):
            getattr(message, self.name).CopyFrom(found[0])
        else:
            setattr(message, self.name, found[0])


def _assign_one(name: str, read: field_values.Converter, *, copies: bool, takes_me: bool) -> Assign:
    def assign(message: Message, value: Any, decode_errors: DecodeErrors, path: str) -> None:
        try:
            found = decode_errors.caller() if takes_me and value == ME else read(value)
        except Malformed as error:
            decode_errors.add_violation(path, str(error))
            return
        if copies:
            getattr(message, name).CopyFrom(found)
        else:
            setattr(message, name, found)

    return assign


def _is_list(value: Any, limit: int, decode_errors: DecodeErrors, path: str) -> bool:
    """Returns whether `value` is a list of at most `limit` items, whatever their type. Adds a violation if it is
    not."""
    if type(value) is not list:
        decode_errors.add_violation(path, "must be a list")
        return False
    if len(value) > limit:
        decode_errors.add_violation(path, too_many(limit))
        return False
    return True


def _assign_list(name: str, read: field_values.Converter, limit: int, *, copies: bool) -> Assign:
    def assign(message: Message, value: Any, decode_errors: DecodeErrors, path: str) -> None:
        if not _is_list(value, limit, decode_errors, path):
            return
        found: list[Any] = []
        for index, item in enumerate(value):
            try:
                found.append(read(item))
            except Malformed as error:
                decode_errors.add_violation(f"{path}[{index}]", str(error))
        target = getattr(message, name)
        if copies:
            for one in found:
                target.add().CopyFrom(one)
        else:
            target.extend(found)

    return assign


def _assign_message(name: str, nested: MessageDecoder) -> Assign:
    def assign(message: Message, value: Any, decode_errors: DecodeErrors, path: str) -> None:
        if type(value) is not dict:
            decode_errors.add_violation(path, "must be an object")
            return
        target = getattr(message, name)
        target.SetInParent()
        nested.read_object(value, target, decode_errors, f"{path}.")

    return assign


def _assign_messages(name: str, nested: MessageDecoder, limit: int) -> Assign:
    def assign(message: Message, value: Any, decode_errors: DecodeErrors, path: str) -> None:
        if not _is_list(value, limit, decode_errors, path):
            return
        for index, item in enumerate(value):
            if type(item) is not dict:
                decode_errors.add_violation(f"{path}[{index}]", "must be an object")
                continue
            nested.read_object(item, getattr(message, name).add(), decode_errors, f"{path}[{index}].")

    return assign


class MessageDecoder:
    """Decodes one message type. `fields` maps every accepted name of a field (snake_case, camelCase, aliases) to the
    field.

    The constructor raises TypeError if the gateway cannot decode the type of a field, ValueError if two fields share a
    name.
    """

    __slots__ = ("fields",)

    def __init__(self, descriptor: Descriptor, registry: DecoderRegistry) -> None:
        # Added before the fields are created: a field of a recursive type needs the decoder of the type itself.
        registry[descriptor.full_name] = self
        self.fields: dict[str, Field] = {}
        for one in descriptor.fields:
            field = Field(one, registry)
            for name in {one.name, one.json_name, *field_policy(one).aliases}:
                if name in self.fields:
                    raise ValueError(f"{descriptor.full_name} has two fields spelt {name}")
                self.fields[name] = field

    def read_object(
        self, value: Mapping[str, Any], message: Message, decode_errors: DecodeErrors, prefix: str = ""
    ) -> None:
        """Sets the fields of `message` from a JSON object. A null leaves its field unset.

        Adds a violation for each unknown, repeated or invalid field. `prefix` is the path of the object in the request,
        such as `media[0].`, and begins the paths of the violations.
        """
        seen: set[str] = set()
        for name, item in value.items():
            field = self.fields.get(name)
            if field is None:
                decode_errors.add_violation(prefix + name[:QUOTED_NAME], "is not a field of this request")
                continue
            path = prefix + field.name
            if item is None:
                continue
            key = field.oneof or field.name
            if key in seen:
                decode_errors.add_violation(path, "is given twice, or together with a field that excludes it")
                continue
            seen.add(key)
            field.assign(message, item, decode_errors, path)


def decoder_of(descriptor: Descriptor, registry: DecoderRegistry) -> MessageDecoder:
    """Returns the decoder of the message type, and creates it at the first call. Raises TypeError if the gateway cannot
    decode the type of a field."""
    return registry.get(descriptor.full_name) or MessageDecoder(descriptor, registry)
