"""Composition root of the graph service."""

from __future__ import annotations

from collections.abc import Sequence

from roost.identity.v1.user_service_pb2_grpc import UserServiceStub

from services.graph.service import GraphService
from services.graph.store import GraphStore
from services.graph.store.sqlite.store import EmbeddedGraphStore
from services.graph.tier_publisher import KEEP_CEASED_MS, TierBoard, TierRule, TierWatch, settle_threshold
from services.platform.backends import cluster_of
from services.platform.service import Kit, Service, Worker
from services.platform.sqlite.outbox import Relay


async def build(kit: Kit) -> Service:
    """The graph service over the store of its family, with every tier judged by the threshold that is set."""
    rule = TierRule(kit.settings.celebrity_threshold)
    board = TierBoard(kit.clock)
    store, workers = await _open(kit, rule, board)
    try:
        servicer = GraphService(store, board, UserServiceStub(kit.channel), kit.cursors, kit.ids, kit.clock)
        await settle_threshold(store, rule, servicer.stamp)
        store.on_tier_change(board.post)
        board.post(await store.tiers(int(kit.clock() * 1000) - KEEP_CEASED_MS))
    except BaseException:
        # The file's lock would outlive a start that failed.
        await store.close()
        raise
    return Service(
        name=kit.name,
        servicers={"roost.graph.v1.GraphService": servicer},
        workers=(*workers, board),
        resources=(store,),
    )


async def _open(kit: Kit, rule: TierRule, board: TierBoard) -> tuple[GraphStore, Sequence[Worker]]:
    """The store, and what runs beside it."""
    cluster = cluster_of(kit)
    if cluster is None:
        embedded = await EmbeddedGraphStore.open(kit.data_dir / "graph.db", rule)
        return embedded, (Relay(embedded.db, kit.log),)
    # Not before it is asked for: drivers are slow to import.
    from services.graph.store.cassandra.store import CassandraGraphStore

    store = await CassandraGraphStore.open(cluster, kit.log, rule, kit.ids.mint, kit.clock)
    # Other processes change tiers too.
    return store, (*store.workers, TierWatch(store, board, kit.clock))
