"""Parses JSON bodies strictly: rejects input that two parsers could interpret differently.

orjson rejects invalid UTF-8, lone surrogates, NaN, infinities and text after the object, and bounds the depth. If an
object contains a name twice, orjson uses the last value without an error; a second pass with the standard library's
parser detects duplicate names. Bodies are small, so both passes take microseconds.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from services.platform.rpc import errors

# Maximum depth of nested objects and lists in a body; deeper ones are rejected with INVALID_ARGUMENT. No request type
# nests deeper than five. The bound is far below Python's recursion limit.
MAX_DEPTH = 32
# Maximum number of objects and lists in a body; more are rejected with INVALID_ARGUMENT. Each takes more than a
# microsecond to parse, and a body of 64 kB can contain 20,000. A request needs only a few.
MAX_CONTAINERS = 256
# Maximum number of characters of a duplicate name that an error message quotes; a longer name is truncated.
QUOTED_NAME = 64


class _DuplicateNameError(ValueError):
    """An object contains a name twice."""


def _scan_names(body: bytes) -> None:
    """Raises _DuplicateNameError if an object contains a name twice, INVALID_ARGUMENT if there are more than
    MAX_CONTAINERS objects.

    Objects are counted here again: `_check_shape` does not count objects in earlier values of a duplicate name, because
    orjson drops these values.
    """
    left = MAX_CONTAINERS

    def check(pairs: list[tuple[str, Any]]) -> None:
        # Returns None in place of the object, because only the names of the object are needed.
        nonlocal left
        left -= 1
        if left < 0:
            raise _too_many()
        names = {name for name, _ in pairs}
        if len(names) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise _DuplicateNameError(twice)

    # The parser's int() raises for more than 4,300 digits. That cannot happen, because orjson has already rejected
    # numbers of more than 309 digits.
    json.JSONDecoder(object_pairs_hook=check).decode(body.decode("utf-8"))


def parse_object(body: bytes) -> dict[str, Any]:
    """Returns the JSON object in `body`. Returns an empty object for an empty body.

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
    """Raises INVALID_ARGUMENT as soon as the depth exceeds MAX_DEPTH, or the number of objects and lists exceeds
    MAX_CONTAINERS.

    Visits the objects and lists level by level.
    """
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
