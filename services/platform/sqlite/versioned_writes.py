"""Commits the writes of a store and changes the versions of what they changed, so that a write cannot forget to."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from typing import Protocol, TypeVar

from services.platform.detached import run_to_completion
from services.platform.sqlite.database import Database
from services.platform.versions import Kind, MemoryVersions


class Change(Protocol):
    """The result of a transaction."""

    def version_keys(self) -> Collection[int]:
        """Returns the version keys of everything that the transaction changed; empty if it changed nothing."""


C = TypeVar("C", bound=Change)


class VersionedWrites:
    """The writes of a store that owns the versions of these kinds."""

    def __init__(self, db: Database, versions: MemoryVersions, *kinds: Kind) -> None:
        self._db = db
        self._publisher = versions.publisher(*kinds)

    async def write(self, transaction: Callable[[sqlite3.Connection], C], apply: Callable[[C], None]) -> C:
        """Commits the transaction, then calls `apply` with its result, which updates the store's own caches, then changes
        the versions, and returns the result. The steps after the commit are executed even if the caller is cancelled.

        Raises the error of the transaction, after which nothing is committed or changed.
        """

        async def run() -> C:
            change = await self._db.write(transaction)
            apply(change)
            self._publisher.changed(change.version_keys())
            return change

        return await run_to_completion(run())
