"""Composition root of the graph service."""

from __future__ import annotations

from collections.abc import Sequence

from roost.identity.v1.user_service_pb2_grpc import UserServiceStub

from services.graph.service import GraphService
from services.graph.store import GraphStores
from services.graph.store.sqlite import stores as sqlite
from services.graph.tier_publisher import (
    FORMER_CELEBRITY_RETENTION_MS,
    TierPoller,
    TierPublisher,
    TierRule,
    apply_threshold,
)
from services.platform.backends import cluster_backends_of
from services.platform.service import Service, ServiceContext, Worker
from services.platform.sqlite.outbox import Relay
from services.shared.absences import TOPICS, following_absences

# Consumer group of the consumer that follows users who become inactive or active again.
ABSENCES = "graph-absences"


async def build(context: ServiceContext) -> Service:
    """Builds the graph service on the backend of its process. Before it returns, every tier agrees with the configured
    threshold."""
    rule = TierRule(context.settings.celebrity_threshold)
    publisher = TierPublisher(context.clock)
    stores, workers = await _open(context, rule, publisher)
    try:
        servicer = GraphService(
            stores, publisher, UserServiceStub(context.channel), context.cursors, context.ids, context.clock
        )
        await apply_threshold(stores.tiers, rule, servicer.stamp)
        stores.tiers.on_change(publisher.publish)
        publisher.publish(await stores.tiers.list_since(int(context.clock() * 1000) - FORMER_CELEBRITY_RETENTION_MS))
    except BaseException:
        # Without this a failed start would leave the database file locked.
        await stores.close()
        raise
    return Service(
        name=context.name,
        servicers={"roost.graph.v1.GraphService": servicer},
        workers=(
            *workers,
            publisher,
            context.log.consumer(ABSENCES, TOPICS, following_absences(stores.counts.set_absent)),
        ),
        resources=(stores,),
    )


async def _open(
    context: ServiceContext, rule: TierRule, publisher: TierPublisher
) -> tuple[GraphStores, Sequence[Worker]]:
    """Opens the stores of the backend. Returns them with the workers that must run beside them."""
    cluster = cluster_backends_of(context)
    if cluster is None:
        embedded = await sqlite.open_stores(context.data_dir / "graph.db", rule)
        return embedded, (Relay(embedded.db, context.log),)
    # Imported on use: the Cassandra driver is slow to import.
    from services.graph.store.cassandra.stores import open_stores

    stores = await open_stores(cluster, context.log, rule, context.ids.mint, context.clock)
    # The poller picks up tiers that other processes change.
    return stores, (*stores.workers, TierPoller(stores.tiers, publisher, context.clock))
