"""The ports of identity's stores: accounts and their purge, credentials, sessions, and persistent secrets.

A write takes event records, which the store commits atomically with the change and then publishes. Every method raises
UNAVAILABLE if the store cannot answer now, and RESOURCE_EXHAUSTED if too many calls wait for the store. If a caller is
cancelled during a write, the change may be stored or not. Every read that begins after a change was stored returns the
new values.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from roost.identity.v1 import user_pb2, user_service_pb2

from services.identity.password import Credential
from services.platform.events.log import Record

# Maximum number of live sessions of one user. A further log-in ends the least recently used session.
MAX_SESSIONS = 100


class Account(NamedTuple):
    """The current state of an account. `core` is the profile: a serialized User message with the fields 1 to 9 (id to
    created_at), without counts and viewer state. `version` starts at 1, and each change of the account adds 1."""

    user_id: int
    core: bytes
    email: str
    state: user_pb2.UserState.ValueType
    version: int
    roles: frozenset[user_pb2.Role.ValueType]


class NewAccount(NamedTuple):
    """An account to create, with its credential and the event of its creation. `username_key` and `email_key` are the
    username and the e-mail address in lower case; no two accounts have the same."""

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
    """A session of a user. `used_ms` is the time of the log-in or of the last refresh, `expires_ms` the expiry, both in
    Unix milliseconds. The creation time is part of the id."""

    session_id: int
    user_id: int
    used_ms: int
    expires_ms: int
    user_agent: str


class Rotation(enum.Enum):
    """The outcome of using a refresh token."""

    DONE = enum.auto()
    """The token was exchanged for its successor, or it repeats an exchange within the grace period
    (rotation.REFRESH_GRACE_MS). The successor is valid."""
    REUSED = enum.auto()
    """The token belongs to this session but is no longer valid, because its successor was used longer ago than the
    grace period. Nothing was changed."""
    ENDED = enum.auto()
    """The session has ended or expired."""


class AccountStore(Protocol):
    """Accounts: profile, state, username and e-mail address."""

    async def refs(self, ids: Sequence[int]) -> user_service_pb2.BatchGetUserRefsResponse:
        """Returns the user references in the order of `ids`, in a new message; omits unknown ids. References that are
        not cached are read from the database."""

    async def refs_serialized(self, ids: Sequence[int]) -> bytes:
        """Returns the result of `refs` as a serialized BatchGetUserRefsResponse."""

    async def batch_get(self, ids: Sequence[int]) -> list[Account]:
        """Returns accounts of any state in the order of `ids`; omits unknown ids."""

    async def by_username(self, username_key: str) -> AccountLogin | None:
        """Returns the account of any state with this username in lower case; None if there is none."""

    async def by_email(self, email_key: str) -> AccountLogin | None:
        """Returns the account of any state with this e-mail address in lower case; None if there is none."""

    async def create(self, new: NewAccount, session: Session, token_hash: bytes) -> None:
        """Creates an account and its first session, whose first refresh token has the SHA-256 `token_hash`.

        Raises ALREADY_EXISTS, and stores nothing, if another account has the username (reason USERNAME_TAKEN) or the
        e-mail address (EMAIL_TAKEN).
        """

    async def import_accounts(self, new: Sequence[NewAccount]) -> list[int]:
        """Creates the accounts that do not exist, all of them or none, and returns the ids of all accounts in the order
        of `new`.

        If an account with the same username exists and differs only in id, creation time and state, returns the id of
        the existing account, so that an import can be repeated. Raises ALREADY_EXISTS, and creates nothing, if an
        existing account with the same username or e-mail address differs in another field.
        """

    async def replace(
        self,
        account: Account,
        records: Sequence[Record],
        *,
        end_sessions: bool = False,
        deactivated_s: int | None = None,
    ) -> bool:
        """Stores `core` (the serialized profile), `state` and `version` of the account, if the stored version is
        `account.version - 1`. Does not change the stored e-mail address and roles. Publishes `records`.

        With `end_sessions` also ends all sessions of the user. `deactivated_s` must be given if the change deactivates
        the account: it is the time of the deactivation in Unix seconds, after which `PurgeStore.purge` finds the
        account until a later change activates it. Returns False, and stores and publishes nothing, if the stored
        version is not `account.version - 1`.
        """

    async def scan(self, after_id: int, limit: int) -> list[Account]:
        """Returns up to `limit` accounts of any state with ids above `after_id`, ascending."""


# Called with a user id and the time of the user's deactivation (Unix seconds). Returns the event of the purge.
PurgedEvent = Callable[[int, int], Awaitable[Record]]


class PurgeStore(Protocol):
    """Erases accounts that their owners deactivated."""

    async def purge(self, before_s: int, limit: int, purged: PurgedEvent) -> int:
        """Erases up to `limit` accounts that were deactivated before `before_s` (Unix seconds), the earliest first, and
        publishes the event that `purged` returns for each erased account. Returns the number of erased accounts. If
        this number is less than `limit`, no more accounts are due, or some were activated concurrently.

        An erased account has only its id and its version, and stays deactivated, so that other services still know to
        hide what the user wrote. Username, profile, e-mail address, roles and credential are removed; other accounts
        can then use the username and the e-mail address. An account that is activated concurrently is kept or erased as
        a whole.
        """


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
        """Replaces the user's credential, ends all sessions of the user except `keep_session_id` (0: ends all), and
        publishes `records`.

        `checked` is the credential with which the caller compared the password. Returns False, and stores nothing, if
        the stored credential is not `checked` any more.
        """


class SessionStore(Protocol):
    """Sessions. The store receives only the SHA-256 of refresh tokens."""

    async def open(self, session: Session, token_hash: bytes, checked: Credential) -> bool:
        """Stores a new session, whose first refresh token has the SHA-256 `token_hash`.

        `checked` is the credential with which the caller compared the password. Returns False, and stores nothing, if
        the account is not active or its stored credential is not `checked` any more. If the user then has more than
        MAX_SESSIONS live sessions, ends the least recently used ones without publishing an event: access tokens of
        these sessions stay valid until the tokens expire.
        """

    async def rotate(
        self, user_id: int, session_id: int, presented: bytes, successor: bytes, now_ms: int, expires_ms: int
    ) -> Rotation:
        """Exchanges the refresh token with the SHA-256 `presented` for its successor, whose SHA-256 is `successor`. A
        token has the same successor at each use.

        Returns DONE, and stores `presented` as the last used token, if `presented` is the successor of the last used
        token. Returns DONE, and changes nothing, if `presented` is the last used token itself, or, within the grace
        period (rotation.REFRESH_GRACE_MS), the token that was used before the last one. Returns REUSED for any other
        token, and ENDED if the session is not live. `now_ms` and `expires_ms` (the new expiry of the session) are Unix
        milliseconds.
        """

    async def list_live(self, user_id: int, now_ms: int, before_id: int, limit: int) -> list[Session]:
        """Returns up to `limit` sessions of the user that expire after `now_ms` (Unix milliseconds) and whose ids are
        below `before_id` (0: no bound), newest first."""

    async def end(self, session_id: int, user_id: int, records: Sequence[Record]) -> bool:
        """Ends a session of this user and publishes `records`. Returns False, and publishes nothing, if no session of
        this user with this id is stored."""


class SecretStore(Protocol):
    """Secrets of this service, created once and stored."""

    async def get_or_create(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Returns the secret of this name. If none is stored, stores and returns the result of `make`. Secrets are not
        stored together with the accounts.

        `make` must return a secret of the same size at each call. Raises FAILED_PRECONDITION if the stored secret has
        another size, because it is damaged then.
        """


@dataclass(frozen=True, slots=True)
class IdentityStores:
    """The stores of one backend. They are opened and closed together, because some of their writes share a transaction.

    `close` waits until the writes in progress are done. Callers must not use a store afterwards.
    """

    accounts: AccountStore
    credentials: CredentialStore
    sessions: SessionStore
    secrets: SecretStore
    purge: PurgeStore
    close: Callable[[], Coroutine[Any, Any, None]]
