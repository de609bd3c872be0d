"""Decodes query strings. `ids=1,2` and `ids=1&ids=2` are equivalent. An unknown parameter is an error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from google.protobuf.message import Message

from gateway_http.codec.decoder import QUOTED_NAME, DecodeErrors, Field, MessageDecoder
from services.platform.rpc import errors

# Maximum number of parameters of a query; more are rejected with INVALID_ARGUMENT. A request may contain 100 ids, each
# as a parameter of its own, and some other parameters.
MAX_PARAMETERS = 128

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


def parse_query(raw: bytes) -> dict[str, list[bytes]]:
    """Returns the values of each parameter in order, by the parameter's name. Names are decoded.

    Values are percent-encoded as received, because a list is split at commas before its items are decoded.

    Raises INVALID_ARGUMENT for more than MAX_PARAMETERS parameters, and for names with invalid percent escapes, bytes
    that are not UTF-8, or U+0000.
    """
    if not raw:
        return {}
    parts = raw.split(b"&", MAX_PARAMETERS)
    if len(parts) > MAX_PARAMETERS:
        raise errors.invalid_argument(f"the query has more than {MAX_PARAMETERS} parameters: send fewer")
    found: dict[str, list[bytes]] = {}
    for part in parts:
        if part:
            name, _, value = part.partition(b"=")
            found.setdefault(decode_text(name), []).append(value)
    return found


def decode_text(raw: bytes) -> str:
    """Returns the text of a percent-encoded name or value of the query string. A `+` means a space.

    Raises INVALID_ARGUMENT for invalid percent escapes, bytes that are not UTF-8, and U+0000.
    """
    if b"+" in raw:
        raw = raw.replace(b"+", b" ")
    if b"%" in raw:
        if _BAD_ESCAPE.search(raw):
            raise errors.invalid_argument("the query contains an invalid percent escape")
        raw = unquote_to_bytes(raw)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise errors.invalid_argument("the query is not valid UTF-8") from None
    if "\0" in text:
        raise errors.invalid_argument("the query contains the character U+0000")
    return text


def read_query(
    decoder: MessageDecoder, parameters: dict[str, list[bytes]], message: Message, decode_errors: DecodeErrors
) -> None:
    """Sets the fields of `message` from the parameters. Adds a violation for each unknown, repeated or invalid
    parameter."""
    seen: set[str] = set()
    for name, raws in parameters.items():
        field = decoder.fields.get(name)
        if field is None or field.read_text is None:
            decode_errors.add_violation(name[:QUOTED_NAME], "is not a parameter of this request")
            continue
        key = field.oneof or field.name
        if key in seen and not field.repeated:
            decode_errors.add_violation(field.name, "is given twice, or together with a parameter that excludes it")
            continue
        seen.add(key)
        field.assign_text(message, _split_values(field, raws), decode_errors, field.name)


def _split_values(field: Field, raws: list[bytes]) -> Iterator[str]:
    """Yields the decoded values of a parameter; those of a list are split at commas.

    Splits and decodes only on demand and at most `field.limit` times per text, so that the caller can stop at the
    maximum number of items of the list.
    """
    for raw in raws:
        if not field.repeated:
            yield decode_text(raw)
        elif field.is_text:
            # An encoded comma is part of the text, so the text is split before it is decoded.
            yield from map(decode_text, raw.split(b",", field.limit))
        else:
            yield from decode_text(raw).split(",", field.limit)
