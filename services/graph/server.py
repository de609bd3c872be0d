"""Composition root of the graph service."""

from __future__ import annotations

from roost.identity.v1.user_service_pb2_grpc import UserServiceStub

from services.graph.service import GraphService
from services.graph.store import GraphStores
from services.graph.tier_publisher import (
    FORMER_CELEBRITY_RETENTION_MS,
    TierPublisher,
    TierRule,
    apply_threshold,
)
from services.platform.backends import OpenedStore, open_store
from services.platform.service import Service, ServiceContext
from services.shared.absences import TOPICS, following_absences

# Consumer group of the events about users who become absent or active again.
ABSENCES = "graph-absences"


async def build(context: ServiceContext) -> Service:
    """Builds the graph service on the backend of its process. Before it returns, every tier agrees with the configured
    threshold."""
    rule = TierRule(context.settings.celebrity_threshold)
    publisher = TierPublisher(context.clock)
    opened: OpenedStore[GraphStores] = await open_store(context, rule, publisher)
    stores = opened.store
    try:
        servicer = GraphService(
            stores, publisher, UserServiceStub(context.channel), context.cursors, context.ids, context.clock
        )
        await apply_threshold(stores.tiers, rule, servicer.stamp)
        stores.tiers.on_change(publisher.publish)
        publisher.publish(await stores.tiers.list_since(int(context.clock() * 1000) - FORMER_CELEBRITY_RETENTION_MS))
    except BaseException:
        # Closes the stores, because otherwise the database file would stay locked after a failed start.
        await stores.close()
        raise
    return Service(
        name=context.name,
        servicers={"roost.graph.v1.GraphService": servicer},
        workers=(
            *opened.workers,
            publisher,
            context.log.consumer(ABSENCES, TOPICS, following_absences(stores.counts.set_absent)),
        ),
        resources=(stores,),
    )
