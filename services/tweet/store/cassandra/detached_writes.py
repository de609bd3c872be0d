"""Runs writes to their end even if their caller is gone."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class DetachedWrites:
    """The writes in progress of one process."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a write to its end even if the caller is cancelled, in a context without the caller's deadline: only the
        store's own time-outs end it."""
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def wait(self) -> None:
        """Waits for all writes in progress, including those whose callers were cancelled."""
        while self._tasks:
            await asyncio.wait(self._tasks)
