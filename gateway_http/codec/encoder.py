"""Messages → JSON, by a table compiled once per message type, and joined tweets → JSON through a memo.

snake_case, 64-bit integers as strings, zero values printed, unset messages left out, RFC 3339, enums by short names; or with names
as Protobuf's JSON spells them, for dialects that promise it. Protobuf's own json_format says the same at five times the cost: it is
the oracle of the tests, never the path.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

import orjson
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from gateway_http.codec.field_values import short_name
from services.platform.rpc.contract import message_class

# Fragments kept in each of the memo's two generations: about 1 kB each with its key, so 40 MB at most.
MEMO_ENTRIES = 20_000

Convert = Callable[[Any], Any]
_INT64 = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
_FLOAT = struct.Struct("<f")


@dataclass(frozen=True, slots=True)
class Spelling:
    """How names are written: a field's, and an enum value's."""

    field: Callable[[FieldDescriptor], str]
    enum_value: Callable[[str, EnumDescriptor], str]


# The API's own: `created_at`, `latest`.
SNAKE_CASE = Spelling(lambda field: field.name, short_name)
# Protobuf's JSON, which generated clients read: `createdAt`, `TIMELINE_MODE_LATEST`.
PROTOBUF = Spelling(lambda field: field.json_name, lambda name, _: name)


class EncoderRegistry(dict[str, "MessageEncoder"]):
    """The encoders of one spelling, by the full name of their type."""

    def __init__(self, spelling: Spelling = SNAKE_CASE) -> None:
        super().__init__()
        self.spelling = spelling


class MessageEncoder:
    """Writes one message type as a dict for orjson."""

    __slots__ = ("_plan",)

    def __init__(self, descriptor: Descriptor, book: EncoderRegistry) -> None:
        # Before the fields, so that a type that holds itself finds this encoder.
        book[descriptor.full_name] = self
        # (name in JSON, in Python, converter or None where Python's value is JSON's, whether only a set field is printed)
        self._plan = [
            (book.spelling.field(one), one.name, _convert_field(one, book), one.has_presence)
            for one in descriptor.fields
        ]

    def to_dict(self, message: Message) -> dict[str, Any]:
        """The message in the order of its fields."""
        out: dict[str, Any] = {}
        for spelt, name, convert, if_set in self._plan:
            if if_set and not message.HasField(name):
                continue
            value = getattr(message, name)
            out[spelt] = value if convert is None else convert(value)
        return out


def encoder_of(descriptor: Descriptor, book: EncoderRegistry) -> MessageEncoder:
    """The type's encoder, compiled at the first use."""
    return book.get(descriptor.full_name) or MessageEncoder(descriptor, book)


def _convert_field(field: FieldDescriptor, book: EncoderRegistry) -> Convert | None:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        return _convert_map(message, book)
    convert = _convert_value(field, book)
    if not field.is_repeated:
        return convert
    if convert is None:
        return list
    return lambda values: [convert(value) for value in values]


def _convert_map(entry: Descriptor, book: EncoderRegistry) -> Convert:
    key_is_bool = entry.fields_by_name["key"].cpp_type == FieldDescriptor.CPPTYPE_BOOL
    value_of = _convert_value(entry.fields_by_name["value"], book) or _same

    def convert(values: Any) -> dict[str, Any]:
        if key_is_bool:
            return {"true" if key else "false": value_of(value) for key, value in values.items()}
        return {str(key): value_of(value) for key, value in values.items()}

    return convert


def _same(value: Any) -> Any:
    return value


def _convert_value(field: FieldDescriptor, book: EncoderRegistry) -> Convert | None:
    kind = field.cpp_type
    if kind in _INT64:
        return str
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        assert field.enum_type is not None
        return _enum_names(field.enum_type, book.spelling)
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
    return encoder_of(message, book).to_dict


def _enum_names(descriptor: EnumDescriptor, spelling: Spelling) -> Convert:
    names = {one.number: spelling.enum_value(one.name, descriptor) for one in reversed(descriptor.values)}
    # A number from a newer peer has no name here.
    return lambda number: names.get(number, number)


def _double(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _float(value: float) -> float | str:
    """A 32-bit float by its fewest digits: 0.1, not 0.10000000149011612."""
    if not math.isfinite(value):
        return _double(value)
    for digits in (6, 7, 8):
        short = float(f"{value:.{digits}g}")
        try:
            if _FLOAT.unpack(_FLOAT.pack(short))[0] == value:
                return short
        except OverflowError:
            # Rounded up beyond the largest: it takes more digits.
            continue
    # Nine tell any two of them apart.
    return float(f"{value:.9g}")


def rfc3339(value: Any) -> str:
    """Returns a Timestamp as text in whole milliseconds, which is what the services count in: always three digits of a second, so that
    times of one field have one length and sort as text."""
    return f"{datetime.fromtimestamp(value.seconds, UTC).isoformat()[:19]}.{value.nanos // 1_000_000:03d}Z"


class FragmentCache:
    """Serialised tweet → its JSON, bounded. Bytes that are equal are equal tweets, so nothing here can be stale.

    Two generations instead of an LRU list: a hit is one look-up, and what was not asked for during a whole generation goes.
    """

    __slots__ = ("_encode", "_entries", "_old", "_young")

    def __init__(self, encode: Callable[[bytes], bytes], entries: int = MEMO_ENTRIES) -> None:
        self._encode = encode
        self._entries = entries
        self._young: dict[bytes, orjson.Fragment] = {}
        self._old: dict[bytes, orjson.Fragment] = {}

    def __call__(self, data: bytes) -> orjson.Fragment:
        """The JSON of one serialised message."""
        found = self._young.get(data)
        return found if found is not None else self._promote(data)

    def all(self, datas: Iterable[bytes]) -> list[orjson.Fragment]:
        """The JSON of many, in their order; the look-ups of a page that is known run without Python in between."""
        known = list(datas)
        found = list(map(self._young.get, known))
        if None in found:
            return [self(data) for data in known]
        return found  # type: ignore[return-value]

    def _promote(self, data: bytes) -> orjson.Fragment:
        found = self._old.get(data)
        if found is None:
            found = orjson.Fragment(self._encode(data))
        if len(self._young) >= self._entries:
            self._old, self._young = self._young, {}
        self._young[data] = found
        return found


def _has(name: str) -> Callable[[Any], bool]:
    return lambda message: bool(message.HasField(name))


class Encoders:
    """The encoders of one gateway: compiled types and memos, shared by all its routes."""

    def __init__(self, spelling: Spelling = SNAKE_CASE) -> None:
        self._book = EncoderRegistry(spelling)
        self._memos: dict[str, FragmentCache] = {}

    def response(
        self, message: Descriptor, wire_response: Descriptor, response_body: str = ""
    ) -> Callable[[Any], bytes]:
        """How a response is written. `wire_response` is what services really pass: `message` itself or its twin.

        With `response_body` only that field is written, `{}` where it is unset. TypeError where a twin differs from its message.
        """
        if response_body:
            return self._body(message.fields_by_name[response_body], wire_response)
        if wire_response.full_name == message.full_name:
            encoder = encoder_of(message, self._book)
            return lambda response: orjson.dumps(encoder.to_dict(response))
        plan = [self._twin_field(one, wire_response) for one in message.fields]

        def encode(response: Any) -> bytes:
            out: dict[str, Any] = {}
            for name, read, convert, is_there in plan:
                if is_there is not None and not is_there(response):
                    continue
                value = getattr(response, read)
                out[name] = value if convert is None else convert(value)
            return orjson.dumps(out)

        return encode

    def _body(self, field: FieldDescriptor, wire_response: Descriptor) -> Callable[[Any], bytes]:
        if field.message_type is None or field.is_repeated:
            raise TypeError(f"response_body must name a single message, not {field.full_name}")
        _, read, convert, is_there = self._twin_field(field, wire_response)
        assert convert is not None
        assert is_there is not None

        def encode(response: Any) -> bytes:
            return orjson.dumps(convert(getattr(response, read))) if is_there(response) else b"{}"

        return encode

    def _twin_field(
        self, field: FieldDescriptor, wire_response: Descriptor
    ) -> tuple[str, str, Convert | None, Callable[[Any], bool] | None]:
        """(name in JSON, name in the passed message, converter, whether it is there; None where it is printed always)."""
        twin = wire_response.fields_by_number.get(field.number)
        joined = (
            twin is not None and twin.type == FieldDescriptor.TYPE_BYTES and field.type == FieldDescriptor.TYPE_MESSAGE
        )
        if twin is None or twin.is_repeated != field.is_repeated or not (joined or twin.type == field.type):
            raise TypeError(f"{wire_response.full_name} is no twin: it differs from {field.full_name}")
        spelt = self._book.spelling.field(field)
        if not joined or field.message_type is None:
            is_there = _has(twin.name) if field.has_presence else None
            return spelt, twin.name, _convert_field(field, self._book), is_there
        memo = self._memo(field.message_type)
        if field.is_repeated:
            return spelt, twin.name, memo.all, None
        # A twin's bytes have no presence: a tweet that is there is never empty.
        return spelt, twin.name, memo, attrgetter(twin.name)

    def _memo(self, message: Descriptor) -> FragmentCache:
        if message.full_name not in self._memos:
            parse = message_class(message).FromString
            encoder = encoder_of(message, self._book)
            self._memos[message.full_name] = FragmentCache(lambda data: orjson.dumps(encoder.to_dict(parse(data))))
        return self._memos[message.full_name]
