"""Stores tiers in SQLite."""

from __future__ import annotations

import sqlite3

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.events import WriteStamp
from services.graph.store import ReclassifiedBatch, TierHook
from services.graph.store.sqlite import schema as sql
from services.graph.store.sqlite.committer import Committer, GraphChange
from services.graph.store.sqlite.transactions import WriteTransaction
from services.graph.tier_publisher import TierRule
from services.platform.sqlite.database import Database

_THRESHOLD = "celebrity_threshold"


class SqliteTierStore:
    """Implements TierStore on SQLite. A write to an edge may change a tier too, through the same `committer`."""

    def __init__(self, db: Database, committer: Committer, rule: TierRule) -> None:
        self._db = db
        self._committer = committer
        self._rule = rule

    def on_change(self, hook: TierHook) -> None:
        self._committer.on_tier_change(hook)

    async def reclassify(
        self, user_id: int, choice: pb.TierChoice.ValueType, change: WriteStamp
    ) -> tuple[pb.Tier.ValueType, bool]:
        def transaction(c: sqlite3.Connection) -> GraphChange[tuple[pb.Tier.ValueType, bool]]:
            write = WriteTransaction(c, change, self._rule)
            tier = write.override(user_id, choice)
            write.finish()
            return GraphChange((tier, bool(write.tiers)), write.tiers, readers=(), blockers=())

        return await self._committer.commit(transaction)

    async def list_since(self, since_ms: int) -> list[pb.TierEntry]:
        rows = await self._db.read(lambda c: c.execute(sql.TIERS, (pb.TIER_CELEBRITY, since_ms)).fetchall())
        return [pb.TierEntry(user_id=user_id, tier=tier, changed_at_ms=at_ms) for user_id, tier, at_ms in rows]

    async def reclassify_batch(self, after_id: int, limit: int, change: WriteStamp) -> ReclassifiedBatch:
        def transaction(c: sqlite3.Connection) -> GraphChange[ReclassifiedBatch]:
            write = WriteTransaction(c, change, self._rule)
            rows = c.execute(sql.COUNTED_AFTER, (after_id, limit)).fetchall()
            for user_id, followers in rows:
                write.classify(user_id, followers, from_count_alone=True)
            write.finish()
            batch = ReclassifiedBatch(len(write.tiers), rows[-1][0] if rows else 0)
            return GraphChange(batch, write.tiers, readers=(), blockers=())

        return await self._committer.commit(transaction)

    async def threshold(self) -> int:
        row = await self._db.read(lambda c: c.execute(sql.SETTING, (_THRESHOLD,)).fetchone())
        return row[0] if row else 0

    async def set_threshold(self, threshold: int) -> None:
        await self._db.write(lambda c: c.execute(sql.SET_SETTING, (_THRESHOLD, threshold)).rowcount)
