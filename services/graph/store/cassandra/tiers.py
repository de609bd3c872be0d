"""Stores tiers in Cassandra."""

from __future__ import annotations

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.events import WriteStamp
from services.graph.store import ReclassifiedBatch, TierHook
from services.graph.store.cassandra import schema
from services.graph.store.cassandra.follow_counts import FollowCounts
from services.graph.store.cassandra.tier_rows import TierRows
from services.graph.store.cassandra.user_index import UserIndex
from services.platform.cassandra.keyspace import Keyspace
from services.platform.detached import DetachedWork

_THRESHOLD = "celebrity_threshold"


class CassandraTierStore:
    """Implements TierStore on Cassandra. A write to an edge may change a tier too, through the same `tier_rows`."""

    def __init__(
        self,
        keyspace: Keyspace,
        tier_rows: TierRows,
        follow_counts: FollowCounts,
        user_index: UserIndex,
        writes: DetachedWork,
    ) -> None:
        self._keyspace = keyspace
        self._tier_rows = tier_rows
        self._follow_counts = follow_counts
        self._user_index = user_index
        self._writes = writes

    def on_change(self, hook: TierHook) -> None:
        self._tier_rows.on_change(hook)

    async def reclassify(
        self, user_id: int, choice: pb.TierChoice.ValueType, change: WriteStamp
    ) -> tuple[pb.Tier.ValueType, bool]:
        async def override() -> tuple[pb.Tier.ValueType, bool]:
            followers = await self._follow_counts.followers(user_id)
            return await self._tier_rows.override(user_id, choice, followers.edges, change, change.event_ids[0])

        return await self._writes.run(override())

    async def list_since(self, since_ms: int) -> list[pb.TierEntry]:
        entries = await self._tier_rows.all()
        return [entry for entry in entries if entry.tier == pb.TIER_CELEBRITY or entry.changed_at_ms >= since_ms]

    async def reclassify_batch(self, after_id: int, limit: int, change: WriteStamp) -> ReclassifiedBatch:
        user_ids: list[int] = []
        async for user_id in self._user_index.ids_above(after_id):
            user_ids.append(user_id)
            if len(user_ids) == limit:
                break
        counts = await self._follow_counts.of(user_ids)
        followers = {user_id: counts[user_id][0].edges if user_id in counts else 0 for user_id in user_ids}
        moved = 0
        for user_id, event_id in zip(await self._tier_rows.misclassified(followers), change.event_ids, strict=False):
            moved += await self._tier_rows.classify(
                user_id, followers[user_id], change, event_id, from_count_alone=True
            )
        return ReclassifiedBatch(moved, user_ids[-1] if user_ids else 0)

    async def threshold(self) -> int:
        rows = await self._keyspace.read(schema.SETTING, _THRESHOLD)
        return int(rows[0][0]) if rows else 0

    async def set_threshold(self, threshold: int) -> None:
        await self._keyspace.write(schema.SET_SETTING, _THRESHOLD, threshold)
