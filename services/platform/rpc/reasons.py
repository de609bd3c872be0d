"""Lists every reason of an error. Programs act on the reason; the message is for people.

HTTP clients get the reason in lower case as `code` of a problem, gRPC and Connect clients as `reason` of ErrorInfo. An
error without a reason has the name of its status code instead. The names are part of the API: they are never renamed,
and no two reasons mean the same.
"""

from __future__ import annotations

from enum import StrEnum, auto


class Reason(StrEnum):
    """A machine-readable reason of an error. The value of each member equals its name."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[str]) -> str:
        return name

    # The caller's identity and permissions.
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

    # Rules of the domain.
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

    # Temporary failures.
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

    # Failures at the start of a process.
    ADDRESS_TAKEN = auto()
    DATA_IN_USE = auto()
    DATA_UNUSABLE = auto()
