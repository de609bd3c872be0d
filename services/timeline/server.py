"""Composition root of the timeline service."""

from __future__ import annotations

import time

from services.platform.backends import OpenedStore, open_store
from services.platform.service import Service, ServiceContext
from services.shared.celebrity_tiers import CelebritySubscriber
from services.shared.hydration.factory import hydrator_of
from services.timeline.explain import Explainer
from services.timeline.fanout_rules import FanoutRules
from services.timeline.followees import FolloweeCache
from services.timeline.home.builder import HomeBuilder
from services.timeline.home.reader import HomeReader
from services.timeline.pull import Puller, TweetServiceIds
from services.timeline.search_timelines import SearchTimelines
from services.timeline.service import TimelineService
from services.timeline.store import HomeTimelineStore


async def build(context: ServiceContext) -> Service:
    """Returns the timeline service. It stores home timelines in process memory on the embedded backend, in Redis on the
    cluster backend."""
    settings = context.settings
    rules = FanoutRules(settings.timeline_mode, int(settings.clock_margin_s * 1000))
    opened: OpenedStore[HomeTimelineStore] = await open_store(context)
    store = opened.store
    tiers = CelebritySubscriber(context.channel, settings.clock_margin_s)
    relations = FolloweeCache(context.channel, context.versions)
    owner = TweetServiceIds(context.channel)
    hydrator = hydrator_of(context)
    builds = HomeBuilder(store, relations, owner, tiers, rules, context.clock)
    puller = Puller(owner, time.monotonic, context.versions)
    reader = HomeReader(store, builds, relations, puller, hydrator, tiers, rules, context.versions, context.clock)
    explainer = Explainer(reader, hydrator, context.channel)
    servicer = TimelineService(
        store, reader, builds, explainer, SearchTimelines(context.channel), rules, context.cursors
    )
    return Service(
        name=context.name,
        servicers={"roost.timeline.v1.TimelineService": servicer},
        workers=(*opened.workers, tiers, builds),
        resources=(store,),
    )
