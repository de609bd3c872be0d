"""Query strings read strictly: `ids=1,2,3` and `ids=1&ids=2` are the same; an unknown parameter is a fault, not ignored."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from google.protobuf.message import Message

from gateway_http.codec.decoder import QUOTED_NAME, DecodeErrors, Field, MessageDecoder
from services.platform.rpc import errors

# Enough for 100 ids, one a parameter, and everything else a route takes.
MAX_PARAMETERS = 128

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def parse_query(raw: bytes) -> dict[str, list[bytes]]:
    """The parameters by name in the order given; values are still encoded, because a list is split at unencoded commas.

    Raises INVALID_ARGUMENT for broken escapes, bytes that are not UTF-8, U+0000, and more than MAX_PARAMETERS.
    """
    if not raw:
        return {}
    parts = raw.split(b"&", MAX_PARAMETERS)
    if len(parts) > MAX_PARAMETERS:
        raise errors.invalid_argument(f"the query has more than {MAX_PARAMETERS} parameters")
    found: dict[str, list[bytes]] = {}
    for part in parts:
        if part:
            name, _, value = part.partition(b"=")
            found.setdefault(decode_text(name), []).append(value)
    return found


def decode_text(raw: bytes) -> str:
    """A name or a value of the query string as text."""
    if b"+" in raw:
        raw = raw.replace(b"+", b" ")
    if b"%" in raw:
        if _BAD_ESCAPE.search(raw):
            raise errors.invalid_argument("the query holds a broken percent escape")
        raw = unquote_to_bytes(raw)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise errors.invalid_argument("the query is not UTF-8") from None
    if "\0" in text:
        raise errors.invalid_argument("the query holds U+0000")
    return text


def read_query(
    decoder: MessageDecoder, parameters: dict[str, list[bytes]], message: Message, reading: DecodeErrors
) -> None:
    """Writes the parameters into the message."""
    taken: set[str] = set()
    for name, raws in parameters.items():
        field = decoder.fields.get(name)
        if field is None or field.read_text is None:
            reading.add_violation(name[:QUOTED_NAME], "is not a parameter of this request")
            continue
        key = field.oneof or field.name
        if key in taken and not field.repeated:
            reading.add_violation(field.name, "is given twice, or beside a parameter that excludes it")
            continue
        taken.add(key)
        field.assign_text(message, _pieces(field, raws), reading, field.name)


def _pieces(field: Field, raws: list[bytes]) -> Iterator[str]:
    """The values one by one: whoever takes them stops at the field's bound. No text is split further than that."""
    for raw in raws:
        if not field.repeated:
            yield decode_text(raw)
        elif field.is_text:
            # An encoded comma belongs to the text.
            yield from map(decode_text, raw.split(b",", field.most))
        else:
            yield from decode_text(raw).split(",", field.most)
