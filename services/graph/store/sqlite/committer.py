"""Commits the writes of graph. After each commit it invalidates the visibility cache and calls the tier hooks."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store import TierHook
from services.graph.store.sqlite.visibility_cache import SqliteVisibilityCache
from services.platform.sqlite.database import Database
from services.platform.sqlite.versioned_writes import VersionedWrites
from services.platform.versions import Kind, MemoryVersions, key_of

T = TypeVar("T")


class GraphChange(NamedTuple, Generic[T]):
    """The result of a transaction, the tiers that it changed, the users whose edges it changed (`readers`), and the users
    whose blocks it changed (`blockers`)."""

    result: T
    tiers: Sequence[pb.TierEntry]
    readers: Sequence[int]
    blockers: Sequence[int]

    def version_keys(self) -> list[int]:
        """Implements Change."""
        return [key_of(Kind.RELATIONS, user_id) for user_id in self.readers]


class Committer:
    """Commits transactions to one database. After each transaction it drops the entries of `visibility_cache` that the
    transaction made outdated, calls the callbacks registered by `on_tier_change` with the changed tiers, and
    changes the relation versions of the users whose edges changed."""

    def __init__(self, db: Database, versions: MemoryVersions, visibility_cache: SqliteVisibilityCache) -> None:
        self._writes = VersionedWrites(db, versions, Kind.RELATIONS)
        self._visibility_cache = visibility_cache
        self._hooks: list[TierHook] = []

    def on_tier_change(self, hook: TierHook) -> None:
        """Registers `hook`, which `commit` calls with the tiers that its transaction changed."""
        self._hooks.append(hook)

    async def commit(self, transaction: Callable[[sqlite3.Connection], GraphChange[T]]) -> T:
        """Runs the transaction, drops the outdated cache entries, calls the tier hooks, changes the relation versions,
        and then returns the result. If the transaction raises an error, nothing is committed, nothing else happens, and
        the caller gets this error."""
        return (await self._writes.write(transaction, self._apply)).result

    def _apply(self, change: GraphChange[Any]) -> None:
        self._visibility_cache.invalidate(change.readers, change.blockers)
        if change.tiers:
            for hook in self._hooks:
                hook(change.tiers)
