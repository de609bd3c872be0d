"""Caches the accounts of the SQLite file in process memory.

Each write updates the cache before it returns, so the cache is never older than the file.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from services.identity.store import Account
from services.identity.store.sqlite import schema
from services.identity.store.sqlite.accounts.rows import decode_login
from services.identity.store.user_refs import serialized_ref
from services.platform.sqlite.database import Database
from services.platform.sqlite.versioned_writes import VersionedWrites
from services.platform.versions import Kind, MemoryVersions, key_of

# Maximum number of accounts in the cache; beyond it, the least recently used one is dropped. An account takes about 1.5
# kB: 150 MB in all.
MAX_CACHED = 100_000
# Maximum number of ids in one query; more ids are read by several queries. SQLite allows far more; the bound keeps each
# read short.
IDS_PER_READ = 500

_IN = " WHERE id IN (SELECT value FROM json_each(?))"


class CachedAccount:
    """An account with its serialized user reference."""

    __slots__ = ("account", "ref")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.ref = serialized_ref(account)


class ChangedAccounts(NamedTuple):
    """The accounts that a transaction changed, as they are after it."""

    accounts: list[Account]

    def version_keys(self) -> list[int]:
        """Implements Change."""
        return [key_of(Kind.USER, account.user_id) for account in self.accounts]


class AccountCache:
    """Reads accounts from memory, or from the SQLite file if they are not in memory; keeps at most `max_cached` in
    memory. Writes accounts to the file and then to memory. Only one event loop may use an AccountCache."""

    def __init__(self, db: Database, versions: MemoryVersions, max_cached: int) -> None:
        self._db = db
        self._writes = VersionedWrites(db, versions, Kind.USER)
        self._max_cached = max_cached
        # Cached accounts by user id, the least recently used first.
        self._cache: OrderedDict[int, CachedAccount] = OrderedDict()

    async def write_through(self, transaction: Callable[[sqlite3.Connection], list[Account]]) -> list[Account]:
        """Commits `transaction`, which returns the changed accounts, then caches and returns these accounts. The
        accounts are cached even if the caller is cancelled meanwhile. If `transaction` raises an error, nothing is
        committed or cached, and the caller gets this error."""

        def apply(changed: ChangedAccounts) -> None:
            for account in changed.accounts:
                self._put(account)

        return (await self._writes.write(lambda c: ChangedAccounts(transaction(c)), apply)).accounts

    async def get_many(self, ids: Sequence[int]) -> list[CachedAccount]:
        """Returns the accounts in the order of `ids`; omits unknown ids. Accounts that are not cached are read from the
        file. Raises the errors of `Database.read`."""
        cache = self._cache
        try:
            found = [cache[user_id] for user_id in ids]
        except KeyError:
            return await self._get_or_load(ids)
        for user_id in ids:
            cache.move_to_end(user_id)
        return found

    async def _get_or_load(self, ids: Sequence[int]) -> list[CachedAccount]:
        found = {user_id: cached for user_id in ids if (cached := self._cache.get(user_id)) is not None}
        missing = [user_id for user_id in dict.fromkeys(ids) if user_id not in found]
        for start in range(0, len(missing), IDS_PER_READ):
            found |= await self._load(missing[start : start + IDS_PER_READ])
        return [found[user_id] for user_id in ids if user_id in found]

    async def _load(self, ids: Sequence[int]) -> dict[int, CachedAccount]:
        wanted = "[" + ",".join(map(str, ids)) + "]"
        rows = await self._db.read(lambda c: c.execute(schema.ACCOUNT + _IN, (wanted,)).fetchall())
        return {row[0]: self._put(decode_login(row).account) for row in rows}

    def _put(self, account: Account) -> CachedAccount:
        # A read may return after a newer write, so an older version must not replace a newer one.
        cached = self._cache.get(account.user_id)
        if cached is None or cached.account.version < account.version:
            cached = self._cache[account.user_id] = CachedAccount(account)
            while len(self._cache) > self._max_cached:
                self._cache.popitem(last=False)
        return cached
