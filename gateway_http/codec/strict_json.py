"""JSON bodies read strictly: what two parsers could understand differently is refused.

orjson refuses invalid UTF-8, lone surrogates, NaN, infinities and trailing garbage, and is bounded in depth; duplicate names, where
it takes the last, are found by a second pass of the standard library's scanner. Bodies are small: both passes cost microseconds.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from services.platform.rpc import errors

# No request type nests deeper than five; a generous bound that no recursion of ours can come near to exhausting.
MAX_DEPTH = 32
# Objects and lists in one body. Each costs more than a microsecond here, and 64 kB hold 20,000; no request needs more than a handful.
MAX_CONTAINERS = 256
# What a message quotes of a name the caller made up.
QUOTED_NAME = 64


class _DuplicateNameError(ValueError):
    """An object holds one name twice."""


def _scan_names(body: bytes) -> None:
    """Raises _DuplicateNameError, or INVALID_ARGUMENT if more than MAX_CONTAINERS objects come: those under a name that comes twice are
    not in what orjson made of the body."""
    left = MAX_CONTAINERS

    def check(pairs: list[tuple[str, Any]]) -> None:
        # The values are thrown away: only the names of this one object matter here.
        nonlocal left
        left -= 1
        if left < 0:
            raise _too_many()
        names = {name for name, _ in pairs}
        if len(names) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise _DuplicateNameError(twice)

    # Numbers are read by the scanner's own C code. int() refuses more than 4,300 digits with an error of its own, but orjson has refused
    # whatever has more than 309 before.
    json.JSONDecoder(object_pairs_hook=check).decode(body.decode("utf-8"))


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`; an empty body is an empty object.

    Raises INVALID_ARGUMENT for anything that is not one well-formed object, for duplicate names, for nesting beyond MAX_DEPTH and for
    more than MAX_CONTAINERS objects and lists.
    """
    if not body:
        return {}
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise errors.invalid_argument(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    if type(value) is not dict:
        raise errors.invalid_argument("the body must be a JSON object")
    _check_shape(value)
    try:
        _scan_names(body)
    except _DuplicateNameError as error:
        name = str(error)[:QUOTED_NAME]
        raise errors.invalid_argument(f"the name {name!r} stands twice in one object", name) from None
    return value


def _too_many() -> errors.RoostError:
    return errors.invalid_argument(f"the body holds more than {MAX_CONTAINERS} objects and lists")


def _check_shape(value: dict[str, Any]) -> None:
    """Raises INVALID_ARGUMENT beyond MAX_DEPTH and MAX_CONTAINERS, before the rest is looked at."""
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
    raise errors.invalid_argument(f"the body nests deeper than {MAX_DEPTH}")
