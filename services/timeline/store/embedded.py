"""Opens the home timelines of the embedded backend, in process memory."""

from __future__ import annotations

from services.platform.backends import OpenedStore
from services.platform.service import ServiceContext
from services.timeline.store import HomeTimelineStore
from services.timeline.store.memory import EmbeddedHomeTimelines


async def open_store(context: ServiceContext) -> OpenedStore[HomeTimelineStore]:
    """Returns an empty store in the memory of this process: each home timeline is built when it is first read."""
    return OpenedStore(EmbeddedHomeTimelines(context.settings.warm_timelines))
