"""Stores credentials in SQLite, in the row of their account."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from services.identity.password import Credential
from services.identity.store.sqlite.accounts.rows import read_login
from services.platform.events.log import Record
from services.platform.sqlite.database import Database
from services.platform.sqlite.outbox import enqueue

_SET_CREDENTIAL = "UPDATE account SET scheme = ?, password_hash = ? WHERE id = ? AND scheme = ? AND password_hash = ?"


class SqliteCredentialStore:
    """Implements CredentialStore on SQLite."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def get(self, user_id: int) -> Credential | None:
        login = await read_login(self._db, "id = ?", user_id)
        return login.credential if login is not None else None

    async def replace(
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

        return await self._db.write(transaction)
