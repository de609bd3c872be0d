"""Composition root of the timeline service."""

from __future__ import annotations

import time

from services.platform.backends import cluster_of, shared_of
from services.platform.service import Kit, Service
from services.shared.celebrity_tiers import Tiers
from services.shared.hydration.hydrator import Hydrator
from services.timeline.explain import Explainer
from services.timeline.fanout_rules import Rules
from services.timeline.followees import RelationCache
from services.timeline.home_builder import Builds
from services.timeline.home_reader import HomeReader
from services.timeline.pull import OwnerIds, Puller
from services.timeline.search_timelines import FoundLists
from services.timeline.service import TimelineService
from services.timeline.store import HomeTimelineStore
from services.timeline.store.memory import EmbeddedHomeTimelines


async def build(kit: Kit) -> Service:
    """The timeline service, over process memory or Redis."""
    settings = kit.settings
    rules = Rules(settings.timeline_mode, int(settings.clock_margin_s * 1000))
    store = _store(kit)
    tiers = Tiers(kit.channel, settings.clock_margin_s)
    relations = RelationCache(kit.channel)
    owner = OwnerIds(kit.channel)
    hydrator = Hydrator(kit.channel, shared_of(kit))
    builds = Builds(store, relations, owner, tiers, rules, kit.clock)
    puller = Puller(owner, time.monotonic, shared_of(kit))
    reader = HomeReader(store, builds, relations, puller, hydrator, tiers, rules, kit.clock)
    explainer = Explainer(reader, hydrator, kit.channel)
    servicer = TimelineService(store, reader, builds, explainer, FoundLists(kit.channel), rules, kit.cursors)
    return Service(
        name=kit.name,
        servicers={"roost.timeline.v1.TimelineService": servicer},
        workers=(tiers, builds),
        resources=(store,),
    )


def _store(kit: Kit) -> HomeTimelineStore:
    cluster = cluster_of(kit)
    if cluster is None:
        return EmbeddedHomeTimelines(kit.settings.warm_timelines)
    from services.timeline.store.redis.store import RedisHomeTimelines  # its driver takes long to import

    return RedisHomeTimelines(cluster.redis)
