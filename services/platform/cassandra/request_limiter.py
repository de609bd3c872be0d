"""Bounds the number of requests to Cassandra and passes their results to the event loop in batches.

The driver completes requests on its own thread. Waking the event loop costs more than processing one result, so results
are collected until the loop runs, and the results of requests that were sent together are passed on together.
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

# Maximum number of requests in flight; beyond it callers of `run` wait. A node in its default configuration executes
# 128 writes and 32 reads at once; more requests would only queue on the node, where this process cannot count them. The
# maximum is far below the 32,768 streams of a connection, so a stream is always free.
MAX_IN_FLIGHT = 1_024
# Maximum number of queued callers of `run`: about one second of work. Beyond it callers are rejected with
# RESOURCE_EXHAUSTED, because they would wait longer than their deadlines allow.
MAX_QUEUED = 4_096

Send = Callable[[], Any]
"""Sends one request and returns the driver's ResponseFuture."""


class StatementResult(NamedTuple):
    """Result of one request: `rows` (None if the statement returns none) or the driver's `error`, and the driver's
    ResponseFuture."""

    rows: list[tuple[Any, ...]] | None
    error: Exception | None
    future: Any = None


class _Batch:
    """Requests that were sent together; `future` completes with all results when the last request completes."""

    __slots__ = ("future", "results", "unanswered")

    def __init__(self, size: int, future: asyncio.Future[list[StatementResult]]) -> None:
        self.results: list[StatementResult | None] = [None] * size
        self.unanswered = size
        self.future = future


class RequestLimiter:
    """Limits the requests in flight of one process. Use it on one event loop only."""

    def __init__(self, max_in_flight: int = MAX_IN_FLIGHT, max_queued: int = MAX_QUEUED) -> None:
        self._loop = asyncio.get_running_loop()
        self._max_in_flight = self._free = max_in_flight
        self._max_queued = max_queued
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._batches: set[_Batch] = set()
        # Guards `unanswered`: results arrive on the driver's threads, and on the loop's thread if sending fails.
        self._lock = threading.Lock()
        self._done: deque[_Batch] = deque()
        self._woken = False
        self._open = True

    @property
    def in_flight(self) -> int:
        """The number of requests that have been sent and have no result yet."""
        return self._max_in_flight - self._free

    async def run(self, sends: Sequence[Send], deadline: float) -> list[StatementResult]:
        """Sends these requests (at most MAX_IN_FLIGHT) and returns their results in order, once all have completed.

        Waits for a free slot until `deadline` (event loop time), then raises DEADLINE_EXCEEDED. Raises
        RESOURCE_EXHAUSTED if the queue is full, UNAVAILABLE after `close`. After sending, only the driver's timeouts
        bound the wait.
        """
        if not self._open:
            raise errors.unavailable("the store is closed: the process is stopping", reason=Reason.STORE_UNAVAILABLE)
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
        """Fails pending and later requests with UNAVAILABLE."""
        self._open = False
        for batch in list(self._batches):
            if not batch.future.done():
                batch.future.set_exception(
                    errors.unavailable("the store was closed: the process is stopping", reason=Reason.STORE_UNAVAILABLE)
                )
        for _, waiter in self._queue:
            if not waiter.done():
                waiter.set_exception(
                    errors.unavailable("the store was closed: the process is stopping", reason=Reason.STORE_UNAVAILABLE)
                )

    async def _acquire(self, count: int, deadline: float) -> None:
        if not self._queue and self._free >= count:
            self._free -= count
            return
        if len(self._queue) >= self._max_queued:
            raise errors.resource_exhausted("too many requests are queued for the store: retry later")
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._queue.append((count, waiter))
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._release(count)
            if isinstance(error, TimeoutError):
                raise errors.deadline_exceeded(
                    "the store was too busy to start the request before its deadline"
                ) from error
            raise

    def _release(self, count: int) -> None:
        self._free += count
        # The queue is served in order of arrival, because otherwise small requests could delay a large one without end.
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
        """Records a result. Thread-safe; wakes the event loop when the batch is complete."""
        with self._lock:
            if batch.results[index] is not None:
                return
            batch.results[index] = result
            batch.unanswered -= 1
            if batch.unanswered:
                return
        self._done.append(batch)
        # If two threads find the flag unset at the same time, the loop wakes once more than needed, which is harmless.
        if not self._woken:
            self._woken = True
            # Raises RuntimeError if the event loop was closed before the connections; then no caller waits.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._resolve_done)

    def _resolve_done(self) -> None:
        # The flag is reset before `_done` is read: a batch that is added meanwhile schedules another call.
        self._woken = False
        while self._done:
            batch = self._done.popleft()
            self._batches.discard(batch)
            if not batch.future.done():
                batch.future.set_result([result for result in batch.results if result is not None])
            # A slot is released when the result of its request arrives. If a caller stops waiting earlier (cancelled),
            # its request is still in flight and occupies the slot.
            self._release(len(batch.results))
