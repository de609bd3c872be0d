"""The SQLite adapter: one database file, with an in-memory cache of accounts.

Only this process uses the file. Each write updates the cache before it returns, so the cache is never older than the file.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self, TypeVar

from roost.identity.v1 import user_pb2, user_service_pb2

from services.identity.password import Credential, Scheme
from services.identity.store import MAX_SESSIONS, Account, AccountLogin, NewAccount, Rotation, Session
from services.identity.store.rotation import RotationState
from services.identity.store.user_refs import decode_roles, encode_roles, is_same_account, serialized_ref
from services.platform.caching.read_tracking import ChangeTracker
from services.platform.events.log import Record
from services.platform.files import kept_key, naming, private_dir, write_durably
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.platform.sqlite.database import Database
from services.platform.sqlite.outbox import OUTBOX_SCHEMA, enqueue

T = TypeVar("T")

# Accounts in the cache, about 1.5 kB each.
MAX_CACHED = 100_000
# Ids in one query. SQLite allows far more; the bound keeps a read short.
IDS_PER_READ = 500

SCHEMA = """
CREATE TABLE account (
    id INTEGER PRIMARY KEY, username_key TEXT NOT NULL UNIQUE, email_key TEXT NOT NULL UNIQUE, email TEXT NOT NULL,
    core BLOB NOT NULL, state INTEGER NOT NULL, version INTEGER NOT NULL, roles TEXT NOT NULL,
    scheme INTEGER NOT NULL, password_hash BLOB NOT NULL
);
CREATE TABLE session (
    id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL, used_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL,
    user_agent TEXT NOT NULL, used BLOB NOT NULL, offered BLOB NOT NULL
);
CREATE INDEX session_by_user ON session (user_id, id);
CREATE TABLE secret (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""
# The consequence of replacing each key, for the error message about a damaged key file.
_CONSEQUENCE_OF_LOSS = {
    "password_pepper": "no user can log in with the current password then",
    "refresh_token_key": "all users have to log in again",
    "signing_key": "access tokens issued before are rejected",
}
_ACCOUNT = "SELECT id, core, email, state, version, roles, scheme, password_hash FROM account"
_IN = " WHERE id IN (SELECT value FROM json_each(?))"
_INSERT = "INSERT INTO account VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_SESSION = "INSERT INTO session VALUES (?, ?, ?, ?, ?, ?, ?)"
_REPLACE = "UPDATE account SET core = ?, state = ?, version = ? WHERE id = ? AND version = ?"
_SET_CREDENTIAL = "UPDATE account SET scheme = ?, password_hash = ? WHERE id = ? AND scheme = ? AND password_hash = ?"
_MAY_LOG_IN = "SELECT 1 FROM account WHERE id = ? AND state = ? AND scheme = ? AND password_hash = ?"
_SESSIONS = (
    "SELECT id, user_id, used_ms, expires_ms, user_agent FROM session"
    " WHERE user_id = ? AND expires_ms > ? AND id < ? ORDER BY id DESC LIMIT ?"
)
_SURPLUS = (
    "DELETE FROM session WHERE user_id = ? AND id NOT IN"
    " (SELECT id FROM session WHERE user_id = ? AND expires_ms > ? ORDER BY used_ms DESC, id DESC LIMIT ?)"
)
_MAX_ID = 2**63 - 1

_Row = tuple[int, bytes, str, int, int, str, int, bytes]


class _Cached:
    """An account with its serialised reference."""

    __slots__ = ("account", "ref")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.ref = serialized_ref(account)


class EmbeddedStore:
    """Implements Store on SQLite. Created by `open`."""

    def __init__(self, db: Database, keys: Path, max_cached: int = MAX_CACHED) -> None:
        self.db = db
        self._keys = keys
        self._keys_lock = asyncio.Lock()
        self._max_cached = max_cached
        # Least recently used first.
        self._cache: OrderedDict[int, _Cached] = OrderedDict()
        self._changes = ChangeTracker()

    @classmethod
    async def open(cls, path: Path, max_cached: int = MAX_CACHED) -> Self:
        """Opens or creates the file; keys are stored in the folder `keys` beside it. Raises as Database.open.

        Because the pepper is not in the file, a copy of the file, such as a backup, does not allow guessing passwords.
        """
        db = await Database.open(path, [SCHEMA, OUTBOX_SCHEMA])
        return cls(db, path.with_name("keys"), max_cached)

    async def close(self) -> None:
        """Closes the file."""
        await self.db.close()

    async def refs(self, ids: Sequence[int]) -> user_service_pb2.BatchGetUserRefsResponse:
        return user_service_pb2.BatchGetUserRefsResponse.FromString(await self.refs_serialized(ids))

    async def refs_serialized(self, ids: Sequence[int]) -> bytes:
        return b"".join([cached.ref for cached in await self._cached(ids)])

    async def accounts(self, ids: Sequence[int]) -> list[Account]:
        return [cached.account for cached in await self._cached(ids)]

    async def by_username(self, username_key: str) -> AccountLogin | None:
        return await self._login(" WHERE username_key = ?", username_key)

    async def by_email(self, email_key: str) -> AccountLogin | None:
        return await self._login(" WHERE email_key = ?", email_key)

    async def credential(self, user_id: int) -> Credential | None:
        login = await self._login(" WHERE id = ?", user_id)
        return login.credential if login is not None else None

    async def create(self, new: NewAccount, session: Session, token_hash: bytes) -> None:
        def transaction(connection: sqlite3.Connection) -> list[Account]:
            _insert(connection, new)
            _insert_session(connection, session, token_hash)
            return [new.account]

        await self._write_through(transaction)

    async def import_accounts(self, new: Sequence[NewAccount]) -> list[int]:
        ids: list[int] = []

        def transaction(connection: sqlite3.Connection) -> list[Account]:
            ids.clear()
            made = []
            for one in new:
                row = connection.execute(_ACCOUNT + " WHERE username_key = ?", (one.username_key,)).fetchone()
                if row is None:
                    _insert(connection, one)
                    made.append(one.account)
                elif not is_same_account(_decode_login(row), one):
                    name = user_pb2.User.FromString(one.account.core).username
                    raise errors.already_exists(
                        f"the username {name} is taken by a different account", Reason.USERNAME_TAKEN
                    )
                ids.append(row[0] if row is not None else one.account.user_id)
            return made

        await self._write_through(transaction)
        return ids

    async def replace(self, account: Account, records: Sequence[Record], *, end_sessions: bool = False) -> bool:
        def transaction(connection: sqlite3.Connection) -> list[Account]:
            values = (account.core, account.state, account.version, account.user_id, account.version - 1)
            if connection.execute(_REPLACE, values).rowcount == 0:
                return []
            if end_sessions:
                connection.execute("DELETE FROM session WHERE user_id = ?", (account.user_id,))
            enqueue(connection, records)
            return [account]

        return bool(await self._write_through(transaction))

    async def set_credential(
        self,
        user_id: int,
        checked: Credential,
        credential: Credential,
        keep_session_id: int,
        records: Sequence[Record],
    ) -> bool:
        def transaction(connection: sqlite3.Connection) -> bool:
            if connection.execute(_SET_CREDENTIAL, (*credential, user_id, *checked)).rowcount == 0:
                return False
            connection.execute("DELETE FROM session WHERE user_id = ? AND id != ?", (user_id, keep_session_id))
            enqueue(connection, records)
            return True

        return await self.db.write(transaction)

    async def scan(self, after_id: int, limit: int) -> list[Account]:
        query = _ACCOUNT + " WHERE id > ? ORDER BY id LIMIT ?"
        rows = await self.db.read(lambda c: c.execute(query, (after_id, limit)).fetchall())
        return [_decode_login(row).account for row in rows]

    async def open_session(self, session: Session, token_hash: bytes, checked: Credential) -> bool:
        def transaction(connection: sqlite3.Connection) -> bool:
            values = (session.user_id, user_pb2.USER_STATE_ACTIVE, *checked)
            if connection.execute(_MAY_LOG_IN, values).fetchone() is None:
                return False
            _insert_session(connection, session, token_hash)
            connection.execute(_SURPLUS, (session.user_id, session.user_id, session.used_ms, MAX_SESSIONS))
            return True

        return await self.db.write(transaction)

    async def rotate(
        self, user_id: int, session_id: int, presented: bytes, successor: bytes, now_ms: int, expires_ms: int
    ) -> Rotation:
        def transaction(connection: sqlite3.Connection) -> Rotation:
            query = "SELECT used, offered, used_ms FROM session WHERE id = ? AND user_id = ? AND expires_ms > ?"
            row = connection.execute(query, (session_id, user_id, now_ms)).fetchone()
            if row is None:
                return Rotation.ENDED
            following = RotationState(*row).use(presented, successor, now_ms)
            if isinstance(following, Rotation):
                return following
            change = "UPDATE session SET used = ?, offered = ?, used_ms = ?, expires_ms = ? WHERE id = ?"
            connection.execute(change, (*following, expires_ms, session_id))
            return Rotation.DONE

        return await self.db.write(transaction)

    async def sessions(self, user_id: int, now_ms: int, before_id: int, limit: int) -> list[Session]:
        values = (user_id, now_ms, before_id or _MAX_ID, limit)
        return [Session(*row) for row in await self.db.read(lambda c: c.execute(_SESSIONS, values).fetchall())]

    async def end_session(self, session_id: int, user_id: int, records: Sequence[Record]) -> bool:
        def transaction(connection: sqlite3.Connection) -> bool:
            ended = connection.execute(
                "DELETE FROM session WHERE id = ? AND user_id = ?", (session_id, user_id)
            ).rowcount
            if ended:
                enqueue(connection, records)
            return bool(ended)

        return await self.db.write(transaction)

    async def secret(self, name: str, make: Callable[[], bytes]) -> bytes:
        path = self._keys / f"{name}.key"
        lost = _CONSEQUENCE_OF_LOSS.get(name, "the data that it protects is lost")
        async with self._keys_lock:
            if not path.exists() and (legacy := await self._legacy_secret(name)) is not None:
                with naming(path):
                    await asyncio.to_thread(lambda: write_durably(private_dir(self._keys) / path.name, legacy))
            key = await asyncio.to_thread(kept_key, path, make, lost)
            await self.db.write(lambda c: _delete_legacy_secret(c, name), quiet=True)
        return key

    async def _legacy_secret(self, name: str) -> bytes | None:
        query = "SELECT value FROM secret WHERE name = ?"
        row = await self.db.read(lambda c: c.execute(query, (name,)).fetchone())
        return bytes(row[0]) if row is not None else None

    async def _cached(self, ids: Sequence[int]) -> list[_Cached]:
        self._changes.read(ids)
        cache = self._cache
        try:
            found = [cache[user_id] for user_id in ids]
        except KeyError:
            return await self._cached_or_loaded(ids)
        for user_id in ids:
            cache.move_to_end(user_id)
        return found

    async def _cached_or_loaded(self, ids: Sequence[int]) -> list[_Cached]:
        found = {user_id: cached for user_id in ids if (cached := self._cache.get(user_id)) is not None}
        missing = [user_id for user_id in dict.fromkeys(ids) if user_id not in found]
        for start in range(0, len(missing), IDS_PER_READ):
            found |= await self._load(missing[start : start + IDS_PER_READ])
        return [found[user_id] for user_id in ids if user_id in found]

    async def _load(self, ids: Sequence[int]) -> dict[int, _Cached]:
        wanted = "[" + ",".join(map(str, ids)) + "]"
        rows = await self.db.read(lambda c: c.execute(_ACCOUNT + _IN, (wanted,)).fetchall())
        return {row[0]: self._cache_account(_decode_login(row).account) for row in rows}

    async def _login(self, where: str, value: str | int) -> AccountLogin | None:
        row = await self.db.read(lambda c: c.execute(_ACCOUNT + where, (value,)).fetchone())
        return _decode_login(row) if row is not None else None

    async def _write_through(self, transaction: Callable[[sqlite3.Connection], list[Account]]) -> list[Account]:
        """Commits `transaction` and caches the accounts that it returns, even if the caller is cancelled meanwhile."""

        async def write() -> list[Account]:
            changed = await self.db.write(transaction)
            for account in changed:
                self._cache_account(account)
            self._changes.changed([account.user_id for account in changed])
            return changed

        return await asyncio.shield(write())

    def _cache_account(self, account: Account) -> _Cached:
        # A read may return after a newer write, so an older version must not replace a newer one.
        cached = self._cache.get(account.user_id)
        if cached is None or cached.account.version < account.version:
            cached = self._cache[account.user_id] = _Cached(account)
            while len(self._cache) > self._max_cached:
                self._cache.popitem(last=False)
        return cached


def _delete_legacy_secret(connection: sqlite3.Connection, name: str) -> None:
    # Earlier releases stored keys beside the hashes that they protect. secure_delete overwrites the bytes in the file.
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("DELETE FROM secret WHERE name = ?", (name,))


def _insert(connection: sqlite3.Connection, new: NewAccount) -> None:
    account = new.account
    for column, value, reason in (
        ("username_key", new.username_key, Reason.USERNAME_TAKEN),
        ("email_key", new.email_key, Reason.EMAIL_TAKEN),
    ):
        if connection.execute(f"SELECT 1 FROM account WHERE {column} = ?", (value,)).fetchone():  # noqa: S608 (ours)
            raise errors.already_exists(f"the {reason.split('_', 1)[0].lower()} is taken: choose another", reason)
    values = (account.user_id, new.username_key, new.email_key, account.email, account.core)
    connection.execute(_INSERT, (*values, account.state, account.version, encode_roles(account), *new.credential))
    enqueue(connection, [new.created])


def _insert_session(connection: sqlite3.Connection, session: Session, token_hash: bytes) -> None:
    connection.execute(_INSERT_SESSION, (*session, b"", token_hash))


def _decode_login(row: _Row) -> AccountLogin:
    user_id, core, email, state, version, roles, scheme, password_hash = row
    account = Account(
        user_id,
        core,
        email,
        user_pb2.UserState.ValueType(state),
        version,
        decode_roles(roles),
    )
    return AccountLogin(account, Credential(Scheme(scheme), password_hash))
