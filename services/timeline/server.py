"""Composition root of the timeline service."""

from __future__ import annotations

import time

from services.platform.backends import cluster_backends_of, shared_versions_of
from services.platform.service import Service, ServiceContext
from services.shared.celebrity_tiers import CelebritySubscriber
from services.shared.hydration.hydrator import Hydrator
from services.timeline.explain import Explainer
from services.timeline.fanout_rules import FanoutRules
from services.timeline.followees import FolloweeCache
from services.timeline.home_builder import HomeBuilder
from services.timeline.home_reader import HomeReader
from services.timeline.pull import Puller, TweetServiceIds
from services.timeline.search_timelines import SearchTimelines
from services.timeline.service import TimelineService
from services.timeline.store import HomeTimelineStore
from services.timeline.store.memory import EmbeddedHomeTimelines


async def build(context: ServiceContext) -> Service:
    """Builds the timeline service on the backend of its process: home timelines in process memory or in Redis."""
    settings = context.settings
    rules = FanoutRules(settings.timeline_mode, int(settings.clock_margin_s * 1000))
    store = _store(context)
    tiers = CelebritySubscriber(context.channel, settings.clock_margin_s)
    relations = FolloweeCache(context.channel)
    owner = TweetServiceIds(context.channel)
    hydrator = Hydrator(context.channel, shared_versions_of(context))
    builds = HomeBuilder(store, relations, owner, tiers, rules, context.clock)
    puller = Puller(owner, time.monotonic, shared_versions_of(context))
    reader = HomeReader(store, builds, relations, puller, hydrator, tiers, rules, context.clock)
    explainer = Explainer(reader, hydrator, context.channel)
    servicer = TimelineService(
        store, reader, builds, explainer, SearchTimelines(context.channel), rules, context.cursors
    )
    return Service(
        name=context.name,
        servicers={"roost.timeline.v1.TimelineService": servicer},
        workers=(tiers, builds),
        resources=(store,),
    )


def _store(context: ServiceContext) -> HomeTimelineStore:
    cluster = cluster_backends_of(context)
    if cluster is None:
        return EmbeddedHomeTimelines(context.settings.warm_timelines)
    from services.timeline.store.redis.store import RedisHomeTimelines  # imported on use: slow to import

    return RedisHomeTimelines(cluster.redis)
