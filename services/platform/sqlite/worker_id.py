"""The worker id of the embedded backend: leased by a locked file, which also holds the time up to which ids may have been used."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from services.platform.files import naming
from services.platform.ids.snowflake import RESERVE_MS, Snowflake, wall_clock_ms
from services.platform.rpc import errors
from services.platform.sqlite.lockfile import LockFile

_HIGH_WATER_BYTES = 20


class FileLease:
    """The embedded lease of a worker id: a file in the data directory, locked while this object lives.

    The file holds a millisecond that no id has passed, written ahead: so neither kill -9 nor a slower clock makes an id
    twice. FAILED_PRECONDITION if the file has another owner, or holds something else.
    """

    def __init__(self, path: Path, worker_id: int = 0) -> None:
        self._lock = LockFile(path)
        mark = os.pread(self._lock.fd, _HIGH_WATER_BYTES, 0).strip() or b"0"
        if not mark.isdigit():
            self._lock.close()
            raise errors.failed_precondition(f"{path} is damaged: it should hold a time in milliseconds, and no more")
        self.high_water_ms = int(mark)
        try:
            with naming(path):
                # Takes its room now: on a full disk the first id, and the close after a failed start, would find none.
                os.pwrite(self._lock.fd, _line(self.high_water_ms), 0)
        except errors.RoostError:
            self._lock.close()
            raise
        self._worker_id = worker_id
        self._snowflake: Snowflake | None = None
        self._syncer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snowflake-sync")

    def snowflake(
        self, clock_ms: Callable[[], int] = wall_clock_ms, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> Snowflake:
        """The lease's one source of ids; every call gives the same, for two would mint the same ids."""
        if self._snowflake is None:
            self._snowflake = Snowflake(self._worker_id, clock_ms, self.high_water_ms, sleep, self._reserve)
        return self._snowflake

    def close(self) -> None:
        """Ends minting (UNAVAILABLE), records the exact last millisecond, gives the lease free. Blocks for an fsync."""
        try:
            if self._snowflake is not None and self._lock.fd >= 0:
                # Forgotten, so that the next millisecond would have to be reserved, which is refused from now on.
                self._snowflake.reserved_ms = 0
                self._write(self._snowflake.last_ms)
        finally:
            self._syncer.shutdown()
            self._lock.close()

    def _reserve(self, ms: int) -> int:
        # A few microseconds into memory that outlives the process. The sync, in a thread, is for power cuts: to matter,
        # one would have to come before it ends, and the machine be back within the second on a clock gone back.
        self._write(ms + RESERVE_MS)
        return ms + RESERVE_MS

    def _write(self, ms: int) -> None:
        try:
            # The same place and length each time: it needs no room on a full disk.
            os.pwrite(self._lock.fd, _line(ms), 0)
            self._syncer.submit(os.fsync, self._lock.fd)
        except OSError as error:
            raise errors.unavailable("no ids: the lease is closed, or its file cannot be written") from error


def _line(ms: int) -> bytes:
    return b"%0*d\n" % (_HIGH_WATER_BYTES - 1, ms)
