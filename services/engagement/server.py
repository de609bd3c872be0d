"""Composition root of the engagement service: the only module that names an adapter."""

from __future__ import annotations

from collections.abc import Sequence

from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub

from services.engagement.consumer import GROUP, TOPICS, recounting
from services.engagement.service import EngagementService
from services.engagement.store import EngagementStore
from services.engagement.store.sqlite.store import EmbeddedEngagementStore
from services.engagement.tweet_resolver import Targets
from services.platform.backends import cluster_of, shared_of
from services.platform.service import Kit, Service, Worker
from services.platform.sqlite.outbox import Relay
from services.shared.hydration.hydrator import Hydrator
from services.shared.hydration.user_pages import PeopleLists


async def build(kit: Kit) -> Service:
    """The service on the store of its family."""
    store, workers = await _open(kit)
    hydrator = Hydrator(kit.channel, shared_of(kit))
    people = PeopleLists(UserServiceStub(kit.channel), GraphServiceStub(kit.channel).GetVisibilityFilter, kit.cursors)
    servicer = EngagementService(store, Targets(kit.channel, hydrator), hydrator, people, kit.ids, kit.cursors)
    return Service(
        kit.name,
        servicers={"roost.engagement.v1.EngagementService": servicer},
        workers=workers,
        resources=(store,),
    )


async def _open(kit: Kit) -> tuple[EngagementStore, Sequence[Worker]]:
    """The store, and what runs beside it."""
    cluster = cluster_of(kit)
    if cluster is None:
        embedded = await EmbeddedEngagementStore.open(kit.data_dir / "engagement.db")
        return embedded, (Relay(embedded.db, kit.log),)
    # Not before it is asked for: drivers are slow to import.
    from services.engagement.store.cassandra.store import CassandraEngagementStore

    store = await CassandraEngagementStore.open(cluster, kit.log, kit.clock)
    return store, (store.outbox, kit.log.consumer(GROUP, TOPICS, recounting(store.recount_likes)))
