"""Opens identity's stores on one SQLite file, which only this process uses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.identity.store import IdentityStores
from services.identity.store.sqlite import schema
from services.identity.store.sqlite.accounts.cache import MAX_CACHED, AccountCache
from services.identity.store.sqlite.accounts.store import SqliteAccountStore
from services.identity.store.sqlite.credentials import SqliteCredentialStore
from services.identity.store.sqlite.purge import SqlitePurgeStore
from services.identity.store.sqlite.service_secrets import FileSecretStore
from services.identity.store.sqlite.sessions import SqliteSessionStore
from services.platform.sqlite.database import Database
from services.platform.versions import MemoryVersions


@dataclass(frozen=True, slots=True)
class SqliteIdentityStores(IdentityStores):
    """The stores, and the database whose outbox the relay reads."""

    db: Database


async def open_stores(path: Path, versions: MemoryVersions, max_cached: int = MAX_CACHED) -> SqliteIdentityStores:
    """Opens or creates the database file; the secrets are stored in the folder `keys` beside the file. Raises
    FAILED_PRECONDITION if another process owns the file, if the file cannot be opened as a database, or if a newer
    release migrated it. `max_cached` is the maximum number of accounts in the cache."""
    db = await Database.open(path, schema.MIGRATIONS)
    cache = AccountCache(db, versions, max_cached)
    return SqliteIdentityStores(
        accounts=SqliteAccountStore(db, cache),
        credentials=SqliteCredentialStore(db),
        sessions=SqliteSessionStore(db),
        secrets=FileSecretStore(db, path.with_name("keys")),
        purge=SqlitePurgeStore(db, cache),
        close=db.close,
        db=db,
    )
