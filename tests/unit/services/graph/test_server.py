"""Tests the composed service across restarts."""

from __future__ import annotations

from roost.graph.v1 import graph_service_pb2 as pb
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub


async def celebrities(mesh) -> set[int]:
    found: set[int] = set()
    async for message in GraphServiceStub(mesh.process.channel("fanout")).StreamTiers(pb.StreamTiersRequest()):
        found.update(entry.user_id for entry in message.entries if entry.tier == pb.TIER_CELEBRITY)
        if message.snapshot_end:
            break
    return found


async def test_server_restart_with_other_threshold_updates_tiers(start_mesh, tmp_path):
    mesh = await start_mesh(data_dir=tmp_path, celebrity_threshold=3)
    ann, ben, cat, dan = await mesh.people("ann", "ben", "cat", "dan")
    for follower in (ben, cat, dan):
        await mesh.follow(follower, ann)
    for follower in (ann, cat):
        await mesh.follow(follower, ben)
    assert await celebrities(mesh) == {ann}
    for threshold, expected in ((2, {ann, ben}), (3, {ann}), (3, {ann}), (4, set())):
        await mesh.process.stop()
        mesh = await start_mesh(data_dir=tmp_path, celebrity_threshold=threshold)
        assert await celebrities(mesh) == expected
