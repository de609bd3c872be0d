"""Composition root of the graph service."""

from __future__ import annotations

from collections.abc import Sequence

from roost.identity.v1.user_service_pb2_grpc import UserServiceStub

from services.graph.service import GraphService
from services.graph.store import GraphStore
from services.graph.store.sqlite.store import EmbeddedGraphStore
from services.graph.tier_publisher import KEEP_CEASED_MS, TierPublisher, TierRule, TierWatch, settle_threshold
from services.platform.backends import cluster_backends_of
from services.platform.service import Service, ServiceContext, Worker
from services.platform.sqlite.outbox import Relay
from services.shared.absences import TOPICS, following_absences

# The consumer group.
ABSENCES = "graph-absences"


async def build(context: ServiceContext) -> Service:
    """The graph service over the store of its family, with every tier judged by the threshold that is set."""
    rule = TierRule(context.settings.celebrity_threshold)
    board = TierPublisher(context.clock)
    store, workers = await _open(context, rule, board)
    try:
        servicer = GraphService(
            store, board, UserServiceStub(context.channel), context.cursors, context.ids, context.clock
        )
        await settle_threshold(store, rule, servicer.stamp)
        store.on_tier_change(board.post)
        board.post(await store.tiers(int(context.clock() * 1000) - KEEP_CEASED_MS))
    except BaseException:
        # The file's lock would outlive a start that failed.
        await store.close()
        raise
    return Service(
        name=context.name,
        servicers={"roost.graph.v1.GraphService": servicer},
        workers=(*workers, board, context.log.consumer(ABSENCES, TOPICS, following_absences(store.set_absent))),
        resources=(store,),
    )


async def _open(context: ServiceContext, rule: TierRule, board: TierPublisher) -> tuple[GraphStore, Sequence[Worker]]:
    """The store, and what runs beside it."""
    cluster = cluster_backends_of(context)
    if cluster is None:
        embedded = await EmbeddedGraphStore.open(context.data_dir / "graph.db", rule)
        return embedded, (Relay(embedded.db, context.log),)
    # Not before it is asked for: drivers are slow to import.
    from services.graph.store.cassandra.store import CassandraGraphStore

    store = await CassandraGraphStore.open(cluster, context.log, rule, context.ids.mint, context.clock)
    # Other processes change tiers too.
    return store, (*store.workers, TierWatch(store, board, context.clock))
