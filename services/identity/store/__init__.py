"""The store of identity, as ports: accounts with their credentials, sessions, and the secrets that outlive a process.

Whatever changes something takes records, which commit with it or not at all. Errors, unless a method says more:
UNAVAILABLE when the store refuses for now, RESOURCE_EXHAUSTED when its queue is full. A caller cancelled during a write
does not know whether it was stored, but a write that was stored is seen by every read that begins after it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from roost.identity.v1 import user_pb2, user_service_pb2

from services.identity.password import Credential
from services.platform.events.log import Record

# A log-in beyond it ends the session that was used least recently.
MAX_SESSIONS = 100


class Account(NamedTuple):
    """An account as it stands. `core` is a serialised User, fields 1 to 9; `version` grows with every change, from
    1.
    """

    user_id: int
    core: bytes
    email: str
    state: user_pb2.UserState.ValueType
    version: int
    roles: frozenset[user_pb2.Role.ValueType]


class NewAccount(NamedTuple):
    """An account to make: the two keys under which it must be unique, and the record of its creation."""

    account: Account
    username_key: str
    email_key: str
    credential: Credential
    created: Record


class AccountLogin(NamedTuple):
    """What a log-in needs to know of an account."""

    account: Account
    credential: Credential


class Session(NamedTuple):
    """A session that lives. Times are in milliseconds since 1970; `created_ms` is its id's."""

    session_id: int
    user_id: int
    used_ms: int
    expires_ms: int
    user_agent: str


class Rotation(enum.Enum):
    """What became of a refresh token that was presented."""

    DONE = enum.auto()
    """It was used, now or before: its successor is good."""
    DEAD = enum.auto()
    """It belongs to the session, but its successor was used too long ago. Nothing was changed."""
    OVER = enum.auto()
    """The session has ended or expired."""


class AccountStore(Protocol):
    """Accounts and credentials."""

    async def refs(self, ids: Sequence[int]) -> user_service_pb2.BatchGetUserRefsResponse:
        """References in the order asked for, in a new message; unknown ids are left out. The hot read: no I/O where
        cached.
        """

    async def refs_serialized(self, ids: Sequence[int]) -> bytes:
        """The same, as a serialised BatchGetUserRefsResponse."""

    async def accounts(self, ids: Sequence[int]) -> list[Account]:
        """Accounts in the order asked for, whatever their state; unknown ids are left out."""

    async def by_username(self, username_key: str) -> AccountLogin | None:
        """The account of a folded name, whatever its state."""

    async def by_email(self, email_key: str) -> AccountLogin | None:
        """The account of a folded e-mail address, whatever its state."""

    async def credential(self, user_id: int) -> Credential | None:
        """The user's credential; None for an unknown id."""

    async def create(self, new: NewAccount, session: Session, token_hash: bytes) -> None:
        """Makes an account and its first session. ALREADY_EXISTS, with reason USERNAME_TAKEN or EMAIL_TAKEN, stores
        nothing.
        """

    async def import_accounts(self, new: Sequence[NewAccount]) -> list[int]:
        """Makes the accounts that do not exist, all or none, and returns the ids in order.

        An account that exists under the name counts as made if it is equal in all but id, time and state; else
        ALREADY_EXISTS.
        """

    async def replace(self, account: Account, records: Sequence[Record], *, end_sessions: bool = False) -> bool:
        """Stores an account over the version before its own, and ends its sessions if asked to; False, with nothing
        stored, over another.

        The e-mail address and the roles stay as they are.
        """

    async def set_credential(
        self,
        user_id: int,
        checked: Credential,
        credential: Credential,
        keep_session_id: int,
        records: Sequence[Record],
    ) -> bool:
        """Replaces the credential `checked` and ends all sessions but the one to keep (0: all). False, with nothing
        stored, if the user's credential is another by now.
        """

    async def scan(self, after_id: int, limit: int) -> list[Account]:
        """Accounts of any state with greater ids, ascending, at most `limit`."""


class SessionStore(Protocol):
    """Sessions. Refresh tokens are known by their SHA-256 only."""

    async def open_session(self, session: Session, token_hash: bytes, checked: Credential) -> bool:
        """Begins a session whose first refresh token is this. False, with nothing stored, unless the account is active
        and its credential is `checked`, the one that the password was compared with: it may have changed since.

        Beyond MAX_SESSIONS of the user the least recently used end, without a record: their access tokens run out by
        themselves.
        """

    async def rotate(
        self, user_id: int, session_id: int, presented: bytes, successor: bytes, now_ms: int, expires_ms: int
    ) -> Rotation:
        """Uses a refresh token of a session of this user. `successor` is the only one that `presented` ever gets.

        Good are the successor of the token used last, that token again, which changes nothing, and for
        rotation.REFRESH_GRACE_MS more the one used before it.
        """

    async def sessions(self, user_id: int, now_ms: int, before_id: int, limit: int) -> list[Session]:
        """The user's sessions that live, with ids below `before_id` (0: all), newest first, at most `limit`."""

    async def end_session(self, session_id: int, user_id: int, records: Sequence[Record]) -> bool:
        """Ends a session of this user; False, and no records, if there was none."""


class SecretStore(Protocol):
    """Secrets of this service, made once."""

    async def secret(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Returns the secret of that name, kept apart from the accounts; if there is none, what `make` gives is kept for good.

        `make` gives secrets of one size. FAILED_PRECONDITION if the kept one cannot be used.
        """


class Store(AccountStore, SessionStore, SecretStore, Protocol):
    """All of it: one adapter serves the three, because they share transactions."""

    async def close(self) -> None:
        """Finishes what was begun and gives the store free."""
