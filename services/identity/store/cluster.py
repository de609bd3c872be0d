"""Opens the stores of identity on the cluster backend, on Cassandra and Redis."""

from __future__ import annotations

from services.identity.consumer import GROUP, TOPICS, publish_refs
from services.identity.purge import PURGE, purge_job
from services.identity.store import IdentityStores
from services.identity.store.cassandra.stores import open_stores
from services.platform.backends import OpenedStore, require_cluster
from services.platform.service import ServiceContext


async def open_store(context: ServiceContext) -> OpenedStore[IdentityStores]:
    """Opens the stores, with three workers: the outbox; the consumer that writes user references to Redis; and the purge
    of deactivated accounts. A lease lets only one process of the mesh run the purge."""
    cluster = require_cluster(context)
    stores = await open_stores(cluster, context.log, context.clock)
    lease = await cluster.job_lease(PURGE)
    purge = purge_job(stores.purge, context, lease.hold)
    publishing = context.log.consumer(GROUP, TOPICS, publish_refs(stores.shared_refs.write))
    return OpenedStore(stores, (stores.outbox, publishing, purge))
