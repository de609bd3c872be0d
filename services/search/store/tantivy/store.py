"""The embedded search index: Tantivy in a local folder, committed about once a second, rebuilt beside the index in
use.

The folder holds one sub-folder for each index, named by its number, and the file `state.json`. This file stores the
number of the index in use and the offset of the event log up to which the changes in that index are durable. It is
written after the commit of the index, so after a crash some events are applied twice, but none is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import orjson
import structlog

from services.platform.files import naming, unusable, write_durably
from services.platform.log_events import LogEvent
from services.platform.rpc import errors
from services.platform.sqlite.lockfile import LockFile
from services.search.store import MAX_FOUND, BuildStatus, Collection, Hit, IndexChange, Query, RankPosition
from services.search.store.tantivy.index import Generation, TantivyThreads

# Interval between commits. Searches see changes before they are committed. After a crash the events of about this many
# seconds are read from the log again.
COMMIT_EVERY_S = 1.0
# Maximum delay in seconds between two attempts of a failed commit, so the end of a disk outage is noticed within this
# time.
RETRY_MAX_S = 10.0
# With this many uncommitted changes a commit starts before the interval is over.
COMMIT_AT_CHANGES = 5_000
# Changes stored before the event loop gets control again: about 3 ms.
PUTS_PER_TURN = 50
# Maximum of uncommitted changes in memory, about 5 KB each. It is reached only if the disk fails. Then `apply` raises
# UNAVAILABLE, and the event log delivers the events again later.
MAX_UNCOMMITTED = 20_000
# The version of the documents' format. Increment it whenever the content of documents changes: an index of another
# format is rebuilt.
FORMAT = 2

_STATE = "state.json"

log = structlog.get_logger(__name__)


class EmbeddedSearchIndex:
    """A SearchIndex on Tantivy."""

    def __init__(
        self, folder: Path, lock: LockFile, threads: TantivyThreads, number: int, position: int | None
    ) -> None:
        self._folder = folder
        self._lock = lock
        self._threads = threads
        self._number = number
        # Two offsets of the event log: up to `_position` the changes are durable in the index (None: never filled); up
        # to `_applied` they were applied.
        self._position = position
        self._applied = position or 0
        self._current: Generation
        self._next: Generation | None = None
        self._filled = 0
        # Documents that `apply` has written to the index being built (`begin` started that build). `fill` skips them,
        # because the scan that it gets its documents from may have read an older version.
        self._applied_during_build: set[tuple[Collection, int]] = set()
        self._changed = asyncio.Event()
        self._commit_soon = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self._committer: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, folder: Path) -> Self:
        """Opens or creates the index in the folder. Raises FAILED_PRECONDITION if another process has the index open,
        or if no index can be created in the folder.

        If the stored index cannot be read, drops it and creates an empty one, because the index is derived data. Then
        `position` is None, which makes the service rebuild the index.
        """
        with naming(folder):
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        lock = LockFile(folder / "lock")
        number, position = await asyncio.to_thread(_read_state, folder)
        index = cls(folder, lock, TantivyThreads(), number, position)
        try:
            index._current = await Generation.open(index._path(number), index._threads)
        except ValueError as error:
            log.error(LogEvent.SEARCH_INDEX_LOAD_FAILED, action="rebuild", error=repr(error))
            index._number, index._position, index._applied = number + 1, None, 0
            try:
                index._current = await Generation.open(index._path(number + 1), index._threads)
            except (OSError, ValueError) as again:
                lock.close()
                raise unusable(folder, f"no search index can be created in it: {again}") from again
        await asyncio.to_thread(_remove_others, folder, index._number)
        index._committer = asyncio.create_task(index._commit_forever(), name="search-commit")
        return index

    @property
    def position(self) -> int | None:
        return self._position

    async def build_status(self) -> BuildStatus:
        return BuildStatus(self._number, self._position is not None, self._filled if self._next is not None else None)

    async def apply(self, changes: Sequence[IndexChange], position: int = 0) -> None:
        if self._current.uncommitted_count > MAX_UNCOMMITTED:
            raise errors.unavailable("the search index cannot be written: check the free space of the data directory")
        for start in range(0, len(changes), PUTS_PER_TURN):
            if start:
                await asyncio.sleep(0)
            await self._put(changes[start : start + PUTS_PER_TURN])
        self._applied = max(self._applied, position)
        self._changed.set()
        if self._current.uncommitted_count > COMMIT_AT_CHANGES:
            self._commit_soon.set()

    async def _put(self, changes: Sequence[IndexChange]) -> None:
        # Both fields are read before the first await. If a build begins during an await, its scan of the owning
        # services contains these changes, so they must not be recorded as applied to the index being built.
        current, begun = self._current, self._next
        if begun is not None:
            self._applied_during_build.update((change.collection, change.id) for change in changes)
            await begun.put(changes)
        await current.put(changes)

    async def newest(self, collection: Collection, query: Query, before_id: int, limit: int) -> Sequence[int]:
        return await self._current.newest(collection, query, before_id, min(limit, MAX_FOUND))

    async def ranked(
        self, collection: Collection, query: Query, after: RankPosition | None, limit: int
    ) -> Sequence[RankPosition]:
        return await self._current.ranked(collection, query, after, min(limit, MAX_FOUND))

    async def best(self, query: Query, before_id: int, limit: int, preferred: Sequence[str] = ()) -> Sequence[Hit]:
        return await self._current.best(query, before_id, min(limit, MAX_FOUND), preferred)

    async def terms(self, prefix: str, limit: int) -> Sequence[str]:
        return await self._current.terms(prefix, min(limit, MAX_FOUND))

    async def most_used(self, prefixes: Sequence[str]) -> Sequence[str]:
        return await self._current.most_used(prefixes)

    async def count(self, collection: Collection) -> int:
        return await self._current.count(collection)

    async def begin(self) -> None:
        async with self._commit_lock:
            await self._drop_next()
            path = self._path(self._number + 1)
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
            begun = await Generation.open(path, self._threads)
            self._applied_during_build.clear()
            self._next, self._filled = begun, 0

    async def fill(self, changes: Sequence[IndexChange]) -> None:
        begun = self._require_build()
        fresh = [change for change in changes if (change.collection, change.id) not in self._applied_during_build]
        await begun.add(fresh)
        self._filled += len(fresh)

    async def finish(self) -> None:
        async with self._commit_lock:
            begun, applied = self._require_build(), self._applied
            await begun.commit()
            # Changes applied during the commit are uncommitted in both indexes, so the new one has them too.
            old, old_number = self._current, self._number
            self._current, self._next, self._number = begun, None, old_number + 1
            self._applied_during_build.clear()
            await self._store(applied)
            await old.close()
            await asyncio.to_thread(shutil.rmtree, self._path(old_number), ignore_errors=True)

    async def commit(self) -> None:
        """Commits all applied changes now. Disk errors are raised unchanged."""
        async with self._commit_lock:
            await self._commit()

    async def close(self) -> None:
        if self._committer is not None:
            self._committer.cancel()
            await asyncio.gather(self._committer, return_exceptions=True)
        try:
            await self.commit()
        finally:
            await self._drop_next()
            await self._current.close()
            await self._threads.close()
            self._lock.close()

    async def _commit_forever(self) -> None:
        failures = 0
        while True:
            await self._changed.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._commit_soon.wait(), min(COMMIT_EVERY_S * 2**failures, RETRY_MAX_S))
            self._changed.clear()
            self._commit_soon.clear()
            try:
                await self.commit()
                failures = 0
            except Exception as error:
                failures = min(failures + 1, 10)
                self._changed.set()
                log.error(LogEvent.SEARCH_INDEX_COMMIT_FAILED, failures=failures, error=repr(error))

    async def _commit(self) -> None:
        applied = self._applied
        for generation in filter(None, (self._current, self._next)):
            if generation.uncommitted_count:
                await generation.commit()
        # An index that was never filled stores no position, so that the next start fills it.
        if self._position is not None and applied > self._position:
            await self._store(applied)

    async def _store(self, applied: int) -> None:
        await asyncio.to_thread(_write_state, self._folder, self._number, applied)
        self._position = applied

    def _require_build(self) -> Generation:
        if self._next is None:
            raise errors.failed_precondition("no search index is being built: start a reindex first")
        return self._next

    async def _drop_next(self) -> None:
        given_up, self._next = self._next, None
        if given_up is not None:
            await given_up.close()

    def _path(self, number: int) -> Path:
        return self._folder / str(number)


def _read_state(folder: Path) -> tuple[int, int | None]:
    """Returns the number of the index in use and its position; (1, None) if there is no valid state of this format."""
    try:
        state = orjson.loads((folder / _STATE).read_bytes())
        if state["format"] == FORMAT:
            return int(state["index"]), int(state["position"])
    except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        pass
    (folder / _STATE).unlink(missing_ok=True)
    _remove_others(folder, 0)
    return 1, None


def _write_state(folder: Path, number: int, position: int) -> None:
    write_durably(folder / _STATE, orjson.dumps({"format": FORMAT, "index": number, "position": position}))


def _remove_others(folder: Path, number: int) -> None:
    """Deletes the folders of all indexes except the one in use: those of discarded builds and of builds whose process
    crashed."""
    for path in folder.iterdir():
        if path.is_dir() and path.name != str(number):
            with contextlib.suppress(OSError):
                shutil.rmtree(path)
