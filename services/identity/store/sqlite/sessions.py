"""Stores sessions in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from roost.identity.v1 import user_pb2

from services.identity.password import Credential
from services.identity.store import MAX_SESSIONS, Rotation, Session
from services.identity.store.rotation import RotationState
from services.identity.store.sqlite.accounts.rows import insert_session
from services.platform.events.log import Record
from services.platform.sqlite.database import Database
from services.platform.sqlite.outbox import enqueue

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


class SqliteSessionStore:
    """Implements SessionStore on SQLite."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def open(self, session: Session, token_hash: bytes, checked: Credential) -> bool:
        def transaction(connection: sqlite3.Connection) -> bool:
            values = (session.user_id, user_pb2.USER_STATE_ACTIVE, *checked)
            if connection.execute(_MAY_LOG_IN, values).fetchone() is None:
                return False
            insert_session(connection, session, token_hash)
            connection.execute(_SURPLUS, (session.user_id, session.user_id, session.used_ms, MAX_SESSIONS))
            return True

        return await self._db.write(transaction)

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

        return await self._db.write(transaction)

    async def list_live(self, user_id: int, now_ms: int, before_id: int, limit: int) -> list[Session]:
        values = (user_id, now_ms, before_id or _MAX_ID, limit)
        return [Session(*row) for row in await self._db.read(lambda c: c.execute(_SESSIONS, values).fetchall())]

    async def end(self, session_id: int, user_id: int, records: Sequence[Record]) -> bool:
        def transaction(connection: sqlite3.Connection) -> bool:
            ended = connection.execute(
                "DELETE FROM session WHERE id = ? AND user_id = ?", (session_id, user_id)
            ).rowcount
            if ended:
                enqueue(connection, records)
            return bool(ended)

        return await self._db.write(transaction)
