"""Opens the stores of graph on the embedded backend, on `graph.db` in the data directory."""

from __future__ import annotations

from services.graph.store import GraphStores
from services.graph.store.sqlite.stores import open_stores
from services.graph.tier_publisher import TierPublisher, TierRule
from services.platform.backends import OpenedStore, require_memory_versions
from services.platform.service import ServiceContext
from services.platform.sqlite.outbox import Relay


async def open_store(context: ServiceContext, rule: TierRule, publisher: TierPublisher) -> OpenedStore[GraphStores]:
    """Opens the stores, with the relay of their outbox."""
    stores = await open_stores(context.data_dir / "graph.db", rule, require_memory_versions(context))
    return OpenedStore(stores, (Relay(stores.db, context.log),))
