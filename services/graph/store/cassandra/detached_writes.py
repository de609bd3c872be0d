"""Runs writes to their end even if their caller is gone: a half-finished change would be left to the intent sweeper."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from services.platform.rpc import errors

T = TypeVar("T")

# Writes in progress: some seconds' worth. More would only wait past their deadlines.
MAX_WRITES = 2_000


class DetachedWrites:
    """The writes in progress of one process."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs the write in its own task, which continues if the caller is cancelled. Raises RESOURCE_EXHAUSTED if
        MAX_WRITES are running."""
        if len(self._tasks) >= MAX_WRITES:
            work.close()
            raise errors.resource_exhausted("too many writes are in progress; retry")
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._discard)
        return await asyncio.shield(task)

    async def wait(self) -> None:
        """Waits until the writes in progress have ended."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _discard(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Retrieves the exception: if the caller is gone, asyncio would otherwise log it as never retrieved.
            task.exception()
