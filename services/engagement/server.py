"""Composition root of the engagement service: the only module that names an adapter."""

from __future__ import annotations

from collections.abc import Sequence

from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub

from services.engagement.consumer import GROUP, TOPICS, recounting
from services.engagement.service import EngagementService
from services.engagement.store import EngagementStore
from services.engagement.store.sqlite.store import SqliteEngagementStore
from services.engagement.tweet_access import access_over
from services.platform.backends import cluster_backends_of, shared_versions_of
from services.platform.events.records import EventBuilder
from services.platform.service import Service, ServiceContext, Worker
from services.platform.sqlite.outbox import Relay
from services.shared.absences import TOPICS as ABSENCE_TOPICS
from services.shared.absences import following_absences
from services.shared.hydration.hydrator import Hydrator
from services.shared.hydration.user_pages import VisibleUserPages

# Consumer group of the absence events.
ABSENCES = "engagement-absences"


async def build(context: ServiceContext) -> Service:
    """Builds the service on the store of the process's backend."""
    store, workers = await _open(context)
    hydrator = Hydrator(context.channel, shared_versions_of(context))
    user_pages = VisibleUserPages(
        UserServiceStub(context.channel), GraphServiceStub(context.channel).GetVisibilityFilter, context.cursors
    )
    access = access_over(context.channel, hydrator)
    events = EventBuilder(context.ids, context.clock)
    servicer = EngagementService(store, access, hydrator, user_pages, events, context.ids, context.cursors)
    return Service(
        context.name,
        servicers={"roost.engagement.v1.EngagementService": servicer},
        workers=(*workers, context.log.consumer(ABSENCES, ABSENCE_TOPICS, following_absences(store.set_absent))),
        resources=(store,),
    )


async def _open(context: ServiceContext) -> tuple[EngagementStore, Sequence[Worker]]:
    """Opens the store of the process's backend and returns it with its workers."""
    cluster = cluster_backends_of(context)
    if cluster is None:
        embedded = await SqliteEngagementStore.open(context.data_dir / "engagement.db")
        return embedded, (Relay(embedded.db, context.log),)
    # Imported only if used: the drivers take long to import.
    from services.engagement.store.cassandra.store import CassandraEngagementStore

    store = await CassandraEngagementStore.open(cluster, context.log, context.clock)
    return store, (store.outbox, context.log.consumer(GROUP, TOPICS, recounting(store.counter.recount_likes)))
