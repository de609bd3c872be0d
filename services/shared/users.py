"""The error about users who are not there, for every service."""

from __future__ import annotations

from services.platform.rpc import errors


def no_such_user() -> errors.RoostError:
    """Returns the same NOT_FOUND for a user who never existed, is suspended or deactivated, or is hidden from the
    caller."""
    return errors.not_found("no such user")
