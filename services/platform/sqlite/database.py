"""SQLite: one writer thread that commits in groups, a few reader threads, and nothing that blocks the loop.

An fsync is what a durable write costs, and one serves all who queued up during the one before: so the writer takes
whatever is waiting, runs each unit of work in a savepoint of its own, and commits once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import structlog

from services.platform.files import FILE_MODE, restrict
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.platform.sqlite import faults
from services.platform.sqlite.lockfile import LockFile

T = TypeVar("T")
Unit = Callable[[sqlite3.Connection], T]
_Job = tuple[Unit[Any], "asyncio.Future[Any]", bool]
_Outcome = tuple["asyncio.Future[Any]", Any, BaseException | None]

# About 0.1 s of work at the measured rate: a longer queue would only hold calls past their deadlines.
MAX_QUEUED = 4_096
# What a failed COMMIT takes down together, and how long the first of a group waits for the last.
MAX_GROUP = 512
# Reads are short and mostly hold the GIL: more threads would not read faster, one would let a long read block the rest.
READERS = 2
# Only the operator's own tools ever lock the file against us.
BUSY_TIMEOUT_S = 1.0
# A WAL that grew under a long read is cut back to this at the next checkpoint.
WAL_KEEP_BYTES = 64 * 1024 * 1024
CACHE_KIB = 16 * 1024  # A connection; there are 1 + READERS.

_log = structlog.get_logger(__name__)


class Database:
    """One SQLite file, WAL and synchronous=FULL, with one owner (a lock file beside it keeps others out) and one loop.

    Units of work run in threads: they fetch what they need before they return, begin and end no transaction, bind every
    value with `?`, and touch nothing that the loop also touches.
    """

    def __init__(self, path: Path, lock: LockFile, writer: sqlite3.Connection, *readers: sqlite3.Connection) -> None:
        self._path = path
        self._lock = lock
        self._writer = writer
        self._writes, self._reads = _JobQueue(), _JobQueue()
        self._hooks: list[Callable[[], None]] = []
        # Daemons: a database left open must not keep a dying process alive.
        self._threads = [threading.Thread(target=self._read_loop, args=(r,), daemon=True) for r in readers]
        self._threads.append(threading.Thread(target=self._write_loop, daemon=True))
        for thread in self._threads:
            thread.start()

    @classmethod
    async def open(cls, path: Path, migrations: Sequence[str]) -> Self:
        """Opens or creates the file and brings its schema up to date.

        `migrations` are SQL scripts, each applied once, in order, whole or not at all: append to the list, never change
        it. FAILED_PRECONDITION if the file has another owner, cannot be used, or a newer release wrote it.
        """
        return cls(path, *await asyncio.to_thread(_open, path, migrations))

    async def write(self, unit: Unit[T], quiet: bool = False) -> T:
        """Runs `unit` in the writer thread; returns its result once that is durable. `quiet` calls no hook for it.

        What `unit` raises undoes that unit alone and is raised here. UNAVAILABLE when the disk refuses, with nothing
        stored; RESOURCE_EXHAUSTED when MAX_QUEUED wait. A caller cancelled meanwhile cannot know if it was stored.
        """
        return await self._writes.run(unit, quiet)

    async def read(self, unit: Unit[T]) -> T:
        """Runs `unit` in a reader thread on one snapshot with every write that returned before. Errors as `write`."""
        return await self._reads.run(unit, True)

    def on_commit(self, hook: Callable[[], None]) -> None:
        """Calls `hook` on the loop after every commit that holds a write not quiet. It is quick and raises nothing."""
        self._hooks.append(hook)

    async def wipe_log(self) -> None:
        """Folds the write-ahead log into the file and cuts it to nothing, so that what was deleted before stands in neither.

        UNAVAILABLE while a read holds on to an earlier state, or the disk refuses: to be called again then.
        """
        await asyncio.to_thread(self._wipe_log)

    def _wipe_log(self) -> None:
        try:
            with contextlib.closing(_connect(self._path, "rw")) as connection:
                # The first holds nobody up, however much there is; so the second, which does, has little left.
                for mode in ("PASSIVE", "TRUNCATE"):
                    (busy, _, _) = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.Error as error:
            raise self._to_roost_error(error) from error
        if busy:
            raise errors.unavailable("the store's log is being read", reason=Reason.STORE_UNAVAILABLE)

    async def close(self) -> None:
        """Finishes what is queued, refuses what comes later, and gives the file free. A second call does nothing."""
        if self._writes.close(1) and self._reads.close(READERS):
            await asyncio.to_thread(self._join)

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()
        # Last, for the last connection to close folds the WAL into the file, and must be able to write.
        self._writer.close()
        self._lock.close()

    def _write_loop(self) -> None:
        ended = False
        while not ended:
            group, ended = self._writes.next_jobs(MAX_GROUP)
            if not group:
                continue
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                outcomes = [self._run_in_savepoint(unit, future) for unit, future, _ in group]
                self._writer.execute("COMMIT")
                self._writes.resolve(outcomes, () if all(quiet for *_, quiet in group) else self._hooks)
            except Exception as error:
                _log.error("commit failed", units=len(group), error=repr(error))
                _roll_back(self._writer)
                # Each gets an error of its own: a shared one would collect everybody's traceback.
                self._writes.resolve([(future, None, self._to_roost_error(error)) for _, future, _ in group])

    def _run_in_savepoint(self, unit: Unit[Any], future: asyncio.Future[Any]) -> _Outcome:
        outcome = self._run(self._writer, "SAVEPOINT unit", unit, future)
        if not self._writer.in_transaction:
            # SQLite gave up the whole transaction (as it may on a full disk), the earlier units' work included.
            raise RuntimeError("a unit of work ended its group's transaction") from outcome[2]
        if outcome[2] is not None:
            self._writer.execute("ROLLBACK TO unit")
        self._writer.execute("RELEASE unit")
        return outcome

    def _read_loop(self, connection: sqlite3.Connection) -> None:
        ended = False
        while not ended:
            # A share of the queue: one wake-up of the loop serves several reads, and no reader takes all.
            jobs, ended = self._reads.next_jobs(1 + self._reads.jobs.qsize() // READERS)
            outcomes = []
            for unit, future, _ in jobs:
                outcomes.append(self._run(connection, "BEGIN", unit, future))
                _roll_back(connection)
            self._reads.resolve(outcomes)
        connection.close()

    def _run(
        self, connection: sqlite3.Connection, begin: str, unit: Unit[Any], future: asyncio.Future[Any]
    ) -> _Outcome:
        try:
            connection.execute(begin)
            # Whoever stopped waiting before it began is spared the work.
            return future, None if future.cancelled() else unit(connection), None
        except sqlite3.Error as error:
            kind = faults.kind_of(error)
            return future, None, self._to_roost_error(error) if kind in faults.TRANSIENT | faults.DAMAGED else error
        except BaseException as error:
            # A future refuses a StopIteration: it would end the loop of whoever awaits.
            return future, None, RuntimeError(repr(error)) if isinstance(error, StopIteration) else error

    def _to_roost_error(self, error: Exception) -> Exception:
        refusal = errors.unavailable("the store cannot do it now", reason=Reason.STORE_UNAVAILABLE)
        refusal.__cause__ = error
        if isinstance(error, sqlite3.Error):
            # A note stays in this process: callers must not learn of files.
            refusal.add_note(faults.note(self._path, error))
            if faults.kind_of(error) in faults.DAMAGED:
                _log.error("database damaged", path=str(self._path), error=str(error))
        return refusal


class _JobQueue:
    """A bounded queue of units from the loop to threads. Only the loop counts, so the count needs no lock."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._pending = 0
        self._open = True

    async def run(self, unit: Unit[T], quiet: bool) -> T:
        if not self._open:
            raise errors.unavailable("the store is closed")
        if self._pending >= MAX_QUEUED:
            raise errors.resource_exhausted("the store's queue is full")
        future: asyncio.Future[T] = self._loop.create_future()
        self._pending += 1
        self.jobs.put((unit, future, quiet))
        return await future

    def close(self, threads: int) -> bool:
        """Refuses new units and ends the threads after those queued; False if it did so before."""
        was_open, self._open = self._open, False
        for _ in range(threads if was_open else 0):
            self.jobs.put(None)
        return was_open

    def next_jobs(self, max_jobs: int) -> tuple[list[_Job], bool]:
        """Waits for a unit, then takes what is behind it, up to `max_jobs`; True if that was the end of the queue."""
        jobs: list[_Job] = []
        job = self.jobs.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) >= max_jobs:
                return jobs, False
            try:
                job = self.jobs.get_nowait()
            except queue.Empty:
                return jobs, False
        return jobs, True

    def resolve(self, outcomes: list[_Outcome], hooks: Sequence[Callable[[], None]] = ()) -> None:
        # A loop that was closed before the database has nobody waiting.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._settle, outcomes, hooks)

    def _settle(self, outcomes: list[_Outcome], hooks: Sequence[Callable[[], None]]) -> None:
        self._pending -= len(outcomes)
        for future, result, failure in outcomes:
            if future.done():
                continue
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)
        for hook in hooks:
            hook()


def _roll_back(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _open(path: Path, migrations: Sequence[str]) -> tuple[Any, ...]:
    with faults.naming(path), contextlib.ExitStack() as undo:
        undo.callback((lock := LockFile(path.with_name(path.name + ".lock"))).close)
        # Made here, for its owner alone: SQLite gives the files beside a database the database's own mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE))
        for suffix in ("", "-wal", "-shm"):
            restrict(path.with_name(path.name + suffix))
        undo.callback((writer := _connect(path, "rwc")).close)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
            writer.execute(f"PRAGMA {pragma}")
        writer.execute(f"PRAGMA journal_size_limit = {WAL_KEEP_BYTES}")
        (version,) = writer.execute("PRAGMA user_version").fetchone()
        if version > len(migrations):
            raise errors.failed_precondition(f"{path}: a newer release wrote it (schema {version} > {len(migrations)})")
        for number, script in enumerate(migrations[version:], start=version + 1):
            writer.executescript(f"BEGIN IMMEDIATE;\n{script}\n;PRAGMA user_version = {number};COMMIT")
        readers = []
        for _ in range(READERS):
            undo.callback((reader := _connect(path, "ro")).close)
            readers.append(reader)
        undo.pop_all()
        return lock, writer, *readers


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    # isolation_level=None: else the module would begin transactions of its own.
    connection = sqlite3.connect(uri, BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, uri=True)
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    return connection
