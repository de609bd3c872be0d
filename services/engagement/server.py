"""Composition root of the engagement service."""

from __future__ import annotations

from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub

from services.engagement.service import EngagementService
from services.engagement.store import EngagementStore
from services.engagement.tweet_access import access_over
from services.platform.backends import OpenedStore, open_store
from services.platform.events.records import EventBuilder
from services.platform.service import Service, ServiceContext
from services.shared.absences import TOPICS as ABSENCE_TOPICS
from services.shared.absences import following_absences
from services.shared.hydration.factory import hydrator_of
from services.shared.hydration.user_pages import VisibleUserPages

# Consumer group of the events about users who become absent or active again.
ABSENCES = "engagement-absences"


async def build(context: ServiceContext) -> Service:
    """Builds the service on the store of the process's backend."""
    opened: OpenedStore[EngagementStore] = await open_store(context)
    store = opened.store
    hydrator = hydrator_of(context)
    user_pages = VisibleUserPages(
        UserServiceStub(context.channel), GraphServiceStub(context.channel).GetVisibilityFilter, context.cursors
    )
    access = access_over(context.channel, hydrator)
    events = EventBuilder(context.ids, context.clock)
    servicer = EngagementService(store, access, hydrator, user_pages, events, context.ids, context.cursors)
    return Service(
        context.name,
        servicers={"roost.engagement.v1.EngagementService": servicer},
        workers=(*opened.workers, context.log.consumer(ABSENCES, ABSENCE_TOPICS, following_absences(store.set_absent))),
        resources=(store,),
    )
