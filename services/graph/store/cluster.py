"""Opens the stores of graph on the cluster backend, on Cassandra and Redis."""

from __future__ import annotations

from services.graph.store import GraphStores
from services.graph.store.cassandra.stores import open_stores
from services.graph.tier_publisher import TierPoller, TierPublisher, TierRule
from services.platform.backends import OpenedStore, require_cluster
from services.platform.service import ServiceContext


async def open_store(context: ServiceContext, rule: TierRule, publisher: TierPublisher) -> OpenedStore[GraphStores]:
    """Opens the stores, with their outbox and sweeper, and the poller of tiers that other processes change."""
    stores = await open_stores(require_cluster(context), context.log, rule, context.ids.mint, context.clock)
    return OpenedStore(stores, (*stores.workers, TierPoller(stores.tiers, publisher, context.clock)))
