"""Leases the worker id of the embedded backend by a locked file, which also stores the high-water mark of the ids."""

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

# Length of the file's content in bytes: a number of 19 digits and a line feed.
_HIGH_WATER_BYTES = 20


class FileLease:
    """Leases a worker id by a file in the data directory, which is locked while this object is open.

    The file holds the high-water mark in Unix milliseconds, which is written before an id of a later time is minted. So
    no id is minted twice, even after kill -9 or if the clock was set back. Raises FAILED_PRECONDITION if another
    process owns the file, or if its content is invalid.
    """

    def __init__(self, path: Path, worker_id: int = 0) -> None:
        self._lock = LockFile(path)
        mark = os.pread(self._lock.fd, _HIGH_WATER_BYTES, 0).strip() or b"0"
        if not mark.isdigit():
            self._lock.close()
            raise errors.failed_precondition(
                f"{path} is damaged: it must hold one time in milliseconds; restore it from a backup"
            )
        self.high_water_ms = int(mark)
        try:
            with naming(path):
                # Allocates the file's space on the disk now: a later write of the same length succeeds even if the disk
                # is full by then.
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
        """Returns the id generator of this lease, the same one at each call: two generators would mint the same ids."""
        if self._snowflake is None:
            self._snowflake = Snowflake(self._worker_id, clock_ms, self.high_water_ms, sleep, self._reserve)
        return self._snowflake

    def close(self) -> None:
        """Stops minting, stores the time of the last minted id as the high-water mark, and releases the lease. From
        then on minting raises UNAVAILABLE. Blocks the calling thread for an fsync."""
        try:
            if self._snowflake is not None and self._lock.fd >= 0:
                # No more ids can be minted: the next id needs a new reservation, and `_reserve` refuses it from now on.
                self._snowflake.reserved_ms = 0
                self._write(self._snowflake.last_ms)
        finally:
            self._syncer.shutdown()
            self._lock.close()

    def _reserve(self, ms: int) -> int:
        # The write takes some microseconds, and its effect remains if the process dies. The fsync runs in a thread, and
        # minting does not wait for it: the fsync matters only if the power fails before the fsync ends and the machine
        # then starts within a second with a clock that was set back.
        self._write(ms + RESERVE_MS)
        return ms + RESERVE_MS

    def _write(self, ms: int) -> None:
        try:
            # Each write has the same position and length, so it needs no new space on a full disk.
            os.pwrite(self._lock.fd, _line(ms), 0)
            self._syncer.submit(os.fsync, self._lock.fd)
        except OSError as error:
            raise errors.unavailable(
                "no ids can be minted: the lease is closed, or its file cannot be written"
            ) from error


def _line(ms: int) -> bytes:
    return b"%0*d\n" % (_HIGH_WATER_BYTES - 1, ms)
