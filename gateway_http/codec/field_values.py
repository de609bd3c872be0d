"""Converts one JSON or query value to the value of a Protobuf field, strictly.

Python and Protobuf's own JSON parser accept more forms of an integer than a client should send (`"1e3"`, `1.0`,
`"1_000"`, `"٣"`, true for 1). Each converter of this module accepts only the documented forms; for any other value it
raises Malformed with a message for the client. The converters whose names begin with `protobuf_` accept every form of
integers and enums that Protobuf's JSON allows, because generated clients send these forms.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

# The largest id. The text of an id consists of ASCII digits, without sign or leading zero.
MAX_ID = 2**63 - 1
_ID = re.compile(r"[1-9][0-9]{0,18}").fullmatch
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,19}").fullmatch
# Maximum number of characters of an integer in Protobuf's JSON; a longer text is rejected without parsing it. The
# largest integer has 20 digits.
_MAX_NUMBER_CHARS = 40
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?").fullmatch
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}").fullmatch
# The syntax of a time by RFC 3339: up to nine decimals of a second; the time zone is required.
_TIMESTAMP = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
).fullmatch
_DURATION = re.compile(r"-?[0-9]{1,12}(?:\.[0-9]{1,9})?s").fullmatch

Converter = Callable[[Any], Any]

_BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
WELL_KNOWN = {"google.protobuf.Timestamp", "google.protobuf.Duration"}


class Malformed(ValueError):
    """The value is not valid for the field. The text is a message for the client, such as "must be an integer"."""


def read_id(text: str) -> int:
    """Returns the id in a path segment. Raises Malformed if `text` is not digits without sign or leading zero, or is
    above 2^63 − 1."""
    if _ID(text) is None or (value := int(text)) > MAX_ID:
        raise Malformed("must be an id: digits without sign or leading zero, below 2^63")
    return value


def integer(low: int, high: int) -> Converter:
    """Returns a converter for integers from `low` to `high`, both included. The converter accepts JSON integers, and
    strings of digits with an optional minus sign. It raises Malformed for any other value and for an integer outside
    the range."""

    def convert(value: Any) -> int:
        if type(value) is str and _INTEGER(value):
            value = int(value)
        if type(value) is not int:
            raise Malformed("must be an integer")
        if not low <= value <= high:
            raise Malformed(f"must be between {low} and {high}")
        return value

    return convert


def protobuf_integer(low: int, high: int) -> Converter:
    """Returns a converter for integers from `low` to `high`. It accepts every form that Protobuf's JSON allows: `2`,
    `2.0` and `2e0`, as numbers or as strings."""

    def convert(value: Any) -> int:
        if type(value) is str and len(value) <= _MAX_NUMBER_CHARS and _NUMBER(value):
            # A Decimal represents every integer exactly, a float only those up to 2^53. The number of digits is checked
            # first, because int() of 1e999999999 would take minutes.
            decimal = Decimal(value)
            if decimal and decimal.adjusted() >= len(str(high)):
                raise Malformed(f"must be between {low} and {high}")
            value = int(decimal) if decimal == decimal.to_integral_value() else None
        elif type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise Malformed("must be an integer")
        if not low <= value <= high:
            raise Malformed(f"must be between {low} and {high}")
        return value

    return convert


def text(value: Any) -> str:
    """Returns the value if it is a string. Raises Malformed otherwise. Allows U+0000, because a password may contain
    it."""
    if type(value) is not str:
        raise Malformed("must be a string")
    return value


def boolean(value: Any) -> bool:
    """Returns the value if it is true or false. Raises Malformed otherwise."""
    if type(value) is not bool:
        raise Malformed("must be true or false")
    return value


def boolean_text(value: Any) -> bool:
    """Returns the boolean of the text `true` or `false`. Raises Malformed for any other text."""
    if value not in ("true", "false"):
        raise Malformed("must be true or false")
    return bool(value == "true")


def number(value: Any) -> float:
    """Returns a JSON number as a float. Raises Malformed for any other value."""
    if type(value) is not float and type(value) is not int:
        raise Malformed("must be a number")
    return float(value)


def number_text(value: Any) -> float:
    """Returns the number in a text that has the form of a JSON number. Raises Malformed for any other text, and for
    numbers beyond the range of a float."""
    if _NUMBER(value) is None or not math.isfinite(found := float(value)):
        raise Malformed("must be a number")
    return found


def base64_bytes(value: Any) -> bytes:
    """Returns the bytes of a text in standard base64 with padding. Raises Malformed for any other value."""
    if type(value) is not str or _BASE64(value) is None:
        raise Malformed("must be standard base64")
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        raise Malformed("must be standard base64") from None


def enumeration(descriptor: EnumDescriptor) -> Converter:
    """Returns a converter for enum names, full (`TIMELINE_MODE_LATEST`) or short (`latest`).

    The converter rejects the UNSPECIFIED value. A client leaves the field out instead.
    """
    by_name: dict[str, int] = {}
    short: list[str] = []
    for one in descriptor.values:
        if one.number:
            by_name[one.name] = by_name[short_name(one.name, descriptor)] = one.number
            short.append(short_name(one.name, descriptor))
    choices = "must be one of " + ", ".join(short)

    def convert(value: Any) -> int:
        found = by_name.get(value) if type(value) is str else None
        if found is None:
            raise Malformed(choices)
        return found

    return convert


def protobuf_enumeration(descriptor: EnumDescriptor) -> Converter:
    """Returns a converter for enums. It accepts every form that Protobuf's JSON allows (full names, also UNSPECIFIED,
    and any number), and short names."""
    names = enumeration(descriptor)
    number_of = protobuf_integer(*_BOUNDS[FieldDescriptor.CPPTYPE_INT32])
    by_name = {one.name: one.number for one in descriptor.values}

    def convert(value: Any) -> int:
        if type(value) is int or type(value) is float:
            return int(number_of(value))
        found = by_name.get(value) if type(value) is str else None
        return int(names(value)) if found is None else found

    return convert


def short_name(name: str, descriptor: EnumDescriptor) -> str:
    """Returns the short name of an enum value: without the prefix made of the enum's name, in lower case (`latest` for
    `TIMELINE_MODE_LATEST`)."""
    prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", descriptor.name).upper() + "_"
    return name.removeprefix(prefix).lower()


def timestamp(value: Any) -> Timestamp:
    """Returns the time in an RFC 3339 text. Raises Malformed for any other value, and for a time that does not
    exist."""
    found = Timestamp()
    if type(value) is not str or _TIMESTAMP(value) is None:
        raise Malformed("must be a time by RFC 3339, such as 2026-01-31T12:00:00Z")
    try:
        found.FromJsonString(value.upper())
    except (ValueError, OverflowError):
        raise Malformed("must be a time that exists, in the years 0001 to 9999") from None
    return found


def duration(value: Any) -> Duration:
    """Returns the duration in a text such as `1.5s`: seconds with the suffix `s`. Raises Malformed for any other
    value."""
    found = Duration()
    if type(value) is not str or _DURATION(value) is None:
        raise Malformed("must be seconds such as 1.5s")
    try:
        found.FromJsonString(value)
    except (ValueError, OverflowError):
        raise Malformed("must be seconds such as 1.5s") from None
    return found


def converters(field: FieldDescriptor, *, protobuf_json: bool = False) -> tuple[Converter, Converter]:
    """Returns two converters for one value of the field: from a JSON value, and from text (a query parameter or a path
    variable).

    If `protobuf_json` is true, they accept every form of integers and enums that Protobuf's JSON allows. Raises
    TypeError if the field's type is not supported.
    """
    kind = field.cpp_type
    if kind in _BOUNDS:
        both = (protobuf_integer if protobuf_json else integer)(*_BOUNDS[kind])
        return both, both
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        assert field.enum_type is not None
        both = (protobuf_enumeration if protobuf_json else enumeration)(field.enum_type)
        return both, both
    if field.type == FieldDescriptor.TYPE_BYTES:
        return base64_bytes, base64_bytes
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return text, text
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return boolean, boolean_text
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return number, number_text
    message = field.message_type.full_name if field.message_type is not None else "group"
    if message == "google.protobuf.Timestamp":
        return timestamp, timestamp
    if message == "google.protobuf.Duration":
        return duration, duration
    raise TypeError(f"the gateway cannot decode {message} ({field.full_name})")
