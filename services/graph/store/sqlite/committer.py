"""Commits the writes of graph. After each commit it invalidates the visibility cache and calls the tier hooks."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import TypeVar

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store import TierHook
from services.graph.store.sqlite.visibility_cache import SqliteVisibilityCache
from services.platform.detached import run_to_completion
from services.platform.sqlite.database import Database

T = TypeVar("T")


class Committer:
    """Commits transactions to one database. After each transaction it drops the entries of `visibility_cache` that the
    transaction made outdated, then calls the tier hooks with the changed tiers."""

    def __init__(self, db: Database, visibility_cache: SqliteVisibilityCache) -> None:
        self._db = db
        self._visibility_cache = visibility_cache
        self._hooks: list[TierHook] = []

    def on_tier_change(self, hook: TierHook) -> None:
        """Registers `hook`, which `commit` calls with the tiers that its transaction changed."""
        self._hooks.append(hook)

    async def commit(
        self,
        unit: Callable[[sqlite3.Connection], tuple[T, list[pb.TierEntry]]],
        readers: Sequence[int] = (),
        blockers: Sequence[int] = (),
    ) -> T:
        """Runs the transaction `unit`, then invalidates the cache and calls the tier hooks, even if the caller is
        cancelled. `unit` returns the result of this method and the changed tiers.

        `readers` are the users whose edges the transaction changes, `blockers` the users whose blocks it changes.
        """

        async def run() -> T:
            try:
                result, tiers = await self._db.write(unit)
            finally:
                self._visibility_cache.invalidate(readers, blockers)
            if tiers:
                for hook in self._hooks:
                    hook(tiers)
            return result

        return await run_to_completion(run())
