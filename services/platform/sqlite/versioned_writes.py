"""Commits the writes of a store and then changes the versions of everything that was written. One function does both,
so no write can leave a version unchanged."""

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
        """Commits the transaction and returns its result, a Change. After the commit, calls `apply` with this Change,
        so that the store updates its own caches, and then changes the versions of the keys that `version_keys` of this
        Change returns. Both steps are executed even if the caller is cancelled.

        If the transaction raises an error, nothing is committed, `apply` is not called, no version changes, and the
        caller gets this error.
        """

        async def run() -> C:
            change = await self._db.write(transaction)
            apply(change)
            self._publisher.changed(change.version_keys())
            return change

        return await run_to_completion(run())
