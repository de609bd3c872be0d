"""Opens the home timelines of the cluster backend, in Redis."""

from __future__ import annotations

from services.platform.backends import OpenedStore, require_cluster
from services.platform.service import ServiceContext
from services.timeline.store import HomeTimelineStore
from services.timeline.store.redis.store import RedisHomeTimelines


async def open_store(context: ServiceContext) -> OpenedStore[HomeTimelineStore]:
    """Returns a store on the Redis server of the settings, whose home timelines all processes of the mesh share."""
    return OpenedStore(RedisHomeTimelines(require_cluster(context).redis))
