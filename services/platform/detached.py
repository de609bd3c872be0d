"""Runs work to its end even if its caller is cancelled, for example a write after which caches must be invalidated."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

from services.platform.rpc import errors

T = TypeVar("T")


class DetachedWork:
    """Runs coroutines that continue if their caller is cancelled. If `limit` coroutines are running, `run` rejects the
    next one; None means no limit. `wait` waits until all have ended.

    A coroutine runs in an empty context, so the deadline of the current call does not apply. With `keep_context` it
    runs in the context of its caller, so the deadline and the trace of the current call apply.
    """

    def __init__(self, limit: int | None = None, *, keep_context: bool = False) -> None:
        self._limit = limit
        self._keep_context = keep_context
        # asyncio holds only weak references to tasks: without this set, a task whose caller was cancelled could be
        # garbage-collected.
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Awaits `work` and returns its result or raises its error. If the caller is cancelled, `work` continues.

        Raises RESOURCE_EXHAUSTED, without running `work`, if `limit` coroutines are running.
        """
        if self._limit is not None and len(self._running) >= self._limit:
            work.close()
            raise errors.resource_exhausted("too many writes are in progress: retry later")
        context = contextvars.copy_context() if self._keep_context else contextvars.Context()
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def wait(self) -> None:
        """Waits until no coroutine is running; ignores the errors of the coroutines."""
        while self._running:
            await asyncio.wait(self._running)


_unowned = DetachedWork()
_unowned_in_context = DetachedWork(keep_context=True)


async def run_to_completion(work: Coroutine[Any, Any, T], *, keep_context: bool = False) -> T:
    """Awaits `work` and returns its result or raises its error. If the caller is cancelled, `work` continues. Unlike
    DetachedWork, there is no `wait` for shutdown and no limit: the caller must bound how many coroutines run at
    once."""
    return await (_unowned_in_context if keep_context else _unowned).run(work)
