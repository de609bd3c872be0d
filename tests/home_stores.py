"""The timeline store of a running mesh, of either family, for tests that reach into it."""

from __future__ import annotations

from services.platform.process import Process
from services.timeline.home_builder import HomeBuilder
from services.timeline.store import HomeTimelineStore
from services.timeline.store.memory import EmbeddedHomeTimelines
from services.timeline.store.redis.encoding import Sizes
from services.timeline.store.redis.store import RedisHomeTimelines

# Of the oldest positions of a short list in Redis.
RESERVE = 2


def store_of(process: Process) -> HomeTimelineStore:
    """Where the homes are."""
    kinds = (EmbeddedHomeTimelines, RedisHomeTimelines)
    (store,) = (each for each in process.services["timeline"].resources if isinstance(each, kinds))
    return store


def shorten(process: Process, keep: int, trim_above: int) -> None:
    """Homes of `keep` ids instead of 832: only tests want that, so no setting offers it."""
    store = store_of(process)
    (builds,) = (worker for worker in process.services["timeline"].workers if isinstance(worker, HomeBuilder))
    builds._keep = keep
    if isinstance(store, RedisHomeTimelines):
        store._sizes = Sizes(keep, RESERVE, trim_above, 4 * keep, soon=1)
    elif isinstance(store, EmbeddedHomeTimelines):
        store._keep, store._trim_above = keep, trim_above
