"""Stores edges in Cassandra: one row for each pair of users, written by compare-and-set."""

from __future__ import annotations

from collections.abc import Sequence

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.events import WriteStamp
from services.graph.store import Outcome
from services.graph.store.cassandra import schema
from services.graph.store.cassandra.edge_writer import EdgeWriter
from services.graph.store.cassandra.relationship import EdgeAction, Pair, pair_key
from services.platform.cassandra.keyspace import Keyspace
from services.platform.detached import DetachedWork


class CassandraEdgeStore:
    """Implements EdgeStore on Cassandra, for any number of processes at once."""

    def __init__(self, keyspace: Keyspace, edge_writer: EdgeWriter, writes: DetachedWork) -> None:
        self._keyspace = keyspace
        self._edge_writer = edge_writer
        self._writes = writes

    async def follow(self, follower_id: int, followee_id: int, change: WriteStamp) -> Outcome:
        return await self._writes.run(self._edge_writer.write(EdgeAction.FOLLOW, follower_id, followee_id, change))

    async def unfollow(self, follower_id: int, followee_id: int, change: WriteStamp) -> Outcome:
        return await self._writes.run(self._edge_writer.write(EdgeAction.UNFOLLOW, follower_id, followee_id, change))

    async def block(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        return await self._writes.run(self._edge_writer.write(EdgeAction.BLOCK, user_id, target_id, change))

    async def unblock(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        return await self._writes.run(self._edge_writer.write(EdgeAction.UNBLOCK, user_id, target_id, change))

    async def mute(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        return await self._writes.run(self._edge_writer.write(EdgeAction.MUTE, user_id, target_id, change))

    async def unmute(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        return await self._writes.run(self._edge_writer.write(EdgeAction.UNMUTE, user_id, target_id, change))

    async def relationships(self, user_id: int, other_ids: Sequence[int]) -> list[pb.Relationship]:
        others = list(other_ids)
        keys = [pair_key(user_id, other) for other in others]
        rows = await self._keyspace.read_each(schema.PAIR, keys)
        found = [
            Pair.of(*key, row[0] if row else None).relationship(user_id) for key, row in zip(keys, rows, strict=True)
        ]
        for other, relationship in zip(others, found, strict=True):
            relationship.user_id = other
        return found
