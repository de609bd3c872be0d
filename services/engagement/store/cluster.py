"""Opens the engagement store of the cluster backend, on Cassandra and Redis."""

from __future__ import annotations

from services.engagement.consumer import GROUP, TOPICS, recounting
from services.engagement.store import EngagementStore
from services.engagement.store.cassandra.store import CassandraEngagementStore
from services.platform.backends import OpenedStore, require_cluster
from services.platform.service import ServiceContext


async def open_store(context: ServiceContext) -> OpenedStore[EngagementStore]:
    """Opens the store, with its outbox and the consumer that counts likes."""
    store = await CassandraEngagementStore.open(require_cluster(context), context.log, context.clock)
    return OpenedStore(
        store, (store.outbox, context.log.consumer(GROUP, TOPICS, recounting(store.counter.recount_likes)))
    )
