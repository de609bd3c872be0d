"""Opens the tweet stores of the cluster backend, on Cassandra and Redis."""

from __future__ import annotations

from services.platform.backends import OpenedStore, require_cluster
from services.platform.service import ServiceContext
from services.tweet.consumer import GROUP, TOPICS, finishing_side_effects
from services.tweet.purge import PURGE, purge_job
from services.tweet.store import TweetStores
from services.tweet.store.cassandra.stores import open_stores


async def open_store(context: ServiceContext) -> OpenedStore[TweetStores]:
    """Opens the stores, with three workers: the outbox; a consumer that repeats the follow-up writes of committed
    writes; and the purge of deleted tweets. A lease lets only one process of the mesh run the purge."""
    cluster = require_cluster(context)
    stores = await open_stores(cluster, context.log, context.clock)
    lease = await cluster.job_lease(PURGE)
    purge = purge_job(stores.purge, context.clock, context.settings.delete_grace_s, lease.hold)
    finishing = context.log.consumer(GROUP, TOPICS, finishing_side_effects(stores.finish_side_effects))
    return OpenedStore(stores, (stores.outbox, finishing, purge))
