"""Encodes messages as JSON, with a table built once per message type. Caches the JSON of tweets.

Field names are snake_case and enums have short names, or both have the names of Protobuf's JSON (see Spelling). 64-bit
integers are strings, zero values are written, unset messages are left out, times are RFC 3339. Protobuf's own
json_format gives the same result but takes five times as long, so only tests use it, for comparison.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

import orjson
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from gateway_http.codec.field_values import short_name
from gateway_http.codec.fragments import FragmentCache
from gateway_http.codec.writers import PlainWriter, ResponseWriter, WireField, WireWriter
from services.platform.rpc.contract import message_class

Convert = Callable[[Any], Any]
_INT64 = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
_FLOAT = struct.Struct("<f")


@dataclass(frozen=True, slots=True)
class Spelling:
    """The functions that return the JSON name of a field, and the JSON name of an enum value."""

    field: Callable[[FieldDescriptor], str]
    enum_value: Callable[[str, EnumDescriptor], str]


# The names of Roost's HTTP API: `created_at`, `latest`.
SNAKE_CASE = Spelling(lambda field: field.name, short_name)
# The names of Protobuf's JSON, which generated clients expect: `createdAt`, `TIMELINE_MODE_LATEST`.
PROTOBUF = Spelling(lambda field: field.json_name, lambda name, _: name)


class EncoderRegistry(dict[str, "MessageEncoder"]):
    """The message encoders of one spelling, by the full name of the message type."""

    def __init__(self, spelling: Spelling = SNAKE_CASE) -> None:
        super().__init__()
        self.spelling = spelling


class MessageEncoder:
    """Converts one message type to a dict for orjson."""

    __slots__ = ("_fields",)

    def __init__(self, descriptor: Descriptor, registry: EncoderRegistry) -> None:
        # Added before the fields are converted: a field of a recursive type needs the encoder of the type itself.
        registry[descriptor.full_name] = self
        # For each field: name in JSON, name in Python, converter (None if orjson encodes the value unchanged), and
        # whether the field is left out if it is unset.
        self._fields = [
            (registry.spelling.field(one), one.name, _convert_field(one, registry), one.has_presence)
            for one in descriptor.fields
        ]

    def to_dict(self, message: Message) -> dict[str, Any]:
        """Returns the message as a dict, with the fields in their declared order."""
        out: dict[str, Any] = {}
        for json_name, name, convert, omit_unset in self._fields:
            if omit_unset and not message.HasField(name):
                continue
            value = getattr(message, name)
            out[json_name] = value if convert is None else convert(value)
        return out


def encoder_of(descriptor: Descriptor, registry: EncoderRegistry) -> MessageEncoder:
    """Returns the encoder of the message type, and creates it at the first call."""
    return registry.get(descriptor.full_name) or MessageEncoder(descriptor, registry)


def _convert_field(field: FieldDescriptor, registry: EncoderRegistry) -> Convert | None:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        return _convert_map(message, registry)
    convert = _convert_value(field, registry)
    if not field.is_repeated:
        return convert
    if convert is None:
        return list
    return lambda values: [convert(value) for value in values]


def _convert_map(entry: Descriptor, registry: EncoderRegistry) -> Convert:
    key_is_bool = entry.fields_by_name["key"].cpp_type == FieldDescriptor.CPPTYPE_BOOL
    value_of = _convert_value(entry.fields_by_name["value"], registry) or _unchanged

    def convert(values: Any) -> dict[str, Any]:
        if key_is_bool:
            return {"true" if key else "false": value_of(value) for key, value in values.items()}
        return {str(key): value_of(value) for key, value in values.items()}

    return convert


def _unchanged(value: Any) -> Any:
    return value


def _convert_value(field: FieldDescriptor, registry: EncoderRegistry) -> Convert | None:
    kind = field.cpp_type
    if kind in _INT64:
        return str
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        assert field.enum_type is not None
        return _enum_names(field.enum_type, registry.spelling)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return lambda value: base64.b64encode(value).decode("ascii")
    if kind == FieldDescriptor.CPPTYPE_DOUBLE:
        return _double
    if kind == FieldDescriptor.CPPTYPE_FLOAT:
        return _float
    message = field.message_type
    if message is None:
        return None
    if message.full_name == "google.protobuf.Timestamp":
        return rfc3339
    if message.full_name == "google.protobuf.Duration":
        return lambda value: value.ToJsonString()
    return encoder_of(message, registry).to_dict


def _enum_names(descriptor: EnumDescriptor, spelling: Spelling) -> Convert:
    names = {one.number: spelling.enum_value(one.name, descriptor) for one in reversed(descriptor.values)}
    # A service of a newer release may send a number for which this release has no name. The JSON then contains the
    # number.
    return lambda number: names.get(number, number)


def _double(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _float(value: float) -> float | str:
    """Returns the shortest decimal number that identifies a 32-bit float: 0.1, not 0.10000000149011612. Returns text
    for NaN and infinities."""
    if not math.isfinite(value):
        return _double(value)
    for digits in (6, 7, 8):
        short = float(f"{value:.{digits}g}")
        try:
            if _FLOAT.unpack(_FLOAT.pack(short))[0] == value:
                return short
        except OverflowError:
            # Rounded to this many digits, the number exceeds the largest float. More digits are needed.
            continue
    # Nine digits identify any 32-bit float.
    return float(f"{value:.9g}")


def rfc3339(value: Any) -> str:
    """Returns a Timestamp as RFC 3339 text with milliseconds, such as `2026-01-31T12:00:00.000Z`. All texts have the
    same length, so they sort by time.

    Services store times in milliseconds, so no digits are lost.
    """
    return f"{datetime.fromtimestamp(value.seconds, UTC).isoformat()[:19]}.{value.nanos // 1_000_000:03d}Z"


def _json_of(fragments: FragmentCache) -> Convert:
    return lambda data: fragments.one(data).json


def _has(name: str) -> Callable[[Any], bool]:
    return lambda message: bool(message.HasField(name))


class Encoders:
    """The encoders and fragment caches that all routes with the same spelling share."""

    def __init__(self, spelling: Spelling = SNAKE_CASE) -> None:
        self._registry = EncoderRegistry(spelling)
        self._fragment_caches: dict[str, FragmentCache] = {}

    def response(self, message: Descriptor, wire_response: Descriptor, response_body: str = "") -> ResponseWriter:
        """Returns the writer of responses of the type `wire_response`: `message` or the wire type of `message`.

        If `response_body` names a field, the writer writes only this field, or `{}` if the field is unset. Raises
        TypeError if `wire_response` is not a wire type of `message`.
        """
        if response_body:
            return PlainWriter(self._body(message.fields_by_name[response_body], wire_response))
        if wire_response.full_name == message.full_name:
            encoder = encoder_of(message, self._registry)
            return PlainWriter(lambda response: orjson.dumps(encoder.to_dict(response)))
        return WireWriter([self._wire_field(one, wire_response) for one in message.fields])

    def _body(self, field: FieldDescriptor, wire_response: Descriptor) -> Callable[[Any], bytes]:
        if field.message_type is None or field.is_repeated:
            raise TypeError(f"response_body must name a single message, not {field.full_name}")
        _, read, convert, is_present, fragments = self._wire_field(field, wire_response)
        assert is_present is not None
        write = _json_of(fragments) if fragments is not None else convert or _unchanged

        def encode(response: Any) -> bytes:
            if not is_present(response):
                return b"{}"
            value = getattr(response, read)
            return orjson.dumps(write(value))

        return encode

    def _wire_field(self, field: FieldDescriptor, wire_response: Descriptor) -> WireField:
        """Returns how the field is written. Raises TypeError if `wire_response` does not have it."""
        wire_field = wire_response.fields_by_number.get(field.number)
        is_serialized = (
            wire_field is not None
            and wire_field.type == FieldDescriptor.TYPE_BYTES
            and field.type == FieldDescriptor.TYPE_MESSAGE
        )
        if (
            wire_field is None
            or wire_field.is_repeated != field.is_repeated
            or not (is_serialized or wire_field.type == field.type)
        ):
            raise TypeError(
                f"{wire_response.full_name} is not a wire type of {field.full_name}: number, type or label differ"
            )
        json_name = self._registry.spelling.field(field)
        if not is_serialized or field.message_type is None:
            is_present = _has(wire_field.name) if field.has_presence else None
            return WireField(json_name, wire_field.name, _convert_field(field, self._registry), is_present, None)
        fragments = self._fragment_cache(field.message_type)
        # Protobuf does not record whether a `bytes` field is set. A serialised tweet is never empty, so an empty value
        # means unset.
        is_present = None if field.is_repeated else attrgetter(wire_field.name)
        return WireField(json_name, wire_field.name, None, is_present, fragments)

    def _fragment_cache(self, message: Descriptor) -> FragmentCache:
        if message.full_name not in self._fragment_caches:
            parse = message_class(message).FromString
            encoder = encoder_of(message, self._registry)
            self._fragment_caches[message.full_name] = FragmentCache(
                lambda data: orjson.dumps(encoder.to_dict(parse(data)))
            )
        return self._fragment_caches[message.full_name]
