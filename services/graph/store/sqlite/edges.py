"""Stores edges in SQLite. Each write is one transaction; transactions are committed in groups."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.events import WriteStamp
from services.graph.store import Outcome
from services.graph.store.sqlite.committer import Committer, GraphChange
from services.graph.store.sqlite.transactions import WriteTransaction, relationship_of
from services.graph.tier_publisher import TierRule
from services.platform.sqlite.database import Database


class SqliteEdgeStore:
    """Implements EdgeStore on SQLite."""

    def __init__(self, db: Database, committer: Committer, rule: TierRule) -> None:
        self._db = db
        self._committer = committer
        self._rule = rule

    async def follow(self, follower_id: int, followee_id: int, change: WriteStamp) -> Outcome:
        return await self._write(WriteTransaction.follow, follower_id, followee_id, change)

    async def unfollow(self, follower_id: int, followee_id: int, change: WriteStamp) -> Outcome:
        return await self._write(WriteTransaction.unfollow, follower_id, followee_id, change)

    async def block(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        return await self._write(WriteTransaction.block, user_id, target_id, change)

    async def unblock(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        return await self._write(WriteTransaction.unblock, user_id, target_id, change)

    async def mute(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        return await self._write(WriteTransaction.mute, user_id, target_id, change)

    async def unmute(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        return await self._write(WriteTransaction.unmute, user_id, target_id, change)

    async def relationships(self, user_id: int, other_ids: Sequence[int]) -> list[pb.Relationship]:
        others = tuple(other_ids)
        return await self._db.read(lambda c: [relationship_of(c, user_id, other) for other in others])

    async def _write(
        self, action: Callable[[WriteTransaction, int, int], bool], source: int, target: int, change: WriteStamp
    ) -> Outcome:
        blockers = (source,) if action in (WriteTransaction.block, WriteTransaction.unblock) else ()
        readers = (source,) if action in (WriteTransaction.mute, WriteTransaction.unmute) else (source, target)

        def transaction(c: sqlite3.Connection) -> GraphChange[Outcome]:
            write = WriteTransaction(c, change, self._rule)
            changed = action(write, source, target)
            write.finish()
            outcome = Outcome(relationship_of(c, source, target), changed)
            return GraphChange(outcome, write.tiers, readers if changed else (), blockers if changed else ())

        return await self._committer.commit(transaction)
