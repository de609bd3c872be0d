"""Converts `field=value` arguments of a command line into a request message."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import orjson
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from roost_cli.exit_codes import CommandError
from services.platform.rpc import contract

_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
# Texts that occur in an error message of Protobuf's JSON parser if an integer field got a value that is not an integer.
# Python itself writes some of these messages.
_NOT_WHOLE = ("invalid literal for int()", "Couldn't parse integer", "Couldn't parse non-integer")


def parse(arguments: Sequence[str], request: type[Message], me: Callable[[], int] | None = None) -> Message:
    """Returns the request message that the arguments describe, such as `text=hello`, `profile.bio=x`, `ids=[1,2]` or
    `ids=1 ids=2`.

    Enums are written by name, times in RFC 3339, bytes in base64. A field may be named by its aliases in the proto.
    `me` returns the user id that replaces the text `me` in an id; if it is None, that text is an error. Raises
    CommandError, which names the argument, if a field is unknown or a value is invalid.
    """
    message = request()
    tree: dict[str, Any] = {}
    for argument in arguments:
        path, equals, text = argument.partition("=")
        if not equals or not path:
            raise CommandError(f"{argument!r} is not a field: write field=value")
        _set(tree, cast(Descriptor, request.DESCRIPTOR), path, text, me)
    try:
        json_format.ParseDict(tree, message)
    except json_format.ParseError as error:
        raise CommandError(_misfit(str(error), request.DESCRIPTOR.name)) from None
    return message


def _misfit(error: str, request: str) -> str:
    """Returns a sentence for the text of an error that Protobuf's JSON parser raised for the message type `request`."""
    if any(words in error for words in _NOT_WHOLE):
        return f"{'.'.join(re.findall('Failed to parse ([^ ]+) field', error))} must be a whole number"
    return f"the fields do not fit {request}: {error}"


def _set(tree: dict[str, Any], descriptor: Descriptor, path: str, text: str, me: Callable[[], int] | None) -> None:
    names = path.split(".")
    for depth, name in enumerate(names):
        field = _field(descriptor, name)
        if depth == len(names) - 1:
            _put(tree, field, path, text, me)
            return
        if field.message_type is None or field.is_repeated:
            raise CommandError(f"{path}: {name} has no fields of its own")
        tree = tree.setdefault(field.name, {})
        if not isinstance(tree, dict):
            raise CommandError(f"{path}: {name} was given twice; give it once")
        descriptor = field.message_type


def _put(tree: dict[str, Any], field: FieldDescriptor, path: str, text: str, me: Callable[[], int] | None) -> None:
    value = _value(field, path, text, me)
    if field.is_repeated and not _is_map(field):
        tree.setdefault(field.name, []).extend(value if isinstance(value, list) else [value])
    elif field.name in tree:
        raise CommandError(f"{path} was given twice; give it once")
    else:
        tree[field.name] = value


def _field(descriptor: Descriptor, name: str) -> FieldDescriptor:
    for field in descriptor.fields:
        if name in (field.name, field.camelcase_name) or name in contract.field_policy(field).aliases:
            return field
    known = ", ".join(field.name for field in descriptor.fields) or "none"
    raise CommandError(f"{descriptor.name} has no field {name!r}; it has: {known}")


def _value(field: FieldDescriptor, path: str, text: str, me: Callable[[], int] | None) -> Any:
    if field.is_repeated and text[:1] in ("[", "{"):
        return _json(path, text)
    if field.message_type is not None:
        # In Protobuf's JSON, timestamps and durations are strings, and all other messages are objects.
        return _json(path, text) if text[:1] in ("{", "[") else text
    if field.type == FieldDescriptor.TYPE_BOOL:
        if text.lower() not in _TRUTH:
            raise CommandError(f"{path}={text}: write true or false")
        return _TRUTH[text.lower()]
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _base64(path, text)
    if text == "me" and contract.field_policy(field).accepts_me:
        if me is None:
            raise CommandError(f"{path}=me needs to know who you are: name the user with --as USER")
        return str(me())
    if field.enum_type is not None:
        return _enum(field, path, text)
    return text


def _enum(field: FieldDescriptor, path: str, text: str) -> str | int:
    """Returns an enum value for Protobuf's JSON parser. `text` is the full name of the value, the last part of the name
    (`latest`), or the number. Raises CommandError if no value or several match."""
    if text.isdigit():
        return int(text)
    assert field.enum_type is not None
    names = [value.name for value in field.enum_type.values]
    found = [name for name in names if name == text or name.endswith("_" + text.upper())]
    if len(found) != 1:
        raise CommandError(f"{path}={text}: write one of {', '.join(names)}")
    return found[0]


def _json(path: str, text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        # The text is not JSON, but texts in a list may be written without quotes: `tags=[one,two]`.
        if text.startswith("[") and text.endswith("]"):
            return [word.strip() for word in text[1:-1].split(",") if word.strip()]
        raise CommandError(f"{path}: {error}") from None


def _base64(path: str, text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except ValueError:
        raise CommandError(f"{path} contains bytes: write them in base64") from None
    return text


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
