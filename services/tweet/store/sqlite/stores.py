"""Opens the tweet stores of the embedded backend, which share one SQLite file. Only this process uses the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.platform.sqlite.database import Database
from services.platform.sqlite.versioned_writes import VersionedWrites
from services.platform.versions import Kind, MemoryVersions
from services.tweet.store import TweetStores
from services.tweet.store.cache import ShardedVersions
from services.tweet.store.sqlite import schema as sql
from services.tweet.store.sqlite.cached_reads import CachedReads
from services.tweet.store.sqlite.links import SqliteLinkLists
from services.tweet.store.sqlite.lists import SqliteTweetLists
from services.tweet.store.sqlite.purge import SqlitePurgeStore
from services.tweet.store.sqlite.tweets import SqliteTweetStore

# Number of counters for the versions of conversations; see SHARDS for why it is prime. A reply also changes the
# versions of the conversations with the same counter: at 1,000 replies a second, each version changes about once a
# minute for this reason.
CONVERSATION_SHARDS = 65_521


@dataclass(frozen=True, slots=True)
class SqliteTweetStores(TweetStores):
    """The stores, and their database `db`, which contains the outbox that the relay reads."""

    db: Database


async def open_stores(path: Path, versions: MemoryVersions) -> SqliteTweetStores:
    """Opens the SQLite file, or creates it, and applies its migrations. Raises FAILED_PRECONDITION if another process
    owns the file, if the file cannot be opened as a database, or if a newer release migrated the file."""
    return stores_on(await Database.open(path, sql.MIGRATIONS), versions)


def stores_on(db: Database, versions: MemoryVersions) -> SqliteTweetStores:
    """Returns the stores of an open database, with empty caches."""
    writes = VersionedWrites(db, versions, Kind.TWEET, Kind.TWEET_STATE, Kind.AUTHOR)
    cached = CachedReads(db, versions)
    # Versions of conversations, by conversation id.
    threads = ShardedVersions(CONVERSATION_SHARDS)
    lists = SqliteTweetLists(db, cached)
    return SqliteTweetStores(
        tweets=SqliteTweetStore(db, writes, cached, threads, lists),
        lists=lists,
        links=SqliteLinkLists(db, cached, threads),
        purge=SqlitePurgeStore(db, writes, cached),
        close=db.close,
        db=db,
    )
