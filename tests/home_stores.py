"""Access to the home timeline store of a running mesh, on either backend, for tests."""

from __future__ import annotations

from services.platform.process import Process
from services.timeline.home.builder import HomeBuilder
from services.timeline.store import HomeTimelineStore
from services.timeline.store.memory import EmbeddedHomeTimelines
from services.timeline.store.redis.encoding import ListLimits
from services.timeline.store.redis.store import RedisHomeTimelines

# Far longer than a call takes on a busy machine.
PATIENT_S = 60.0
# `reserve` of the shortened lists in Redis.
RESERVE = 2


def home_store_of(process: Process) -> HomeTimelineStore:
    """Returns the process's home timeline store."""
    kinds = (EmbeddedHomeTimelines, RedisHomeTimelines)
    (store,) = (each for each in process.services["timeline"].resources if isinstance(each, kinds))
    return store


def shorten(process: Process, keep: int, trim_above: int) -> None:
    """Shortens home timelines to `keep` ids instead of 832. Only tests need this, so no setting offers it."""
    store = home_store_of(process)
    (builds,) = (worker for worker in process.services["timeline"].workers if isinstance(worker, HomeBuilder))
    builds._keep = keep
    if isinstance(store, RedisHomeTimelines):
        store._limits = ListLimits(keep, RESERVE, trim_above, 4 * keep, soon=1)
    elif isinstance(store, EmbeddedHomeTimelines):
        store._keep, store._trim_above = keep, trim_above


def lengthen_deadlines(process: Process) -> None:
    """Gives each unary call in this process PATIENT_S at least: a random history compares answers, and a deadline that
    passes because the machine is busy is none of its own."""
    for endpoint in process._endpoints.values():
        endpoint.cap_s = max(endpoint.cap_s, PATIENT_S)
