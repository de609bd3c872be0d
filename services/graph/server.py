"""Composition root of the graph service."""

from __future__ import annotations

from roost.identity.v1.user_service_pb2_grpc import UserServiceStub

from services.common.kit import Kit, Service
from services.common.outbox import Relay
from services.graph.service import GraphService
from services.graph.store.embedded import EmbeddedGraphStore
from services.graph.tiers import KEEP_CEASED_MS, TierBoard, TierRule, settle_threshold


async def build(kit: Kit) -> Service:
    """The graph service over its embedded store, with every tier judged by the threshold that is set."""
    rule = TierRule(kit.settings.celebrity_threshold)
    store = await EmbeddedGraphStore.open(kit.data_dir / "graph.db", rule)
    try:
        board = TierBoard(kit.clock)
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
        workers=(Relay(store.db, kit.log), board),
        resources=(store,),
    )
