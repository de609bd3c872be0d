"""Runs work to its end even if its caller is cancelled, for example a write that caches must follow."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

from services.platform.rpc import errors

T = TypeVar("T")


class DetachedWork:
    """The detached work of one owner, which `wait` waits for. At most `limit` pieces run at once; None is no limit.

    Work runs in an empty context, so the deadline of the call that starts it does not bound it. With `keep_context` it
    runs in the context of its caller, so the deadline and the trace of the call apply.
    """

    def __init__(self, limit: int | None = None, *, keep_context: bool = False) -> None:
        self._limit = limit
        self._keep_context = keep_context
        # asyncio itself holds tasks weakly: without this set, work whose caller is gone could be collected.
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Returns the result of `work`, which goes on if the caller is cancelled; raises its error.

        Raises RESOURCE_EXHAUSTED, without running the work, if `limit` pieces are running.
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
        """Waits until no work is running; ignores its errors."""
        while self._running:
            await asyncio.wait(self._running)


_unowned = DetachedWork()
_unowned_in_context = DetachedWork(keep_context=True)


async def run_to_completion(work: Coroutine[Any, Any, T], *, keep_context: bool = False) -> T:
    """Runs `work` as a DetachedWork does, for owners that need not wait for it. Its callers bound how many run."""
    return await (_unowned_in_context if keep_context else _unowned).run(work)
