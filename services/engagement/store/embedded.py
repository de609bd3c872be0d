"""Opens the engagement store of the embedded backend, on `engagement.db` in the data directory."""

from __future__ import annotations

from services.engagement.store import EngagementStore
from services.engagement.store.sqlite.store import SqliteEngagementStore
from services.platform.backends import OpenedStore, require_memory_versions
from services.platform.service import ServiceContext
from services.platform.sqlite.outbox import Relay


async def open_store(context: ServiceContext) -> OpenedStore[EngagementStore]:
    """Opens the store, with the relay of its outbox."""
    store = await SqliteEngagementStore.open(context.data_dir / "engagement.db", require_memory_versions(context))
    return OpenedStore(store, (Relay(store.db, context.log),))
