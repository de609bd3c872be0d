"""Stores accounts in SQLite, and reads them through the cache."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from roost.identity.v1 import user_pb2, user_service_pb2

from services.identity.store import Account, AccountLogin, NewAccount, Session
from services.identity.store.sqlite import schema
from services.identity.store.sqlite.accounts.cache import AccountCache
from services.identity.store.sqlite.accounts.rows import decode_login, insert_account, insert_session, read_login
from services.identity.store.user_refs import is_same_account
from services.platform.events.log import Record
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.platform.sqlite.database import Database
from services.platform.sqlite.outbox import enqueue

_REPLACE = "UPDATE account SET core = ?, state = ?, version = ? WHERE id = ? AND version = ?"
_UNLIST = "DELETE FROM deactivation WHERE user_id = ?"
_LIST = "INSERT INTO deactivation (user_id, deactivated_s) VALUES (?, ?)"


class SqliteAccountStore:
    """Implements AccountStore on SQLite."""

    def __init__(self, db: Database, cache: AccountCache) -> None:
        self._db = db
        self._cache = cache

    async def refs(self, ids: Sequence[int]) -> user_service_pb2.BatchGetUserRefsResponse:
        return user_service_pb2.BatchGetUserRefsResponse.FromString(await self.refs_serialized(ids))

    async def refs_serialized(self, ids: Sequence[int]) -> bytes:
        return b"".join([cached.ref for cached in await self._cache.get_many(ids)])

    async def batch_get(self, ids: Sequence[int]) -> list[Account]:
        return [cached.account for cached in await self._cache.get_many(ids)]

    async def by_username(self, username_key: str) -> AccountLogin | None:
        return await read_login(self._db, "username_key = ?", username_key)

    async def by_email(self, email_key: str) -> AccountLogin | None:
        return await read_login(self._db, "email_key = ?", email_key)

    async def create(self, new: NewAccount, session: Session, token_hash: bytes) -> None:
        def transaction(connection: sqlite3.Connection) -> list[Account]:
            insert_account(connection, new)
            insert_session(connection, session, token_hash)
            return [new.account]

        await self._cache.write_through(transaction)

    async def import_accounts(self, new: Sequence[NewAccount]) -> list[int]:
        ids: list[int] = []

        def transaction(connection: sqlite3.Connection) -> list[Account]:
            ids.clear()
            made = []
            for one in new:
                row = connection.execute(schema.ACCOUNT + " WHERE username_key = ?", (one.username_key,)).fetchone()
                if row is None:
                    insert_account(connection, one)
                    made.append(one.account)
                elif not is_same_account(decode_login(row), one):
                    name = user_pb2.User.FromString(one.account.core).username
                    raise errors.already_exists(
                        f"the username {name} is taken by a different account", Reason.USERNAME_TAKEN
                    )
                ids.append(row[0] if row is not None else one.account.user_id)
            return made

        await self._cache.write_through(transaction)
        return ids

    async def replace(
        self,
        account: Account,
        records: Sequence[Record],
        *,
        end_sessions: bool = False,
        deactivated_s: int | None = None,
    ) -> bool:
        def transaction(connection: sqlite3.Connection) -> list[Account]:
            values = (account.core, account.state, account.version, account.user_id, account.version - 1)
            if connection.execute(_REPLACE, values).rowcount == 0:
                return []
            if end_sessions:
                connection.execute("DELETE FROM session WHERE user_id = ?", (account.user_id,))
            connection.execute(_UNLIST, (account.user_id,))
            if deactivated_s is not None:
                connection.execute(_LIST, (account.user_id, deactivated_s))
            enqueue(connection, records)
            return [account]

        return bool(await self._cache.write_through(transaction))

    async def scan(self, after_id: int, limit: int) -> list[Account]:
        query = schema.ACCOUNT + " WHERE id > ? ORDER BY id LIMIT ?"
        rows = await self._db.read(lambda c: c.execute(query, (after_id, limit)).fetchall())
        return [decode_login(row).account for row in rows]
