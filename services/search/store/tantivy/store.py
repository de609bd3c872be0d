"""The search index on tantivy, in a folder of this process: commits about once a second, and indexes anew beside the one in use.

The folder holds one folder an index, named by its number, and `state.json`: which one is in use, and up to which offset of the log it is
durable. The state is written after the commit, so that at worst events are applied twice.
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
from services.platform.rpc import errors
from services.platform.sqlite.lockfile import LockFile
from services.search.store import MAX_FOUND, Build, Change, Collection, Hit, Place, Query
from services.search.store.tantivy.index import Generation, Threads

# Changes are found at once; this is how much of the log a crash makes us read again.
COMMIT_EVERY_S = 1.0
# After a failure, at most: the end of an outage of the disk is noticed within this.
RETRY_MOST_S = 10.0
# So many changes are committed before their second is over.
MANY_WAITING = 5_000
# Changes laid over the index in one turn of the loop: some 3 ms.
PUT_A_TURN = 50
# Changes laid over the index, about 5 KB each. More wait only where the disk refuses, and then the log keeps them.
MAX_WAITING = 20_000
# Grows with every change of what a document holds: an index of another format is built anew.
FORMAT = 2

_STATE = "state.json"

_log = structlog.get_logger(__name__)


class EmbeddedSearchIndex:
    """A SearchIndex over tantivy."""

    def __init__(self, folder: Path, lock: LockFile, threads: Threads, number: int, position: int | None) -> None:
        self._folder = folder
        self._lock = lock
        self._threads = threads
        self._number = number
        # Durable, and applied: offsets of the log.
        self._position = position
        self._applied = position or 0
        self._current: Generation
        self._next: Generation | None = None
        self._filled = 0
        # What `apply` told of since `begin`: newer than what a scan finds.
        self._touched: set[tuple[Collection, int]] = set()
        self._changed = asyncio.Event()
        self._many = asyncio.Event()
        self._committing = asyncio.Lock()
        self._committer: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, folder: Path) -> Self:
        """Opens or creates the index in the folder. FAILED_PRECONDITION if another owner has it.

        What cannot be read is dropped, for the index is derived: `position` is None then.
        """
        with naming(folder):
            await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        lock = LockFile(folder / "lock")
        number, position = await asyncio.to_thread(_read_state, folder)
        index = cls(folder, lock, Threads(), number, position)
        try:
            index._current = await Generation.open(index._path(number), index._threads)
        except ValueError as error:
            _log.error("the search index cannot be read and is built anew", error=repr(error))
            index._number, index._position, index._applied = number + 1, None, 0
            try:
                index._current = await Generation.open(index._path(number + 1), index._threads)
            except (OSError, ValueError) as again:
                lock.close()
                raise unusable(folder, f"no index can be made in it: {again}") from again
        await asyncio.to_thread(_remove_others, folder, index._number)
        index._committer = asyncio.create_task(index._commit_for_ever(), name="search-commit")
        return index

    @property
    def position(self) -> int | None:
        """See the port."""
        return self._position

    async def filled(self) -> bool:
        """See the port."""
        return self._position is not None

    async def building(self) -> Build:
        """See the port."""
        return Build(self._number, self._filled if self._next is not None else None)

    async def apply(self, changes: Sequence[Change], position: int = 0) -> None:
        """See the port."""
        if self._current.waiting > MAX_WAITING:
            raise errors.unavailable("the search index cannot be written for now")
        for start in range(0, len(changes), PUT_A_TURN):
            if start:
                await asyncio.sleep(0)
            await self._put(changes[start : start + PUT_A_TURN])
        self._applied = max(self._applied, position)
        self._changed.set()
        if self._current.waiting > MANY_WAITING:
            self._many.set()

    async def _put(self, changes: Sequence[Change]) -> None:
        # Settled before the first wait: an index begun meanwhile gets these from its scan, and must not pass them over there.
        current, begun = self._current, self._next
        if begun is not None:
            self._touched.update((change.collection, change.id) for change in changes)
            await begun.put(changes)
        await current.put(changes)

    async def newest(self, collection: Collection, query: Query, before_id: int, limit: int) -> Sequence[int]:
        """See the port."""
        return await self._current.newest(collection, query, before_id, min(limit, MAX_FOUND))

    async def ranked(self, collection: Collection, query: Query, after: Place | None, limit: int) -> Sequence[Place]:
        """See the port."""
        return await self._current.ranked(collection, query, after, min(limit, MAX_FOUND))

    async def best(self, query: Query, before_id: int, limit: int, preferred: Sequence[str] = ()) -> Sequence[Hit]:
        """See the port."""
        return await self._current.best(query, before_id, min(limit, MAX_FOUND), preferred)

    async def terms(self, prefix: str, limit: int) -> Sequence[str]:
        """See the port."""
        return await self._current.terms(prefix, min(limit, MAX_FOUND))

    async def most_used(self, prefixes: Sequence[str]) -> Sequence[str]:
        """See the port."""
        return await self._current.most_used(prefixes)

    async def count(self, collection: Collection) -> int:
        """See the port."""
        return await self._current.count(collection)

    async def begin(self) -> None:
        """See the port."""
        async with self._committing:
            await self._drop_next()
            path = self._path(self._number + 1)
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
            begun = await Generation.open(path, self._threads)
            self._touched.clear()
            self._next, self._filled = begun, 0

    async def fill(self, changes: Sequence[Change]) -> None:
        """See the port."""
        begun = self._begun()
        fresh = [change for change in changes if (change.collection, change.id) not in self._touched]
        await begun.add(fresh)
        self._filled += len(fresh)

    async def finish(self) -> None:
        """See the port."""
        async with self._committing:
            begun, applied = self._begun(), self._applied
            await begun.commit()
            # What was applied during the commit is laid over the new index as it is over the old one.
            old, old_number = self._current, self._number
            self._current, self._next, self._number = begun, None, old_number + 1
            self._touched.clear()
            await self._store(applied)
            await old.close()
            await asyncio.to_thread(shutil.rmtree, self._path(old_number), ignore_errors=True)

    async def commit(self) -> None:
        """Makes durable what was applied, now. Errors of the disk are raised as they are."""
        async with self._committing:
            await self._commit()

    async def close(self) -> None:
        """See the port."""
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

    async def _commit_for_ever(self) -> None:
        failures = 0
        while True:
            await self._changed.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._many.wait(), min(COMMIT_EVERY_S * 2**failures, RETRY_MOST_S))
            self._changed.clear()
            self._many.clear()
            try:
                await self.commit()
                failures = 0
            except Exception as error:
                failures = min(failures + 1, 10)
                self._changed.set()
                _log.error("search index not committed, will go on", failures=failures, error=repr(error))

    async def _commit(self) -> None:
        applied = self._applied
        for generation in filter(None, (self._current, self._next)):
            if generation.waiting:
                await generation.commit()
        # An index never filled has no position: it is to be filled at the next start.
        if self._position is not None and applied > self._position:
            await self._store(applied)

    async def _store(self, applied: int) -> None:
        await asyncio.to_thread(_write_state, self._folder, self._number, applied)
        self._position = applied

    def _begun(self) -> Generation:
        if self._next is None:
            raise errors.failed_precondition("no index is being built anew")
        return self._next

    async def _drop_next(self) -> None:
        given_up, self._next = self._next, None
        if given_up is not None:
            await given_up.close()

    def _path(self, number: int) -> Path:
        return self._folder / str(number)


def _read_state(folder: Path) -> tuple[int, int | None]:
    """The number of the index in use, and its position; (1, None) where there is none of this format."""
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
    """Removes the indexes that are not in use: given up, or left behind by a crash."""
    for path in folder.iterdir():
        if path.is_dir() and path.name != str(number):
            with contextlib.suppress(OSError):
                shutil.rmtree(path)
