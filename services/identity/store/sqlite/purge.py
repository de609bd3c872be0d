"""Erases deactivated accounts in the SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from services.identity.password import Scheme
from services.identity.store import Account, PurgedEvent
from services.identity.store.sqlite import schema
from services.identity.store.sqlite.accounts.cache import AccountCache
from services.identity.store.sqlite.accounts.rows import decode_login
from services.identity.store.user_refs import encode_roles, erased
from services.platform.events.log import Record
from services.platform.sqlite.database import Database
from services.platform.sqlite.outbox import enqueue

_DUE = "SELECT user_id, deactivated_s FROM deactivation WHERE deactivated_s < ? ORDER BY deactivated_s, user_id LIMIT ?"
_UNLIST = "DELETE FROM deactivation WHERE user_id = ? AND deactivated_s = ?"
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

    async def purge(self, before_s: int, limit: int, purged: PurgedEvent) -> int:
        due = await self._db.read(lambda c: c.execute(_DUE, (before_s, limit)).fetchall())
        records = {(user_id, at_s): await purged(user_id, at_s) for user_id, at_s in due}
        gone = await self._cache.write_through(lambda connection: _erase(connection, records)) if records else []
        self._log_to_wipe |= bool(gone)
        if self._log_to_wipe:
            # Without this the erased accounts would stay in the write-ahead log until SQLite overwrites it.
            await self._db.wipe_log()
            self._log_to_wipe = False
        return len(gone)


def _erase(connection: sqlite3.Connection, records: Mapping[tuple[int, int], Record]) -> list[Account]:
    """Erases the accounts with these (user id, time of the deactivation), except those that were activated meanwhile,
    and enqueues their events."""
    gone = []
    for (user_id, deactivated_s), record in records.items():
        if connection.execute(_UNLIST, (user_id, deactivated_s)).rowcount == 0:
            continue
        found = decode_login(connection.execute(schema.ACCOUNT + " WHERE id = ?", (user_id,)).fetchone()).account
        account = erased(found, found.version + 1)
        # The columns of the keys are unique and not null. No username or e-mail address has this form.
        key = f"#{user_id}"
        profile = (key, key, account.email, account.core, account.version, encode_roles(account))
        connection.execute(_ERASE, (*profile, int(Scheme.NONE), b"", user_id))
        enqueue(connection, [record])
        gone.append(account)
    return gone
