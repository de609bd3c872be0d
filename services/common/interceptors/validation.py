"""The field rules of the contract, checked by protovalidate."""

from __future__ import annotations

import protovalidate
from google.protobuf.message import Message

from services.common import errors
from services.common.context import Call
from services.common.contract import Method

# More than this tells a caller nothing new and costs bytes.
MAX_VIOLATIONS = 20

_validator = protovalidate.Validator()


def validate(request: Message) -> None:
    """Raises INVALID_ARGUMENT naming each field that breaks its rule."""
    found = _validator.collect_violations(request)
    if not found:
        return
    violations = [errors.Violation(_path(item), item.proto.message) for item in found[:MAX_VIOLATIONS]]
    first = violations[0]
    raise errors.invalid_argument(f"{first.field}: {first.message}", violations=violations)


def check_bounds(method: Method, request: Message) -> None:
    """Raises INVALID_ARGUMENT where a repeated field holds more than it may: what is left to check of a message that another
    service in this process made. Even such a caller may ask for too much (the full rules cost 5 to 100 µs, this under one)."""
    for name, most in method.bounds:
        if len(getattr(request, name)) > most:
            raise errors.invalid_argument(f"{name}: must contain no more than {most} item(s)", name)


def _path(violation: protovalidate.Violation) -> str:
    parts: list[str] = []
    path = violation.proto.field
    for element in path.elements if path is not None else ():
        index = getattr(element, "index", None)
        parts.append(f"{element.field_name}[{index}]" if index is not None else element.field_name)
    return ".".join(parts)


def check_caller_only(method: Method, request: Message, call: Call) -> None:
    """Raises PERMISSION_DENIED where a field that must name the caller names somebody else."""
    for name in method.caller_only:
        value = getattr(request, name)
        if value and value != call.actor.user_id:
            raise errors.permission_denied(f"{name} must be your own id", "NOT_YOURS")
