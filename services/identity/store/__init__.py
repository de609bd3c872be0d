"""The ports of identity's stores: accounts, credentials, sessions, and persistent secrets.

Writes take event records, which are committed atomically with the change. Every method may raise UNAVAILABLE if the store cannot serve
now, and RESOURCE_EXHAUSTED if its queue is full. If a caller is cancelled during a write, the write may or may not be stored; once stored,
every read that begins later sees it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from roost.identity.v1 import user_pb2, user_service_pb2

from services.identity.password import Credential
from services.platform.events.log import Record

# Sessions of one user. A further log-in ends the least recently used one.
MAX_SESSIONS = 100


class Account(NamedTuple):
    """The current state of an account. `core` is a serialised User with fields 1 to 9; `version` starts at 1, each change adds 1."""

    user_id: int
    core: bytes
    email: str
    state: user_pb2.UserState.ValueType
    version: int
    roles: frozenset[user_pb2.Role.ValueType]


class NewAccount(NamedTuple):
    """An account to create, with the two keys under which it must be unique and the event of its creation."""

    account: Account
    username_key: str
    email_key: str
    credential: Credential
    created: Record


class AccountLogin(NamedTuple):
    """An account with its credential, for log-ins."""

    account: Account
    credential: Credential


class Session(NamedTuple):
    """A live session. Times are in milliseconds since 1970; the creation time is part of the id."""

    session_id: int
    user_id: int
    used_ms: int
    expires_ms: int
    user_agent: str


class Rotation(enum.Enum):
    """The outcome of using a refresh token."""

    DONE = enum.auto()
    """The token is valid, or a repeat within the grace period: its successor is valid."""
    REUSED = enum.auto()
    """The token is of this session, but its successor was used longer ago than the grace period. Nothing was changed."""
    ENDED = enum.auto()
    """The session has ended or expired."""


class AccountStore(Protocol):
    """Accounts: profile, state, username and e-mail address."""

    async def refs(self, ids: Sequence[int]) -> user_service_pb2.BatchGetUserRefsResponse:
        """Returns user references in the order of `ids`, in a new message; omits unknown ids. Cached references need no database read."""

    async def refs_serialized(self, ids: Sequence[int]) -> bytes:
        """Returns the result of `refs` as a serialised BatchGetUserRefsResponse."""

    async def batch_get(self, ids: Sequence[int]) -> list[Account]:
        """Returns accounts of any state in the order of `ids`; omits unknown ids."""

    async def by_username(self, username_key: str) -> AccountLogin | None:
        """Returns the account of any state with this username in lower case; None if there is none."""

    async def by_email(self, email_key: str) -> AccountLogin | None:
        """Returns the account of any state with this e-mail address in lower case; None if there is none."""

    async def create(self, new: NewAccount, session: Session, token_hash: bytes) -> None:
        """Creates an account and its first session, whose first refresh token has the SHA-256 `token_hash`.

        Raises ALREADY_EXISTS (USERNAME_TAKEN or EMAIL_TAKEN), and then stores nothing.
        """

    async def import_accounts(self, new: Sequence[NewAccount]) -> list[int]:
        """Creates the accounts that do not exist, all or none, and returns all ids in order.

        An existing account of the same username counts as created if it is equal except for id, creation time and state, so an import can
        be repeated. Raises ALREADY_EXISTS if it differs.
        """

    async def replace(self, account: Account, records: Sequence[Record], *, end_sessions: bool = False) -> bool:
        """Replaces core, state and version of the account if the stored version is `account.version - 1`; e-mail and roles stay.

        With `end_sessions` also ends all sessions of the user. Returns false, and stores nothing, if the stored version
        is a different one.
        """

    async def scan(self, after_id: int, limit: int) -> list[Account]:
        """Returns up to `limit` accounts of any state with ids above `after_id`, ascending."""


class CredentialStore(Protocol):
    """Credentials: password hashes by user id."""

    async def get(self, user_id: int) -> Credential | None:
        """Returns the user's credential; None for an unknown id."""

    async def replace(
        self,
        user_id: int,
        checked: Credential,
        credential: Credential,
        keep_session_id: int,
        records: Sequence[Record],
    ) -> bool:
        """Replaces the credential and ends all sessions except `keep_session_id` (0: ends all).

        Returns false, and stores nothing, if the stored credential is no longer `checked`, the one that the password was compared with.
        """


class SessionStore(Protocol):
    """Sessions. The store receives only the SHA-256 of refresh tokens."""

    async def open(self, session: Session, token_hash: bytes, checked: Credential) -> bool:
        """Stores a new session, whose first refresh token has the SHA-256 `token_hash`.

        Returns false, and stores nothing, unless the account is active and its credential is still `checked`, the one that the password was
        compared with. Ends the least recently used sessions above MAX_SESSIONS, without an event: their access tokens stay valid until they
        expire.
        """

    async def rotate(
        self, user_id: int, session_id: int, presented: bytes, successor: bytes, now_ms: int, expires_ms: int
    ) -> Rotation:
        """Uses the refresh token with the hash `presented`; its successor has the hash `successor`, the same for every use.

        Returns DONE for the successor of the last used token, which becomes the last used one; and, without a change,
        for the last used token, and for the one before it during rotation.REFRESH_GRACE_MS. Returns REUSED for any
        other token, and ENDED if the session is not live.
        """

    async def list_live(self, user_id: int, now_ms: int, before_id: int, limit: int) -> list[Session]:
        """Returns up to `limit` live sessions of the user with ids below `before_id` (0: any), newest first."""

    async def end(self, session_id: int, user_id: int, records: Sequence[Record]) -> bool:
        """Ends a session of this user. Returns false, and publishes no records, if there is none."""


class SecretStore(Protocol):
    """Secrets of this service, created once and stored."""

    async def get_or_create(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Returns the secret of this name, which is stored apart from the accounts. If there is none, stores the result of `make`.

        `make` must always return secrets of one size. Raises FAILED_PRECONDITION if the stored secret is damaged.
        """


@dataclass(frozen=True, slots=True)
class IdentityStores:
    """The stores of one backend. Some of their writes share a transaction, so they are opened and closed together.

    `close` finishes running writes; no store may be used afterwards.
    """

    accounts: AccountStore
    credentials: CredentialStore
    sessions: SessionStore
    secrets: SecretStore
    close: Callable[[], Coroutine[Any, Any, None]]
