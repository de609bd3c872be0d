"""Opens the store of home timelines for the cluster backend: Redis."""

from __future__ import annotations

from services.platform.backends import OpenedStore, require_cluster
from services.platform.service import ServiceContext
from services.timeline.store import HomeTimelineStore
from services.timeline.store.redis.store import RedisHomeTimelines


async def open_store(context: ServiceContext) -> OpenedStore[HomeTimelineStore]:
    """Returns a store in the Redis of this process's backends. All processes of the mesh share its home timelines."""
    return OpenedStore(RedisHomeTimelines(require_cluster(context).redis))
