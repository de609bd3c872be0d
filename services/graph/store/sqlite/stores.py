"""Opens graph's stores on one SQLite file, with the visibility cache in memory beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.graph.store import GraphStores
from services.graph.store.sqlite import schema as sql
from services.graph.store.sqlite.committer import Committer
from services.graph.store.sqlite.counts import SqliteCountStore
from services.graph.store.sqlite.edges import SqliteEdgeStore
from services.graph.store.sqlite.lists import SqliteEdgeLists
from services.graph.store.sqlite.tiers import SqliteTierStore
from services.graph.store.sqlite.visibility_cache import SqliteVisibilityCache
from services.graph.tier_publisher import TierRule
from services.platform.sqlite.database import Database
from services.platform.versions import MemoryVersions


@dataclass(frozen=True, slots=True)
class SqliteGraphStores(GraphStores):
    """The stores, and the database whose outbox the relay reads."""

    db: Database


async def open_stores(path: Path, rule: TierRule, versions: MemoryVersions) -> SqliteGraphStores:
    """Opens the file, or creates it. Raises FAILED_PRECONDITION if another process owns the file, if the file cannot be
    opened as a database, or if a newer release migrated it."""
    return stores_on(await Database.open(path, sql.MIGRATIONS), rule, versions)


def stores_on(db: Database, rule: TierRule, versions: MemoryVersions) -> SqliteGraphStores:
    """Returns the stores of an open database."""
    visibility = SqliteVisibilityCache(db)
    committer = Committer(db, versions, visibility)
    lists = SqliteEdgeLists(db)
    return SqliteGraphStores(
        edges=SqliteEdgeStore(db, committer, rule),
        lists=lists,
        visibility=visibility,
        counts=SqliteCountStore(db, lists),
        tiers=SqliteTierStore(db, committer, rule),
        close=db.close,
        db=db,
    )
