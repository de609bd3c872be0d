"""Opens the store of home timelines for the embedded backend: process memory."""

from __future__ import annotations

from services.platform.backends import OpenedStore
from services.platform.service import ServiceContext
from services.timeline.store import HomeTimelineStore
from services.timeline.store.memory import EmbeddedHomeTimelines


async def open_store(context: ServiceContext) -> OpenedStore[HomeTimelineStore]:
    """Returns an empty store in process memory: after a start all home timelines are cold."""
    return OpenedStore(EmbeddedHomeTimelines(context.settings.warm_timelines))
