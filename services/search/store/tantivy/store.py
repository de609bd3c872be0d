"""The search index of the embedded backend: Tantivy in a local folder, with a commit about once a second.

The folder has a sub-folder for each generation, named by its number, and the file `state.json` with the number of the
generation in use and the offset of the event log up to which its changes are durable. The file is written after the
commit of the changes, so after a crash some events are applied twice, but none is lost.
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

# Seconds between two commits. Searches find changes before they are committed. After a crash the consumer reads the
# events of about this time again.
COMMIT_EVERY_S = 1.0
# Maximum seconds between two attempts of a commit that fails. The delay doubles from COMMIT_EVERY_S.
RETRY_MAX_S = 10.0
# If there are more uncommitted changes than this, the next commit does not wait for the end of the interval.
COMMIT_AT_CHANGES = 5_000
# Number of changes that are stored between two yields to the event loop: about 3 ms.
PUTS_PER_TURN = 50
# Maximum number of uncommitted changes in memory, about 5 KB each. Beyond it `apply` raises UNAVAILABLE, and the
# consumer retries the events. It is reached only if commits fail, for example because the disk is full.
MAX_UNCOMMITTED = 20_000
# Number of the format of documents; increment it whenever the content of documents changes. An index with another
# format is rebuilt at the start.
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
        # Offsets of the event log: changes up to `_position` are durable (None: the index was never filled), changes up
        # to `_applied` are applied.
        self._position = position
        self._applied = position or 0
        self._current: Generation
        self._next: Generation | None = None
        self._filled = 0
        # Documents that `apply` has written or removed since `begin`. `fill` skips them, because the scan may have read
        # an older version.
        self._applied_during_build: set[tuple[Collection, int]] = set()
        self._changed = asyncio.Event()
        self._commit_soon = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self._committer: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, folder: Path) -> Self:
        """Opens the index in the folder, or creates one. Raises FAILED_PRECONDITION if another process has the index
        open, or if no index can be created in the folder.

        If the stored index cannot be read, drops it and creates an empty one, because the index is derived data.
        `position` is then None, so the service rebuilds the index.
        """
        with naming(folder):
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        lock = LockFile(folder / "lock")
        try:
            with naming(folder / _STATE):
                number, position = await asyncio.to_thread(_read_state, folder)
        except errors.RoostError:
            lock.close()
            raise
        index = cls(folder, lock, TantivyThreads(), number, position)
        try:
            index._current = await Generation.open(index._path(number), index._threads)
        except (OSError, ValueError) as error:
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
        # Both fields are read before the first await. If a build begins during an await, its scan reads these changes,
        # so they need not be written to its index.
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
            # Changes applied during the commit are uncommitted in both generations, so the new one has them too.
            old, old_number = self._current, self._number
            self._current, self._next, self._number = begun, None, old_number + 1
            self._applied_during_build.clear()
            await self._store(applied)
            await old.close()
            await asyncio.to_thread(shutil.rmtree, self._path(old_number), ignore_errors=True)

    async def commit(self) -> None:
        """Commits all applied changes now. Raises OSError if the disk fails."""
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
        # No position is stored for an index that was never filled, so that the next start fills it.
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
    """Returns the number of the generation in use and its position. If `state.json` is missing, invalid or of another
    format, deletes all generations and returns (1, None)."""
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
    """Deletes the folders of all generations except `number`: generations whose builds were discarded or whose process
    died. Deletes files and links with the name of a generation too, because they would block a later build."""
    for path in folder.iterdir():
        if path.name == str(number):
            continue
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name.isdecimal():
                path.unlink()
