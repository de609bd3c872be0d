"""Asynchronous SQLite: one writer thread that commits in groups, and a few reader threads.

A durable write needs an fsync. The writer thread takes all queued units of work (functions that execute statements),
runs each in its own savepoint, and commits once, so one fsync makes them all durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import structlog

from services.platform.files import FILE_MODE, restrict
from services.platform.log_events import LogEvent
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.platform.sqlite import faults
from services.platform.sqlite.lockfile import LockFile

T = TypeVar("T")
Unit = Callable[[sqlite3.Connection], T]
# A function that is called after a commit with the objects that its units announced.
Hook = Callable[[Sequence[Any]], None]
_Job = tuple[Unit[Any], "asyncio.Future[Any]"]
_Outcome = tuple["asyncio.Future[Any]", Any, BaseException | None]

# Maximum number of queued units of work, for reads and for writes each: about 0.1 s of work (measured). Beyond it units
# are rejected with RESOURCE_EXHAUSTED, because their callers would wait past their deadlines.
MAX_QUEUED = 4_096
# Maximum number of units of work per commit. It bounds how many units a failed COMMIT undoes, and how long the first
# unit of a group waits for the last.
MAX_GROUP = 512
# Number of reader threads. Reads are short and mostly hold the GIL, so more threads would not be faster; with one
# thread a long read would block all others.
READERS = 2
# Seconds for which a statement waits if another process locks the file, and then fails. Only tools of an operator do
# so.
BUSY_TIMEOUT_S = 1.0
# Bytes to which a checkpoint truncates a write-ahead log (WAL) that grew beyond this size during a long read.
WAL_KEEP_BYTES = 64 * 1024 * 1024
CACHE_KIB = 16 * 1024  # Size of the page cache of each of the 1 + READERS connections.

log = structlog.get_logger(__name__)


class _WriteConnection(sqlite3.Connection):
    """The connection of the writer thread, with the announcements of the current transaction."""

    announced: list[Any]


def announce(connection: sqlite3.Connection, objects: Iterable[Any]) -> None:
    """Makes a unit of work of `Database.write` pass objects to the hooks of `on_commit`. Nothing is passed on if the
    unit fails or its commit does."""
    cast(_WriteConnection, connection).announced.extend(objects)


class Database:
    """One SQLite file (WAL, synchronous=FULL) that one process owns by a lock file. Use it on one event loop only.

    Units of work run in threads. They must fetch their rows before they return, must not begin or end transactions,
    must bind every value with `?`, and must share no mutable state with the event loop.
    """

    def __init__(self, path: Path, lock: LockFile, writer: _WriteConnection, *readers: sqlite3.Connection) -> None:
        self._path = path
        self._lock = lock
        self._writer = writer
        self._writes, self._reads = _JobQueue(), _JobQueue()
        self._hooks: list[Hook] = []
        # Daemon threads: a database that was not closed must not keep the process alive.
        self._threads = [threading.Thread(target=self._read_loop, args=(r,), daemon=True) for r in readers]
        self._threads.append(threading.Thread(target=self._write_loop, daemon=True))
        for thread in self._threads:
            thread.start()

    @classmethod
    async def open(cls, path: Path, migrations: Sequence[str]) -> Self:
        """Opens or creates the file and migrates its schema.

        `migrations` are SQL scripts, applied once each, in order and atomically: append to the list, never change an
        entry. Raises FAILED_PRECONDITION if another process owns the file, if the file cannot be opened as a database,
        or if a newer release migrated the file.
        """
        return cls(path, *await asyncio.to_thread(_open, path, migrations))

    async def write(self, unit: Unit[T]) -> T:
        """Runs `unit` in the writer thread; returns its result once the unit is durable.

        An exception in `unit` undoes that unit only and is raised here. Raises UNAVAILABLE if the disk fails, and
        RESOURCE_EXHAUSTED if MAX_QUEUED units are queued; nothing is stored then. If the caller is cancelled, the unit
        may or may not be stored.
        """
        return await self._writes.run(unit)

    async def read(self, unit: Unit[T]) -> T:
        """Runs `unit` in a reader thread, on a snapshot that contains every write that returned before. Raises
        UNAVAILABLE if the disk fails, RESOURCE_EXHAUSTED if MAX_QUEUED units are queued, and the exceptions of
        `unit`."""
        return await self._reads.run(unit)

    def on_commit(self, hook: Hook) -> None:
        """Calls `hook` on the event loop after each commit of units that called `announce`, in the order of the commits,
        with the announced objects. The hook must be fast and must not raise."""
        self._hooks.append(hook)

    async def wipe_log(self) -> None:
        """Checkpoints the write-ahead log and truncates it, so that deleted data remains in neither file.

        Raises UNAVAILABLE if a read in progress uses an older snapshot, or if the disk fails: call this method again
        later.
        """
        await asyncio.to_thread(self._wipe_log)

    def _wipe_log(self) -> None:
        try:
            with contextlib.closing(_connect(self._path, "rw")) as connection:
                # PASSIVE copies most of the write-ahead log into the file without blocking writers, so that little is
                # left for TRUNCATE, which blocks writers.
                for mode in ("PASSIVE", "TRUNCATE"):
                    (busy, _, _) = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.Error as error:
            raise self._to_roost_error(error) from error
        if busy:
            raise errors.unavailable(
                "a read still uses the store's write-ahead log: retry later", reason=Reason.STORE_UNAVAILABLE
            )

    async def close(self) -> None:
        """Completes queued units, rejects later ones, and releases the file. A second call has no effect."""
        if self._writes.close(1) and self._reads.close(READERS):
            await asyncio.to_thread(self._join)

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()
        # Closed last: the last connection copies the WAL into the file and must be able to write.
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
                self._writer.announced = []
                outcomes = [self._run_in_savepoint(unit, future) for unit, future in group]
                self._writer.execute("COMMIT")
                self._writes.resolve(outcomes, self._hooks, self._writer.announced)
            except Exception as error:
                log.error(LogEvent.COMMIT_FAILED, units=len(group), error=repr(error))
                _roll_back(self._writer)
                # A separate exception for each, because a shared one would collect the tracebacks of all callers.
                self._writes.resolve([(future, None, self._to_roost_error(error)) for _, future in group])

    def _run_in_savepoint(self, unit: Unit[Any], future: asyncio.Future[Any]) -> _Outcome:
        announced = len(self._writer.announced)
        outcome = self._run(self._writer, "SAVEPOINT unit", unit, future)
        if not self._writer.in_transaction:
            # SQLite rolled back the whole transaction (for example on a full disk), with the earlier units of the
            # group.
            raise RuntimeError("a unit of work ended its group's transaction") from outcome[2]
        if outcome[2] is not None:
            self._writer.execute("ROLLBACK TO unit")
            del self._writer.announced[announced:]
        self._writer.execute("RELEASE unit")
        return outcome

    def _read_loop(self, connection: sqlite3.Connection) -> None:
        ended = False
        while not ended:
            # Each reader thread takes a part of the queue: then one wake-up of the event loop passes on the results of
            # several reads, and no thread takes all reads.
            jobs, ended = self._reads.next_jobs(1 + self._reads.jobs.qsize() // READERS)
            outcomes = []
            for unit, future in jobs:
                outcomes.append(self._run(connection, "BEGIN", unit, future))
                _roll_back(connection)
            self._reads.resolve(outcomes)
        connection.close()

    def _run(
        self, connection: sqlite3.Connection, begin: str, unit: Unit[Any], future: asyncio.Future[Any]
    ) -> _Outcome:
        try:
            connection.execute(begin)
            # Skips the unit if its caller was cancelled.
            return future, None if future.cancelled() else unit(connection), None
        except sqlite3.Error as error:
            kind = faults.kind_of(error)
            return future, None, self._to_roost_error(error) if kind in faults.TRANSIENT | faults.DAMAGED else error
        except BaseException as error:
            # A future does not accept StopIteration.
            return future, None, RuntimeError(repr(error)) if isinstance(error, StopIteration) else error

    def _to_roost_error(self, error: Exception) -> Exception:
        refusal = errors.unavailable("the store is unavailable: retry later", reason=Reason.STORE_UNAVAILABLE)
        refusal.__cause__ = error
        if isinstance(error, sqlite3.Error):
            # A note is logged but not sent to callers, who must not learn file names.
            refusal.add_note(faults.note(self._path, error))
            if faults.kind_of(error) in faults.DAMAGED:
                log.error(LogEvent.DATABASE_DAMAGED, path=str(self._path), error=str(error))
        return refusal


class _JobQueue:
    """A bounded queue that passes units of work from the event loop to threads. Only the event loop changes the number
    of pending units, so this number needs no lock."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._pending = 0
        self._open = True

    async def run(self, unit: Unit[T]) -> T:
        if not self._open:
            raise errors.unavailable("the store is closed: the process is stopping")
        if self._pending >= MAX_QUEUED:
            raise errors.resource_exhausted("too many requests are queued for the store: retry later")
        future: asyncio.Future[T] = self._loop.create_future()
        self._pending += 1
        self.jobs.put((unit, future))
        return await future

    def close(self, threads: int) -> bool:
        """Rejects new units, and ends `threads` threads when they have run the queued units. Returns False, and does
        nothing, if the queue was closed before."""
        was_open, self._open = self._open, False
        for _ in range(threads if was_open else 0):
            self.jobs.put(None)
        return was_open

    def next_jobs(self, max_jobs: int) -> tuple[list[_Job], bool]:
        """Waits for a unit, then takes the units queued behind it, up to `max_jobs` in all. The second value is True if
        the queue was closed and this thread must end after these units."""
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

    def resolve(self, outcomes: list[_Outcome], hooks: Sequence[Hook] = (), announced: Sequence[Any] = ()) -> None:
        # Raises RuntimeError if the event loop was closed before the database; then no caller waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._settle, outcomes, hooks, announced)

    def _settle(self, outcomes: list[_Outcome], hooks: Sequence[Hook], announced: Sequence[Any]) -> None:
        self._pending -= len(outcomes)
        for future, result, failure in outcomes:
            if future.done():
                continue
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)
        if announced:
            for hook in hooks:
                hook(announced)


def _roll_back(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _open(path: Path, migrations: Sequence[str]) -> tuple[Any, ...]:
    with faults.naming(path), contextlib.ExitStack() as undo:
        undo.callback((lock := LockFile(path.with_name(path.name + ".lock"))).close)
        # Created here with the owner's permissions only: SQLite gives its other files the mode of the database.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE))
        for suffix in ("", "-wal", "-shm"):
            restrict(path.with_name(path.name + suffix))
        undo.callback((writer := _connect(path, "rwc", _WriteConnection)).close)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
            writer.execute(f"PRAGMA {pragma}")
        writer.execute(f"PRAGMA journal_size_limit = {WAL_KEEP_BYTES}")
        (version,) = writer.execute("PRAGMA user_version").fetchone()
        if version > len(migrations):
            raise errors.failed_precondition(
                f"{path}: a newer release migrated it (schema {version} > {len(migrations)}): run that release"
            )
        for number, script in enumerate(migrations[version:], start=version + 1):
            writer.executescript(f"BEGIN IMMEDIATE;\n{script}\n;PRAGMA user_version = {number};COMMIT")
        readers = []
        for _ in range(READERS):
            undo.callback((reader := _connect(path, "ro")).close)
            readers.append(reader)
        undo.pop_all()
        return lock, writer, *readers


def _connect(path: Path, mode: str, factory: type[sqlite3.Connection] = sqlite3.Connection) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    # isolation_level=None, because the module would otherwise begin transactions itself.
    connection = sqlite3.connect(
        uri, BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, factory=factory, uri=True
    )
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    return connection
