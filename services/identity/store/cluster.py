"""Opens the stores of identity on the cluster backend, on Cassandra and Redis."""

from __future__ import annotations

from services.identity.consumer import GROUP, TOPICS, publish_refs
from services.identity.store import IdentityStores
from services.identity.store.cassandra.stores import open_stores
from services.platform.backends import OpenedStore, require_cluster
from services.platform.service import ServiceContext


async def open_store(context: ServiceContext) -> OpenedStore[IdentityStores]:
    """Opens the stores, with their outbox and the consumer that writes user references to Redis."""
    stores = await open_stores(require_cluster(context), context.log, context.clock)
    publishing = context.log.consumer(GROUP, TOPICS, publish_refs(stores.shared_refs.write))
    return OpenedStore(stores, (stores.outbox, publishing))
