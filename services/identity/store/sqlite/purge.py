"""Erases deactivated accounts in the SQLite file."""

from __future__ import annotations

import sqlite3

from services.identity.password import Scheme
from services.identity.store import Account
from services.identity.store.sqlite import schema
from services.identity.store.sqlite.accounts.cache import AccountCache
from services.identity.store.sqlite.accounts.rows import decode_login
from services.identity.store.user_refs import encode_roles, erased
from services.platform.sqlite.database import Database

_DUE = " WHERE id IN (SELECT user_id FROM deactivation WHERE deactivated_s < ? ORDER BY deactivated_s, user_id LIMIT ?)"
_ERASE = (
    "UPDATE account SET username_key = ?, email_key = ?, email = ?, core = ?, version = ?, roles = ?, scheme = ?,"
    " password_hash = ? WHERE id = ?"
)


class SqlitePurgeStore:
    """Implements PurgeStore on SQLite."""

    def __init__(self, db: Database, cache: AccountCache) -> None:
        self._db = db
        self._cache = cache
        # Whether the write-ahead log may contain erased accounts. True at the start, because an earlier process may
        # have died after a purge, before it wiped the log.
        self._log_to_wipe = True

    async def purge(self, before_s: int, limit: int) -> int:
        gone = await self._cache.write_through(lambda connection: _erase_due(connection, before_s, limit))
        self._log_to_wipe |= bool(gone)
        if self._log_to_wipe:
            # Without this the erased accounts would stay in the write-ahead log until SQLite overwrites it.
            await self._db.wipe_log()
            self._log_to_wipe = False
        return len(gone)


def _erase_due(connection: sqlite3.Connection, before_s: int, limit: int) -> list[Account]:
    gone = []
    for row in connection.execute(schema.ACCOUNT + _DUE, (before_s, limit)).fetchall():
        found = decode_login(row).account
        account = erased(found, found.version + 1)
        # The columns of the keys are unique and not null. No username or e-mail address has this form.
        key = f"#{account.user_id}"
        profile = (key, key, account.email, account.core, account.version, encode_roles(account))
        connection.execute(_ERASE, (*profile, int(Scheme.NONE), b"", account.user_id))
        connection.execute("DELETE FROM deactivation WHERE user_id = ?", (account.user_id,))
        gone.append(account)
    return gone
