"""Every reason that an error can give: what programs act on, whereas the text is for people.

A client sees it in lower case as `code` of a problem, and as `reason` of ErrorInfo on gRPC and Connect. An error without one gives the
name of its status code. Names are part of the API: one for one thing, and none is changed.
"""

from __future__ import annotations

from enum import StrEnum, auto


class Reason(StrEnum):
    """A reason; its value is its name."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[str]) -> str:
        return name

    # Who calls.
    ACCOUNT_DEACTIVATED = auto()
    MESH_ONLY = auto()
    MESH_SECRET = auto()
    NOT_AUTHOR = auto()
    NOT_YOURS = auto()
    NO_SIGNING_KEYS = auto()
    REFRESH_TOKEN_INVALID = auto()
    ROLE_MISSING = auto()
    TOKEN_EXPIRED = auto()
    TOKEN_INVALID = auto()
    TOKEN_REVOKED = auto()
    UNKNOWN_CALLER = auto()
    USER_SUSPENDED = auto()
    WRONG_CREDENTIALS = auto()

    # What the rules forbid.
    BLOCKED = auto()
    EDIT_LIMIT = auto()
    EDIT_WINDOW_CLOSED = auto()
    EMAIL_TAKEN = auto()
    IDEMPOTENCY_KEY_REUSED = auto()
    OTHER_ACTION = auto()
    REMOVED = auto()
    RETWEET = auto()
    USERNAME_RESERVED = auto()
    USERNAME_TAKEN = auto()

    # What cannot be done now.
    CACHE_UNAVAILABLE = auto()
    CLOCK = auto()
    CONTENDED = auto()
    INDEX_BEING_BUILT = auto()
    LEASE = auto()
    LOG_UNAVAILABLE = auto()
    OUTCOME_UNKNOWN = auto()
    OVERLOADED = auto()
    RATE_LIMITED = auto()
    RELATIONSHIPS_UNKNOWN = auto()
    SEARCH_UNAVAILABLE = auto()
    STOPPING = auto()
    STORE_UNAVAILABLE = auto()
    TOO_MANY_AT_ONCE = auto()

    # What hinders a start.
    ADDRESS_TAKEN = auto()
    DATA_IN_USE = auto()
    DATA_UNUSABLE = auto()
