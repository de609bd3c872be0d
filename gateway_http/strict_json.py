"""JSON bodies read strictly: what two parsers could understand differently is refused.

orjson refuses invalid UTF-8, lone surrogates, NaN, infinities and trailing garbage, and is bounded in depth; duplicate names, where
it takes the last, are found by a second pass of the standard library's scanner. Bodies are small: both passes cost microseconds.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from services.common import errors

# No request type nests deeper than five; a generous bound that no recursion of ours can come near to exhausting.
MAX_DEPTH = 32
# What a message quotes of a name the caller made up.
QUOTED_NAME = 64


class _DuplicateNameError(ValueError):
    """An object holds one name twice."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> None:
    # The values are thrown away: only the names of this one object matter here.
    names = {name for name, _ in pairs}
    if len(names) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _DuplicateNameError(twice)


# Numbers are not read here: int() refuses 5,000 digits with an error of its own.
_scanner = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_int=len, parse_float=len, parse_constant=len)


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`; an empty body is an empty object.

    Raises INVALID_ARGUMENT for anything that is not one well-formed object, for duplicate names and for nesting beyond MAX_DEPTH.
    """
    if not body:
        return {}
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise errors.invalid_argument(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    if type(value) is not dict:
        raise errors.invalid_argument("the body must be a JSON object")
    if _too_deep(value, MAX_DEPTH):
        raise errors.invalid_argument(f"the body nests deeper than {MAX_DEPTH}")
    try:
        _scanner.decode(body.decode("utf-8"))
    except _DuplicateNameError as error:
        name = str(error)[:QUOTED_NAME]
        raise errors.invalid_argument(f"the name {name!r} stands twice in one object", name) from None
    return value


def _too_deep(value: Any, left: int) -> bool:
    if left == 0:
        return True
    children = value.values() if type(value) is dict else value
    return any(_too_deep(child, left - 1) for child in children if type(child) is dict or type(child) is list)
