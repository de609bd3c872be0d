"""What is on its way to Cassandra: bounded in number, and handed back to the loop in lots.

The driver answers on a thread of its own. A wake-up of the loop costs more than the answer it brings, so answers gather until the
loop comes to take them, and requests that belong together are taken as one.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# A node of the default size works on 128 writes and 32 reads at once: what is beyond this would only queue there, unseen by us.
# Far below the 32,768 streams of a connection, so that taking one never waits.
MAX_IN_FLIGHT = 1_024
# About a second's worth behind those in flight: a longer queue would only hold calls past their deadlines.
MAX_QUEUED = 4_096

Send = Callable[[], Any]
"""Sends one request and returns the driver's future of it."""


class StatementResult(NamedTuple):
    """One request's: the rows (None where it gives none) or the driver's error, and the driver's future."""

    rows: list[tuple[Any, ...]] | None
    error: Exception | None
    future: Any = None


class _Batch:
    """Requests that were sent together. It is done when the last is answered."""

    __slots__ = ("future", "results", "unanswered")

    def __init__(self, size: int, future: asyncio.Future[list[StatementResult]]) -> None:
        self.results: list[StatementResult | None] = [None] * size
        self.unanswered = size
        self.future = future


class RequestLimiter:
    """The requests of one process, on one loop."""

    def __init__(self, max_in_flight: int = MAX_IN_FLIGHT, max_queued: int = MAX_QUEUED) -> None:
        self._loop = asyncio.get_running_loop()
        self._free = max_in_flight
        self._max_queued = max_queued
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._batches: set[_Batch] = set()
        # Guards `unanswered`: the driver's threads answer, and this one where a request fails at once.
        self._lock = threading.Lock()
        self._done: deque[_Batch] = deque()
        self._woken = False
        self._open = True

    async def run(self, sends: Sequence[Send], deadline: float) -> list[StatementResult]:
        """Sends these requests (at most MAX_IN_FLIGHT) and returns their answers in order, once all are there.

        Waits for room until `deadline` (the loop's seconds), then DEADLINE_EXCEEDED. RESOURCE_EXHAUSTED where too many wait already,
        UNAVAILABLE once closed. When an answer comes is for the driver's own time-outs.
        """
        if not self._open:
            raise errors.unavailable("the store is closed", reason=Reason.STORE_UNAVAILABLE)
        if not sends:
            return []
        await self._acquire(len(sends), deadline)
        batch = _Batch(len(sends), self._loop.create_future())
        self._batches.add(batch)
        for index, send in enumerate(sends):
            try:
                future = send()
            except Exception as error:
                self._complete(batch, index, StatementResult(None, error))
            else:
                self._attach_callbacks(batch, index, future)
        return await batch.future

    def close(self) -> None:
        """Fails what is still out, and what comes later."""
        self._open = False
        for batch in list(self._batches):
            if not batch.future.done():
                batch.future.set_exception(errors.unavailable("the store was closed", reason=Reason.STORE_UNAVAILABLE))
        for _, waiter in self._queue:
            if not waiter.done():
                waiter.set_exception(errors.unavailable("the store was closed", reason=Reason.STORE_UNAVAILABLE))

    async def _acquire(self, count: int, deadline: float) -> None:
        if not self._queue and self._free >= count:
            self._free -= count
            return
        if len(self._queue) >= self._max_queued:
            raise errors.resource_exhausted("too many requests wait for the store")
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._queue.append((count, waiter))
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._release(count)
            if isinstance(error, TimeoutError):
                raise errors.deadline_exceeded("the store was too busy to begin in time") from error
            raise

    def _release(self, count: int) -> None:
        self._free += count
        # In order: a large lot is not passed by for ever by small ones.
        while self._queue and (self._queue[0][1].done() or self._queue[0][0] <= self._free):
            wanted, waiter = self._queue.popleft()
            if not waiter.done():
                self._free -= wanted
                waiter.set_result(None)

    def _attach_callbacks(self, batch: _Batch, index: int, future: Any) -> None:
        def succeed(rows: list[tuple[Any, ...]] | None) -> None:
            self._complete(batch, index, StatementResult(rows, None, future))

        def fail(error: Exception) -> None:
            self._complete(batch, index, StatementResult(None, error, future))

        future.add_callbacks(succeed, fail)

    def _complete(self, batch: _Batch, index: int, result: StatementResult) -> None:
        """Called on any thread."""
        with self._lock:
            if batch.results[index] is not None:
                return
            batch.results[index] = result
            batch.unanswered -= 1
            if batch.unanswered:
                return
        self._done.append(batch)
        # Two threads may both find it asleep: then it wakes once for nothing.
        if not self._woken:
            self._woken = True
            # A loop that was closed before the connections has nobody waiting.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._resolve_done)

    def _resolve_done(self) -> None:
        # Before it looks: what is put there while it looks wakes it again.
        self._woken = False
        while self._done:
            batch = self._done.popleft()
            self._batches.discard(batch)
            if not batch.future.done():
                batch.future.set_result([result for result in batch.results if result is not None])
            # Room is made by answers, not by callers who stopped waiting: their requests are still out.
            self._release(len(batch.results))
