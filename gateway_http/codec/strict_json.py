"""Parses JSON bodies strictly: rejects input that two parsers could interpret differently.

orjson rejects invalid UTF-8, lone surrogates, NaN, infinities and trailing garbage, and bounds the depth. It uses the last of duplicate
names; a second pass with the standard library's scanner detects these. Bodies are small, so both passes take microseconds.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from services.platform.rpc import errors

# No request type nests deeper than five. The bound is far below Python's recursion limit.
MAX_DEPTH = 32
# Objects and lists in one body. Each costs more than a microsecond, and 64 kB can hold 20,000; no request needs more than a few.
MAX_CONTAINERS = 256
# Characters of an unknown name that an error message quotes.
QUOTED_NAME = 64


class _DuplicateNameError(ValueError):
    """An object contains a name twice."""


def _scan_names(body: bytes) -> None:
    """Raises _DuplicateNameError, or INVALID_ARGUMENT above MAX_CONTAINERS objects.

    The objects are counted here too, because orjson drops the earlier values of a duplicate name.
    """
    left = MAX_CONTAINERS

    def check(pairs: list[tuple[str, Any]]) -> None:
        # Returns None, which discards the values: only the names of this object are needed.
        nonlocal left
        left -= 1
        if left < 0:
            raise _too_many()
        names = {name for name, _ in pairs}
        if len(names) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise _DuplicateNameError(twice)

    # int() would raise for more than 4,300 digits, but orjson has already rejected numbers of more than 309.
    json.JSONDecoder(object_pairs_hook=check).decode(body.decode("utf-8"))


def parse_object(body: bytes) -> dict[str, Any]:
    """Returns the JSON object in `body`; an empty body is an empty object.

    Raises INVALID_ARGUMENT if the body is not one well-formed object, has duplicate names, nests deeper than MAX_DEPTH, or contains more
    than MAX_CONTAINERS objects and lists.
    """
    if not body:
        return {}
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise errors.invalid_argument(f"the body is not valid JSON: {error.msg} at character {error.pos}") from None
    if type(value) is not dict:
        raise errors.invalid_argument("the body must be a JSON object")
    _check_shape(value)
    try:
        _scan_names(body)
    except _DuplicateNameError as error:
        name = str(error)[:QUOTED_NAME]
        raise errors.invalid_argument(f"the name {name!r} occurs twice in one object: send it once", name) from None
    return value


def _too_many() -> errors.RoostError:
    return errors.invalid_argument(f"the body contains more than {MAX_CONTAINERS} objects and lists")


def _check_shape(value: dict[str, Any]) -> None:
    """Raises INVALID_ARGUMENT as soon as MAX_DEPTH or MAX_CONTAINERS is exceeded. Searches breadth first."""
    level: list[Any] = [value]
    count = 0
    for _ in range(MAX_DEPTH):
        count += len(level)
        below: list[Any] = []
        for one in level:
            for child in one.values() if type(one) is dict else one:
                if type(child) is dict or type(child) is list:
                    below.append(child)
                    if count + len(below) > MAX_CONTAINERS:
                        raise _too_many()
        if not below:
            return
        level = below
    raise errors.invalid_argument(f"the body nests deeper than {MAX_DEPTH} levels")
