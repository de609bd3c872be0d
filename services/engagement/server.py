"""Composition root of the engagement service: the only module that names an adapter."""

from __future__ import annotations

from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub

from services.common.hydrate import Hydrator
from services.common.kit import Kit, Service
from services.common.outbox import Relay
from services.common.people import PeopleLists
from services.engagement.service import EngagementService
from services.engagement.store.embedded import EmbeddedEngagementStore
from services.engagement.targets import Targets


async def build(kit: Kit) -> Service:
    """The service on its embedded store, `engagement.db` in the data directory."""
    store = await EmbeddedEngagementStore.open(kit.data_dir / "engagement.db")
    hydrator = Hydrator(kit.channel)
    people = PeopleLists(UserServiceStub(kit.channel), GraphServiceStub(kit.channel).GetVisibilityFilter, kit.cursors)
    servicer = EngagementService(store, Targets(kit.channel, hydrator), hydrator, people, kit.ids, kit.cursors)
    return Service(
        kit.name,
        servicers={"roost.engagement.v1.EngagementService": servicer},
        workers=(Relay(store.db, kit.log),),
        resources=(store,),
    )
