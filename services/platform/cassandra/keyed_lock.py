"""Lets the tasks of one process write to the same key only one after the other.

Concurrent conditional writes to one partition need extra rounds of Paxos, and with more than about 30 at once most time
out. Different processes rarely write to the same partition at the same time; within a process these locks prevent
concurrent writes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Hashable

from services.platform.rpc import errors

# Maximum number of tasks that wait for the lock of one key. Beyond it a task is rejected with RESOURCE_EXHAUSTED: a
# task holds the lock for a few milliseconds, so a task further back in the queue would wait longer than its deadline
# allows.
MAX_WAITERS_PER_KEY = 500


class KeyedLocks:
    """One lock per key. A lock exists only while a task holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    @contextlib.asynccontextmanager
    async def hold(self, key: Hashable) -> AsyncIterator[None]:
        """Waits for the lock of `key` and holds it until the context ends. Raises RESOURCE_EXHAUSTED at once if
        MAX_WAITERS_PER_KEY tasks wait for this lock already."""
        lock, count = self._locks.get(key) or (asyncio.Lock(), 0)
        if count > MAX_WAITERS_PER_KEY:
            raise errors.resource_exhausted("too many concurrent changes of the same item: retry later")
        self._locks[key] = (lock, count + 1)
        try:
            async with lock:
                yield
        finally:
            lock, count = self._locks.pop(key)
            if count > 1:
                self._locks[key] = (lock, count - 1)
