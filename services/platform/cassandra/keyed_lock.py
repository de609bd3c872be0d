"""Order among the writers of one process: one at a time for each key, and each to its end.

Conditional writes to one partition that meet cost rounds of Paxos, and beyond some thirty at once most time out. Between processes
they rarely meet; within one they take turns, which costs nothing where nobody else is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Coroutine, Hashable
from typing import Any, TypeVar

from services.platform.rpc import errors

T = TypeVar("T")

# A turn takes some milliseconds: who is further back would wait past a call's deadline.
MAX_WAITERS_PER_KEY = 500


class KeyedLocks:
    """Locks by key, which exist while somebody holds or awaits them."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    @contextlib.asynccontextmanager
    async def hold(self, key: Hashable) -> AsyncIterator[None]:
        """The turn of this key. RESOURCE_EXHAUSTED where too many wait for it."""
        lock, count = self._locks.get(key) or (asyncio.Lock(), 0)
        if count > MAX_WAITERS_PER_KEY:
            raise errors.resource_exhausted("too many changes of the same at once")
        self._locks[key] = (lock, count + 1)
        try:
            async with lock:
                yield
        finally:
            lock, count = self._locks.pop(key)
            if count > 1:
                self._locks[key] = (lock, count - 1)


async def run_to_completion(work: Coroutine[Any, Any, T]) -> T:
    """Awaits work that a caller who goes away, or whose deadline passes, must not leave half done: it runs in a context of its own,
    where only the store's own time-outs end it."""
    return await asyncio.shield(asyncio.get_running_loop().create_task(work, context=contextvars.Context()))
